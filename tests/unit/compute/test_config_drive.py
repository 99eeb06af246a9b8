# ruff: noqa: ASYNC240 - a test may block its own loop for a moment
import base64
import io
import json
import stat
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import UUID

import pycdlib
import pytest

from sev_agent.compute.config_drive import VERSIONS, files, render, write_config_drive
from sev_agent.schema import BuildArguments, Instance, parse

MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")
USER_DATA = b"#cloud-config\n\x00\xff" * 1000


def _instance(**changes: Any) -> Instance:
    fields = {
        "uuid": "0e2e4b1c-54a1-4b0f-8f39-4a1d7c9f3f10",
        "name": "My server",
        "project_id": "p1",
        "flavor": {"vcpus": 1, "memory_mb": 64, "root_gb": 1},
        "image": {"id": "0e2e4b1c-54a1-4b0f-8f39-4a1d7c9f3f11"},
        "user_data": base64.b64encode(USER_DATA).decode(),
        "public_keys": {"zoë": "ssh-ed25519 AAAA zoë", "adam": "ssh-rsa BBBB"},
        "metadata": {"role": "web"},
        **changes,
    }
    return parse(BuildArguments, {"instance": fields}).instance


def _read(iso: pycdlib.PyCdlib, **path: str) -> bytes:
    content = io.BytesIO()
    iso.get_file_from_iso_fp(content, **path)
    return content.getvalue()


@pytest.mark.parametrize("names", ["rr_path", "joliet_path"])
@pytest.mark.parametrize("version", VERSIONS)
def test_read_back(names: str, version: str) -> None:
    """Every file is there under its own name, by Rock Ridge and by Joliet, in each version's directory."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(render(_instance(), MACS)))
    for name, content in files(_instance(), MACS).items():
        assert _read(iso, **{names: f"/openstack/{version}/{name}"}) == content
    assert _read(iso, **{names: f"/openstack/{version}/user_data"}) == USER_DATA
    iso.close()


def test_label() -> None:
    """The volume has the label by which guests find it, in the ISO and in the Joliet descriptor."""
    image = render(_instance(), ())
    assert image[16 * 2048 + 40 : 16 * 2048 + 72].decode().rstrip() == "config-2"
    assert image[17 * 2048 + 40 : 17 * 2048 + 72].decode("utf-16-be").rstrip() == "config-2"


def test_meta_data() -> None:
    """The metadata are what Nova would give: identity, hostname, keys in both forms, the tenant's own."""
    found = json.loads(files(_instance(), ())["meta_data.json"])
    assert found == {
        "uuid": "0e2e4b1c-54a1-4b0f-8f39-4a1d7c9f3f10",
        "name": "My server",
        "hostname": "my-server",
        "launch_index": 0,
        "project_id": "p1",
        "meta": {"role": "web"},
        "public_keys": {"adam": "ssh-rsa BBBB", "zoë": "ssh-ed25519 AAAA zoë"},
        "keys": [
            {"name": "adam", "type": "ssh", "data": "ssh-rsa BBBB"},
            {"name": "zoë", "type": "ssh", "data": "ssh-ed25519 AAAA zoë"},
        ],
    }
    assert UUID(found["uuid"])


def test_hostname_as_asked() -> None:
    """A hostname in the request goes into the metadata as it is."""
    assert json.loads(files(_instance(hostname="Web-1"), ())["meta_data.json"])["hostname"] == "Web-1"


def test_network_data() -> None:
    """Each NIC is a link with its address, configured by DHCP."""
    found = json.loads(files(_instance(), MACS)["network_data.json"])
    assert [link["ethernet_mac_address"] for link in found["links"]] == list(MACS)
    assert [network["link"] for network in found["networks"]] == [link["id"] for link in found["links"]]
    assert {network["type"] for network in found["networks"]} == {"ipv4_dhcp"}
    empty = json.loads(files(_instance(), ())["network_data.json"])
    assert empty == {"links": [], "networks": [], "services": []}


def test_without_user_data() -> None:
    """Where no user data were given there is no file of them, not an empty one."""
    assert "user_data" not in files(_instance(user_data=None), ())


def test_same_instance_same_content() -> None:
    """The same request gives the same files, in whatever order it names its keys."""
    keys = {"adam": "ssh-rsa BBBB", "zoë": "ssh-ed25519 AAAA zoë"}
    assert files(_instance(), MACS) == files(_instance(public_keys=keys), MACS)
    assert len(render(_instance(), MACS)) == len(render(_instance(), MACS))


async def test_written_for_qemu_to_read(tmp_path: Path) -> None:
    """The file can be read by QEMU's user, and writing it again replaces it."""
    path = tmp_path / "config.iso"
    for _ in range(2):
        await write_config_drive(path, _instance(), MACS)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert [entry.name for entry in tmp_path.iterdir()] == ["config.iso"]


def test_an_address_of_the_guests_own() -> None:
    """A NIC with an address is configured with it, its gateway and its name servers; the one beside it asks by DHCP."""
    address = {"interface": "192.0.2.10/25", "gateway": "192.0.2.1", "dns": ["192.0.2.1", "192.0.2.2"]}
    networks = [
        {"type": "bridge", "source": "br-x", "address": address},
        {"type": "none"},
        {"type": "bridge", "source": "br-y", "address": {"interface": "198.51.100.2/31"}},
        {"type": "user"},
    ]
    macs = (*MACS, "52:54:00:00:00:03")
    everywhere = str(IPv4Address(0))
    found = json.loads(files(_instance(networks=networks), macs)["network_data.json"])
    first, second, third = found["networks"]
    assert first == {
        "id": "network0",
        "network_id": "network0",
        "link": "nic0",
        "type": "ipv4",
        "ip_address": "192.0.2.10",
        "netmask": "255.255.255.128",
        "routes": [{"network": everywhere, "netmask": everywhere, "gateway": "192.0.2.1"}],
    }
    assert (second["ip_address"], second["netmask"], second["routes"]) == ("198.51.100.2", "255.255.255.254", [])
    assert third["type"] == "ipv4_dhcp"
    assert found["services"] == [{"type": "dns", "address": "192.0.2.1"}, {"type": "dns", "address": "192.0.2.2"}]
