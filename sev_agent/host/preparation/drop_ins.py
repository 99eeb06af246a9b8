"""Files of this command's own: the module's options, and the limits of those who lock guests' memory."""

from typing import Final

from sev_agent.host import modprobe
from sev_agent.host.preparation.arguments import PreparationRefused, parameters, refuse_contradicting_options
from sev_agent.host.preparation.change import Changes, FileChange
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation

MARK: Final = "# Written by 'sev-agent prepare'; 'sev-agent prepare --undo' takes it back."
"""The first line of every file that this command makes."""

MODPROBE: Final = "etc/modprobe.d/sev-agent.conf"
SLICE: Final = "etc/systemd/system/machine.slice.d/90-sev-agent.conf"

_UNIT_DIRECTORIES = ("usr/lib/systemd/system", "lib/systemd/system")
_DAEMONS = ("virtqemud.service", "libvirtd.service")
"""The two forms of libvirt; a host may have both, and runs one."""

_SLICE_TEXT = f"""{MARK}
# Encrypted guests are pinned: a limit below the host's RAM would end them.
[Slice]
MemoryHigh=infinity
MemoryMax=infinity
"""
_DAEMON_TEXT = f"""{MARK}
# A guest's QEMU inherits it, and locks all of the guest's memory.
[Service]
LimitMEMLOCK=infinity
"""


def module_options(files: HostFiles, generation: Generation) -> Changes:
    """Raises ``PreparationRefused`` where another file says the opposite."""
    wanted = parameters(generation, files)
    others = [option for option in modprobe.kvm_amd(files) if option.source != files.where(MODPROBE)]
    refuse_contradicting_options(others, wanted)
    settings = " ".join(f"{name}={value}" for name, value in wanted.items())
    text = (
        f"{MARK}\n"
        "# kvm_amd looks for the secure processor once, when it is loaded.\n"
        "softdep kvm_amd pre: ccp\n"
        f"options kvm_amd {settings}\n"
    )
    return own_file(files, MODPROBE, text)


def memory_limits(files: HostFiles) -> Changes:
    """The daemons' limit of locked memory, and no limit for the slice that all guests are in."""
    installed = [
        unit for unit in _DAEMONS if any(files.exists(f"{directory}/{unit}") for directory in _UNIT_DIRECTORIES)
    ]
    changes = own_file(files, SLICE, _SLICE_TEXT)
    for unit in installed:
        changes += own_file(files, f"etc/systemd/system/{unit}.d/90-sev-agent.conf", _DAEMON_TEXT)
    return changes


def own_file(files: HostFiles, path: str, text: str) -> Changes:
    """Make ``path`` have ``text``. Raises ``PreparationRefused`` where a file that is not this command's is there."""
    before = files.content(path) if files.exists(path) else None
    if before is not None and not before.startswith(MARK.encode()):
        raise PreparationRefused(
            f"{files.where(path)} is there, and this command did not write it",
            remedy="move it away, if it is not wanted, and run this again",
        )
    after = text.encode()
    return Changes() if before == after else Changes(files=(FileChange(path=path, before=before, after=after),))
