"""Servers as answers show them."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sev_agent.api.addresses import access_address, by_label
from sev_agent.api.host_names import without_names, without_paths
from sev_agent.api.microversion import Microversion
from sev_agent.api.routes import Call
from sev_agent.api.server_bodies import DEFAULT_GROUP
from sev_agent.api.state import Vm, power_state, status
from sev_agent.api.tables import ServerRow

_EXTENDED = Microversion(2, 3)
_LOCKED = Microversion(2, 9)
_HOST_STATUS = Microversion(2, 16)
DESCRIPTION = Microversion(2, 19)
_TAGS = Microversion(2, 26)
_EMBEDDED_FLAVOR = Microversion(2, 47)
_WITH_PROGRESS = frozenset({"ACTIVE", "BUILD"})


def brief(row: ServerRow, call: Call) -> dict[str, Any]:
    """As in a list without details."""
    return {"id": row.id, "name": row.name, "links": links(row.id, call)}


def detail(row: ServerRow, call: Call, *, zone: str) -> dict[str, Any]:
    """All of it, as the call's microversion has it and its caller may see it."""
    shown = status(row.vm_state, row.task_state)
    view: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "status": shown,
        "tenant_id": row.project_id,
        "user_id": row.user_id,
        "metadata": row.properties,
        "hostId": _host_id(row),
        "image": {"id": row.image_id, "links": [_bookmark(call, "images", row.image_id)]},
        "flavor": _flavor(row, call),
        "created": _time(row.created_at),
        "updated": _time(row.updated_at),
        "addresses": by_label(row.nics),
        "accessIPv4": access_address(row.nics, 4),
        "accessIPv6": access_address(row.nics, 6),
        "links": links(row.id, call),
        "OS-DCF:diskConfig": "MANUAL",
        "OS-EXT-AZ:availability_zone": zone if row.host else "",
        "config_drive": "True",
        "key_name": row.key_name,
        "OS-SRV-USG:launched_at": _usage_time(row.launched_at),
        "OS-SRV-USG:terminated_at": _usage_time(row.deleted_at),
        "OS-EXT-STS:task_state": row.task_state,
        "OS-EXT-STS:vm_state": row.vm_state,
        "OS-EXT-STS:power_state": power_state(row.vm_state),
        "security_groups": [{"name": DEFAULT_GROUP}],
        "os-extended-volumes:volumes_attached": [],
    }
    if shown in _WITH_PROGRESS:
        view["progress"] = 0
    if shown == "ERROR" and row.fault is not None:
        view["fault"] = _fault(row.fault, row, is_admin=call.caller.is_admin)
    _add_for_version(view, row, call.version)
    if call.caller.is_admin:
        _add_for_admins(view, row, call.version)
    return view


def links(server_id: str, call: Call) -> list[dict[str, str]]:
    return [
        {"rel": "self", "href": f"{call.base}/servers/{server_id}"},
        _bookmark(call, "servers", server_id),
    ]


def _add_for_version(view: dict[str, Any], row: ServerRow, version: Microversion) -> None:
    if version >= _LOCKED:
        view["locked"] = False
    if version >= DESCRIPTION:
        view["description"] = row.description
    if version >= _TAGS:
        view["tags"] = row.tags


def _add_for_admins(view: dict[str, Any], row: ServerRow, version: Microversion) -> None:
    attributes: dict[str, Any] = {
        "host": row.host,
        "hypervisor_hostname": row.host,
        "instance_name": f"instance-{row.id}",
    }
    if version >= _EXTENDED:
        attributes |= {
            "reservation_id": row.reservation_id,
            "launch_index": row.launch_index,
            "hostname": row.name,
            "kernel_id": "",
            "ramdisk_id": "",
            "root_device_name": "/dev/sda",
            "user_data": None,
        }
    view.update({f"OS-EXT-SRV-ATTR:{name}": value for name, value in attributes.items()})
    if version >= _HOST_STATUS:
        view["host_status"] = "UNKNOWN" if row.host else ""


def _flavor(row: ServerRow, call: Call) -> dict[str, Any]:
    if call.version < _EMBEDDED_FLAVOR:
        return {"id": row.flavor_id, "links": [_bookmark(call, "flavors", row.flavor_id)]}
    kept = row.flavor
    return {
        "original_name": kept["name"],
        "vcpus": kept["vcpus"],
        "ram": kept["memory_mb"],
        "disk": kept["root_gb"],
        "ephemeral": 0,
        "swap": 0,
        "extra_specs": kept["extra_specs"],
    }


def _fault(fault: Mapping[str, Any], row: ServerRow, *, is_admin: bool) -> dict[str, Any]:
    message = fault["message"]
    if not is_admin:
        # Paths first: those that the operator named for the host are known by their form.
        message = without_names(
            without_paths(message), [*fault.get("hosts", ()), row.host, row.told_by, row.forced_host]
        )
    view = {"code": 500, "created": fault.get("created") or _time(row.updated_at), "message": message}
    if is_admin and fault.get("details"):
        view["details"] = fault["details"]
    return view


def _host_id(row: ServerRow) -> str:
    """A name for the host that is the project's own: which servers share a host may be known, which host not."""
    if row.host is None or row.vm_state == Vm.DELETED:
        return ""
    return hashlib.sha224(f"{row.project_id}{row.host}".encode()).hexdigest()


def _bookmark(call: Call, kind: str, identifier: str) -> dict[str, str]:
    return {"rel": "bookmark", "href": f"{call.base.removesuffix('/v2.1')}/{kind}/{identifier}"}


def _time(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _usage_time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.replace(tzinfo=None).isoformat(timespec="microseconds")
