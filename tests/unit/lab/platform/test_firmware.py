import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from sev_agent.lab.platform.emulator import firmware
from sev_agent.lab.platform.emulator.command_line import Launch

CAPACITY = {"sev": 2, "sev_es": 0}


def launch(policy: int = 0x33, kind: str = "sev-guest", image: str = "") -> Launch:
    return Launch(kind=kind, policy=policy, firmware=image, name="guest", uuid="")


def test_a_plain_policy_is_launched() -> None:
    """The default policy of the field is a SEV guest's and takes a SEV slot."""
    assert firmware.check(launch(), CAPACITY).pool == "sev"


@pytest.mark.parametrize("policy", [0x0002_0033, 0x3801_0033, 0x73], ids=["major", "minor", "reserved"])
def test_the_firmware_refuses_a_policy(policy: int) -> None:
    """A policy that wants a newer interface, or sets a reserved bit, fails at LAUNCH_START with the firmware's code."""
    with pytest.raises(firmware.LaunchError) as refused:
        firmware.check(launch(policy), CAPACITY)
    assert refused.value.args[0] == "sev_launch_start: LAUNCH_START ret=1 fw_error=7 'Policy is not allowed'"


@pytest.mark.parametrize(("policy", "kind"), [(0x37, "sev-guest"), (0x30000, "sev-snp-guest")])
def test_a_generation_that_the_host_lacks_is_refused(policy: int, kind: str) -> None:
    """A guest of a generation without slots fails before the firmware is asked."""
    with pytest.raises(firmware.LaunchError, match="support unavailable"):
        firmware.check(launch(policy, kind), CAPACITY)


def test_the_measurement_is_the_firmwares(tmp_path: Path) -> None:
    """It is the HMAC that the document describes, over the firmware image, and the nonce behind it."""
    image = tmp_path / "OVMF.fd"
    image.write_bytes(b"firmware")
    guest = firmware.SevGuest(b"host", launch(image=str(image)), 1)
    measured = base64.b64decode(guest.answer("query-sev-launch-measure")["return"]["data"])
    digest = hashlib.sha256(b"firmware").digest()
    message = bytes((4, 1, 55, 21)) + (0x33).to_bytes(4, "little") + digest + measured[32:]
    assert len(measured) == 48
    assert measured[:32] == hmac.digest(guest._integrity_key, message, "sha256")


def test_each_launch_is_measured_anew() -> None:
    """Two guests of the same firmware have different measurements."""
    guests = [firmware.SevGuest(b"host", launch(), handle) for handle in (1, 2)]
    assert guests[0].answer("query-sev-launch-measure") != guests[1].answer("query-sev-launch-measure")


def test_certificates_have_their_size() -> None:
    """The platform's certificates have the document's sizes, and differ between hosts."""
    answers = [firmware.Platform(identity).answer("query-sev-capabilities")["return"] for identity in (b"a", b"b")]
    sizes = {key: len(base64.b64decode(answers[0][key])) for key in ("pdh", "cert-chain", "cpu0-id")}
    assert sizes == {"pdh": 2084, "cert-chain": 3 * 2084, "cpu0-id": 64}
    assert answers[0]["cpu0-id"] != answers[1]["cpu0-id"]


def test_without_slots_there_is_no_sev() -> None:
    """On a host without SEV, QEMU's own answer is not touched."""
    assert firmware.host(b"host", {"sev": 0, "sev_es": 0}).commands == frozenset()
    assert firmware.host(b"host", CAPACITY).commands == {"query-sev-capabilities"}


def test_an_snp_guest_is_told_by_its_own_fields() -> None:
    """The status of an SNP guest has its policy under the name that QEMU gives it."""
    status = firmware.guest(b"host", launch(0x30000, "sev-snp-guest"), 1).answer("query-sev")["return"]
    assert (status["sev-type"], status["snp-policy"]) == ("sev-snp", 0x30000)
    assert "handle" not in status
