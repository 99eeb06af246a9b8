"""The method's check, at the API: which flavors and images make a server, and what is said of the others."""

from typing import Any

import pytest

from tests.combinations import COMBINATIONS
from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor, make_image, message, nothing_is_there, server
from tests.unit.api.test_public_keys import ED25519

GIB = 1024**3


@pytest.mark.parametrize(("flavor", "image", "text"), COMBINATIONS)
async def test_seven_combinations(api: InProcessApi, flavor: str | None, image: str | None, text: str | None) -> None:
    """Of the seven combinations that the method distinguishes one is a 202, and six are a 400 with their text."""
    specs = {"aggregate": "x"} if flavor is None else {"hw__mem_encryption": flavor}
    await make_flavor(api, **specs)

    status, body = await api.ask("POST", "/servers", json=server(make_image(api, hw_mem_encryption=image)))

    if text is None:
        assert status == 202
        assert [method for method, _ in api.sent.casts] == ["schedule_instance"]
    else:
        assert status == 400
        field, _, told = message(status, body).partition(": ")
        assert told == text
        assert field.startswith(("flavor.extra_specs.", "image.properties."))
        assert await nothing_is_there(api)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"hw_firmware_type": None}, "'hw_firmware_type' is not set, but must be 'uefi'"),
        ({"hw_firmware_type": "bios"}, "'hw_firmware_type' is 'bios', but must be 'uefi'"),
        ({"hw_machine_type": "pc"}, "'hw_machine_type' is 'pc', but must be 'q35'"),
        ({"hw_cdrom_bus": "ide"}, "q35 has no IDE controller"),
        ({"hw_scsi_model": "lsilogic"}, "'hw_scsi_model' is 'lsilogic', but must be 'virtio-scsi'"),
        ({"min_ram": 513}, "flavor property 'ram' is 512 MiB, but must be at least 513 MiB"),
        ({"min_disk": 2}, "flavor property 'disk' is 1 GiB, but must be at least 2 GiB"),
        ({"virtual_size": GIB + 1}, "the image has a virtual size of 1073741825 bytes"),
        ({"status": "queued"}, "image property 'status' is 'queued', but must be 'active'"),
        ({"disk_format": "vmdk"}, "image property 'disk_format' is 'vmdk', but must be 'qcow2' or 'raw'"),
    ],
)
async def test_other_rules(api: InProcessApi, fields: dict[str, Any], text: str) -> None:
    """Every other rule of the field refuses with the property at fault, on what, and what it must be."""
    await make_flavor(api)

    status, body = await api.ask("POST", "/servers", json=server(make_image(api, **fields)))

    assert status == 400
    assert text in message(400, body)
    assert await nothing_is_there(api)


async def test_key(api: InProcessApi) -> None:
    """The public key of a server's ``key_name`` is in what the host is asked to build, under its name."""
    await make_flavor(api)
    keypair = {"name": "laptop", "public_key": ED25519}
    await api.ask("POST", "/os-keypairs", json={"keypair": keypair})

    status, _ = await api.ask("POST", "/servers", json=server(make_image(api), key_name="laptop"))

    assert status == 202
    ((_, arguments),) = api.sent.casts
    assert arguments["instance"]["public_keys"] == {"laptop": ED25519}


async def test_key_of_another_user(api: InProcessApi) -> None:
    """A key of somebody else cannot be named, whatever project they share."""
    await make_flavor(api)
    await api.ask("POST", "/os-keypairs", json={"keypair": {"name": "laptop", "public_key": ED25519}})

    status, body = await api.ask("POST", "/servers", json=server(make_image(api), key_name="laptop"), user="bob")

    assert status == 400
    assert "Invalid key_name provided." in message(400, body)
    assert await nothing_is_there(api)
