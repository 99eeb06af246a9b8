"""Names of users and groups of the host below a root, and who may open a file."""

from sev_agent.hypervisor.host_files import HostFiles, Node

_MAX_NAMES = 8


def holders(files: HostFiles, node: Node) -> str:
    """Such as ``0660 root:kvm (libvirt-qemu)``: permissions, owner, group, the group's members."""
    owner = _name(files, "etc/passwd", node.uid)
    group = _name(files, "etc/group", node.gid)
    members = _members(files, node.gid)
    shown = ", ".join(members[:_MAX_NAMES]) + (", ..." if len(members) > _MAX_NAMES else "")
    return f"{node.mode:04o} {owner}:{group}" + (f" ({shown})" if members else "")


def _rows(files: HostFiles, path: str) -> list[list[str]]:
    return [line.split(":") for line in (files.text_or_none(path) or "").splitlines()]


def _name(files: HostFiles, path: str, number: int) -> str:
    return next((row[0] for row in _rows(files, path) if len(row) > 2 and row[2] == str(number)), str(number))


def _members(files: HostFiles, number: int) -> list[str]:
    found = (row[3] for row in _rows(files, "etc/group") if len(row) > 3 and row[2] == str(number))
    return [name for name in next(found, "").split(",") if name]
