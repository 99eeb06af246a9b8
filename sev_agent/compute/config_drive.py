"""What a guest reads at its first boot: OpenStack's config drive, version 2.

Layout: OpenStack's "Metadata" page (nova/user/metadata); readers are cloud-init, cloudbase-init, ignition.
"""

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import pycdlib

from sev_agent.durable import write_durably
from sev_agent.schema import Address, Instance, NetworkKind

VOLUME_LABEL: Final = "config-2"
VERSIONS: Final = ("2018-08-27", "latest")
"""``2018-08-27`` (Rocky) is the newest that cloud-init asks for."""

_EVERYWHERE: Final = str(IPv4Address(0))
"""Where a default route leads."""

_READABLE: Final = 0o644
_FILE, _DIRECTORY = 0o100444, 0o040555


async def write_config_drive(path: Path, instance: Instance, macs: Sequence[str]) -> None:
    """Render the drive and replace ``path`` by it, durably. Arguments as of ``render``. Raises ``OSError``."""
    await asyncio.to_thread(lambda: write_durably(path, render(instance, macs), mode=_READABLE))


def render(instance: Instance, macs: Sequence[str]) -> bytes:
    """The drive of ``instance`` as an ISO 9660 image with Joliet and Rock Ridge names.

    ``macs`` are the addresses of the NICs that the guest sees, in their order. The same arguments give the same files;
    the timestamps beside them are those of the call.
    """
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=VOLUME_LABEL)
    try:
        _add_directory(iso, ("openstack",))
        for version in VERSIONS:
            _add_directory(iso, ("openstack", version))
            for name, content in files(instance, macs).items():
                _add_file(iso, ("openstack", version, name), content)
        image = io.BytesIO()
        iso.write_fp(image)
    finally:
        iso.close()
    return image.getvalue()


def files(instance: Instance, macs: Sequence[str]) -> dict[str, bytes]:
    """The files of one version's directory, by name."""
    found = {
        "meta_data.json": _json(_meta_data(instance)),
        "network_data.json": _json(_network_data(instance, macs)),
        "vendor_data.json": _json({}),
    }
    if instance.user_data is not None:
        found["user_data"] = base64.b64decode(instance.user_data)
    return found


def _meta_data(instance: Instance) -> dict[str, Any]:
    keys = sorted(instance.public_keys.items())
    return {
        "uuid": str(instance.uuid),
        "name": instance.name,
        "hostname": instance.host_name,
        "launch_index": 0,
        "project_id": instance.project_id,
        "meta": instance.metadata,
        "public_keys": dict(keys),
        "keys": [{"name": name, "type": "ssh", "data": key} for name, key in keys],
    }


def _network_data(instance: Instance, macs: Sequence[str]) -> dict[str, Any]:
    seen = [network for network in instance.networks if network.type is not NetworkKind.NONE]
    addresses = [network.address for network in seen] or [None] * len(macs)
    # DHCP is named for each link: with links alone, cloud-init leaves the guest without an address.
    links = [
        {"id": f"nic{index}", "type": "phy", "ethernet_mac_address": mac, "mtu": None} for index, mac in enumerate(macs)
    ]
    networks = [
        {"id": f"network{index}", "link": link["id"], "network_id": f"network{index}", **_configured(address)}
        for index, (link, address) in enumerate(zip(links, addresses, strict=True))
    ]
    servers = dict.fromkeys(str(server) for address in addresses if address is not None for server in address.dns)
    return {"links": links, "networks": networks, "services": [{"type": "dns", "address": each} for each in servers]}


def _configured(address: Address | None) -> dict[str, Any]:
    """How the guest comes to its address. Format: Nova's ``doc/api_schemas/network_data.json``."""
    if address is None:
        return {"type": "ipv4_dhcp"}
    to_all = {"network": _EVERYWHERE, "netmask": _EVERYWHERE}
    return {
        "type": "ipv4",
        "ip_address": str(address.interface.ip),
        "netmask": str(address.interface.netmask),
        "routes": [] if address.gateway is None else [{**to_all, "gateway": str(address.gateway)}],
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def _add_directory(iso: pycdlib.PyCdlib, parts: tuple[str, ...]) -> None:
    iso.add_directory(_iso_path(parts), rr_name=parts[-1], joliet_path="/" + "/".join(parts), file_mode=_DIRECTORY)


def _add_file(iso: pycdlib.PyCdlib, parts: tuple[str, ...], content: bytes) -> None:
    iso.add_fp(
        io.BytesIO(content),
        len(content),
        _iso_path(parts) + ";1",
        rr_name=parts[-1],
        joliet_path="/" + "/".join(parts),
        file_mode=_FILE,
    )


def _iso_path(parts: tuple[str, ...]) -> str:
    # The plain ISO names know only capitals, digits and "_", and one dot; readers use Rock Ridge or Joliet.
    return "".join("/" + part.upper().replace("-", "_") for part in parts)
