"""``sev-agent image``, ``flavor`` and ``validate``, against services that answer as they are told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from sev_agent.cli.main import app
from sev_agent.sev import tags
from tests.unit.cli.cloud import ScriptedCloud, serving

GIB = 1024**3


@pytest.fixture
def cloud() -> Iterator[ScriptedCloud]:
    with serving(ScriptedCloud()) as cloud:
        yield cloud


def run(cloud: ScriptedCloud, *arguments: str, answer: str | None = None) -> Result:
    endpoints = {
        "image": ["--image-endpoint", cloud.url],
        "flavor": ["--endpoint", f"{cloud.url}/v2.1"],
        "validate": ["--endpoint", cloud.url, "--image-endpoint", cloud.url],
    }[arguments[0]]
    return CliRunner().invoke(app, [*arguments, *endpoints], env=cloud.environment, input=answer)


def lines(result: Result) -> dict[str, list[str]]:
    """The words of each line of a table, by the property that it is about."""
    words = [line.split() for line in result.stdout.splitlines()]
    return {word: line for line in words for word in line if word.startswith(("hw", "ram", "disk"))}


def test_tag_shows_and_changes(cloud: ScriptedCloud) -> None:
    """A tag shows what is and what will be, and changes only that, in one patch."""
    image_id = cloud.add_image("debian", hw_machine_type="pc", hw_firmware_type="uefi", os_distro="debian")

    result = run(cloud, "image", "tag", "debian", "--yes")

    assert result.exit_code == 0, result.output
    assert lines(result)["hw_machine_type"] == ["hw_machine_type", "pc", "q35"]
    assert lines(result)["hw_cdrom_bus"] == ["hw_cdrom_bus", "-", "scsi"]
    assert "hw_firmware_type" not in result.stdout
    assert [[change["path"] for change in patch] for patch in cloud.patched] == [
        ["/hw_cdrom_bus", "/hw_mem_encryption", "/hw_machine_type", "/hw_scsi_model"]
    ]
    assert cloud.images[image_id].items() >= {**tags.IMAGE, "os_distro": "debian"}.items()


def test_tag_asks(cloud: ScriptedCloud) -> None:
    """Without --yes it asks, and a no changes nothing."""
    cloud.add_image("debian")

    assert run(cloud, "image", "tag", "debian", answer="n\n").exit_code == 1
    assert run(cloud, "image", "tag", "debian", answer="").exit_code == 1
    assert cloud.patched == []
    assert run(cloud, "image", "tag", "debian", answer="y\n").exit_code == 0
    assert len(cloud.patched) == 1


def test_tag_dry_run(cloud: ScriptedCloud) -> None:
    """A dry run shows the difference, and neither asks nor changes."""
    cloud.add_image("debian", hw_scsi_mode="lsilogic")

    result = run(cloud, "image", "tag", "debian", "--dry-run")

    assert result.exit_code == 0
    assert lines(result)["hw_scsi_mode"] == ["hw_scsi_mode", "lsilogic", "removed"]
    assert cloud.patched == []


def test_tag_twice(cloud: ScriptedCloud) -> None:
    """An image that is tagged is left alone, without a question."""
    cloud.add_image("debian")
    run(cloud, "image", "tag", "debian", "--yes")

    result = run(cloud, "image", "tag", "debian")

    assert result.exit_code == 0
    assert "nothing to change" in result.stdout
    assert len(cloud.patched) == 1


def test_tag_is_not_enough(cloud: ScriptedCloud) -> None:
    """What no tag mends is told with its remedy, and the exit status says it."""
    cloud.add_image("windows", hw_vif_model="e1000")

    result = run(cloud, "image", "tag", "windows", "--yes")

    assert result.exit_code == 1
    assert len(cloud.patched) == 1
    assert "openstack image set --property hw_vif_model=virtio IMAGE" in result.stdout


def test_tag_json(cloud: ScriptedCloud) -> None:
    """With --json the difference is data."""
    image_id = cloud.add_image("debian", **{**tags.IMAGE, "hw_machine_type": "pc"})

    told = json.loads(run(cloud, "image", "tag", "debian", "--yes", "--json").stdout)

    assert told == {
        "image": {"id": image_id, "name": "debian"},
        "changes": {"hw_machine_type": {"from": "pc", "to": "q35"}},
        "applied": True,
        "refused": [],
    }


def test_check(cloud: ScriptedCloud) -> None:
    """A check has a line for each rule of the image, and fails where one refuses."""
    good = cloud.add_image("good", **tags.IMAGE)
    cloud.add_image("bad", **{**tags.IMAGE, "hw_cdrom_bus": "ide"})

    assert run(cloud, "image", "check", good).exit_code == 0
    result = run(cloud, "image", "check", "bad")
    assert result.exit_code == 1
    assert lines(result)["hw_cdrom_bus"][0] == "no"
    assert lines(result)["hw_machine_type"][0] == "ok"
    assert "q35 has no IDE controller" in result.stdout
    assert json.loads(run(cloud, "image", "check", good, "--json").stdout)["ok"] is True


def test_ambiguous_image(cloud: ScriptedCloud) -> None:
    """A name that several images have is an error that names them; by its ID each can be had."""
    both = [cloud.add_image("debian"), cloud.add_image("debian")]

    result = run(cloud, "image", "check", "debian")

    assert result.exit_code == 1
    assert all(image_id in result.stderr for image_id in both)
    assert run(cloud, "image", "tag", both[0], "--yes").exit_code == 0


@pytest.mark.parametrize("name", ["nothing", str(uuid4())])
def test_missing_image(cloud: ScriptedCloud, name: str) -> None:
    """An image that is not there is an exit status of its own."""
    result = run(cloud, "image", "check", name)

    assert result.exit_code == 4
    assert name in result.stderr


def test_an_images_name_steers_no_terminal(cloud: ScriptedCloud) -> None:
    """What other people wrote into Glance is printed as text."""
    cloud.add_image("debian", hw_machine_type="[red]pc\x1b[2J")

    result = run(cloud, "image", "check", "debian")

    assert "\x1b" not in result.stdout
    assert "[red]pc" in result.stdout


def test_create_flavor(cloud: ScriptedCloud) -> None:
    """A flavor is created with its extra spec, which makes it one for encrypted guests."""
    result = run(cloud, "flavor", "create", "m1.sev", "--vcpus", "2", "--ram", "256", "--disk", "1", "--private")

    assert result.exit_code == 0, result.output
    ((flavor_id, flavor),) = cloud.flavors.items()
    assert (flavor["name"], flavor["vcpus"], flavor["ram"], flavor["disk"]) == ("m1.sev", 2, 256, 1)
    assert flavor["os-flavor-access:is_public"] is False
    assert cloud.extra_specs[flavor_id] == {"hw:mem_encryption": "True"}
    assert flavor_id in result.stdout


def test_create_flavor_of_a_generation(cloud: ScriptedCloud) -> None:
    """A generation is written into the extra specs; --json prints what was made."""
    told = json.loads(run(cloud, "flavor", "create", "m1.es", "--generation", "amd-sev-es", "--json").stdout)

    assert told["extra_specs"] == {"hw:mem_encryption": "True", "hw:mem_encryption_model": "amd-sev-es"}
    assert cloud.flavors[told["id"]]["os-flavor-access:is_public"] is True


def test_a_flavors_name_is_taken(cloud: ScriptedCloud) -> None:
    """A name that is taken is refused with what the API says."""
    cloud.add_flavor("m1.sev")

    result = run(cloud, "flavor", "create", "m1.sev")

    assert result.exit_code == 1
    assert "Flavor with name m1.sev already exists." in result.stderr


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "cloud's openrc"), (403, "openrc of a user whose role permits it")]
)
def test_user_that_is_refused(cloud: ScriptedCloud, status: int, remedy: str) -> None:
    """Where the cloud refuses the user, the remedy is about the shell's openrc, not about a daemon's file."""
    cloud.refuse_user = status

    result = run(cloud, "flavor", "create", "m1.sev")

    assert result.exit_code == 1
    assert remedy in result.stderr
    assert "section auth" not in result.stderr


def test_half_a_flavor_is_removed(cloud: ScriptedCloud) -> None:
    """A flavor whose extra spec is refused does not stay: without it, it would give unencrypted servers."""
    cloud.refuse_extra_specs = True

    assert run(cloud, "flavor", "create", "m1.sev").exit_code == 1
    assert cloud.flavors == {}


def test_validate(cloud: ScriptedCloud) -> None:
    """A flavor and an image that fit are accepted; each rule has its line, the sizes among them."""
    cloud.add_flavor("m1.sev", hw__mem_encryption="true")
    cloud.add_image("debian", **tags.IMAGE, min_ram=512, min_disk=1, virtual_size=GIB)

    result = run(cloud, "validate", "--flavor", "m1.sev", "--image", "debian")

    assert result.exit_code == 0, result.output
    assert lines(result)["hw:mem_encryption"][0] == "ok"
    assert lines(result)["ram"][0] == "ok"
    assert "flavor m1.sev and image debian make an encrypted server" in result.stdout


@pytest.mark.parametrize(
    ("flavor", "image", "code", "text"),
    [
        ({}, {}, "sev.flavor_lacks_encryption", "openstack flavor set --property hw:mem_encryption=true FLAVOR"),
        ({"hw__mem_encryption": "true"}, {"hw_firmware_type": "bios"}, "sev.firmware_not_uefi", "must be 'uefi'"),
        ({"hw__mem_encryption": "true", "ram": 128}, {"min_ram": 256}, "image.flavor_too_small", "at least 256 MiB"),
        ({"hw__mem_encryption": "true"}, {"virtual_size": 2 * GIB}, "image.too_large", "a disk of at least 2 GiB"),
        ({"hw__mem_encryption": "true"}, {"status": "queued"}, "image.inactive", "must be 'active'"),
    ],
)
def test_validate_refuses(
    cloud: ScriptedCloud, flavor: dict[str, Any], image: dict[str, Any], code: str, text: str
) -> None:
    """What a rule refuses is told with its remedy, and the exit status says it."""
    cloud.add_flavor("flavor", **flavor)
    cloud.add_image("image", **{**tags.IMAGE, **image})

    shown = run(cloud, "validate", "--flavor", "flavor", "--image", "image")
    told = run(cloud, "validate", "--flavor", "flavor", "--image", "image", "--json")

    assert (shown.exit_code, told.exit_code) == (1, 1)
    assert text in shown.stdout
    document = json.loads(told.stdout)
    assert document["ok"] is False
    assert [rule["code"] for rule in document["rules"] if not rule["ok"]] == [code]


def test_validate_with_the_clouds_bounds(cloud: ScriptedCloud, tmp_path: Path) -> None:
    """Policies are judged by the API's own bounds where its configuration is given, else by the default ones."""
    cloud.add_flavor("flavor", hw__mem_encryption="true", hw__mem_encryption_policy="noks")
    cloud.add_image("image", **tags.IMAGE)
    config = tmp_path / "api.toml"
    config.write_text('[auth]\ntype = "none"\n[encryption]\npolicy_required = ["nosend"]\n')
    asked = ("validate", "--flavor", "flavor", "--image", "image")

    assert run(cloud, *asked).exit_code == 0
    refused = run(cloud, *asked, "--config", str(config))

    assert refused.exit_code == 1
    assert lines(refused)["hw:mem_encryption_policy"][0] == "no"
    assert "this cloud demands nosend of every policy" in refused.stdout
    assert "add nosend to it" in refused.stdout


def test_validate_names_what_is_missing(cloud: ScriptedCloud) -> None:
    """A flavor that is not there is an exit status of its own."""
    result = run(cloud, "validate", "--flavor", "none/../x", "--image", "debian")

    assert result.exit_code == 4
    assert "none/../x" in result.stderr
