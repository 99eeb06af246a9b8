import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from sev_agent.lab.platform.emulator import firmware
from sev_agent.lab.platform.emulator.command_line import Launch
from sev_agent.lab.platform.emulator.failures import FAILURES, LaunchError
from sev_agent.lab.platform.emulator.kind import Kind


def launch(policy: int = 0x33, kind: str = "sev-guest", image: str = "") -> Launch:
    return Launch(kind=kind, policy=policy, firmware=image, name="guest", uuid="")


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


def test_without_a_platform_there_is_no_answer() -> None:
    """On a host without SEV, QEMU's own answer is not touched."""
    assert firmware.host(b"host", Kind.NONE).commands == frozenset()
    assert firmware.host(b"host", Kind.SEV).commands == {"query-sev-capabilities"}


def test_an_snp_guest_is_told_by_its_own_fields() -> None:
    """The status of an SNP guest has its policy under the name that QEMU gives it."""
    status = firmware.guest(b"host", launch(0x30000, "sev-snp-guest"), 1).answer("query-sev")["return"]
    assert (status["sev-type"], status["snp-policy"]) == ("sev-snp", 0x30000)
    assert "handle" not in status


def test_a_guest_runs_from_its_first_command_to_continue() -> None:
    """Before that a SEV guest may be given secrets, and says so."""
    guest = firmware.guest(b"host", launch(), 1)
    assert guest.answer("query-sev")["return"]["state"] == "launch-secret"
    guest.observe("cont")
    assert guest.answer("query-sev")["return"]["state"] == "running"


def test_a_late_failure_shows_when_the_guest_is_to_run() -> None:
    """What ends a launch at its finish does so at the first command to continue, and not before."""
    late = FAILURES["bad-measurement"].error(snp=False)
    guest = firmware.guest(b"host", launch(), 1, late=late)
    guest.observe("query-status")
    with pytest.raises(LaunchError, match="LAUNCH_FINISH"):
        guest.observe("cont")
    assert guest.answer("query-sev")["return"]["state"] == "launch-secret"
