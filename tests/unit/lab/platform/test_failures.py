from pathlib import Path

import pytest

from sev_agent.lab.platform.emulator.failures import FAILURES, Armed, Stage


@pytest.mark.parametrize("snp", [False, True])
def test_each_failure_has_words_of_its_own(snp: bool) -> None:  # noqa: FBT001 - a parameter
    """No two failures of a generation read the same."""
    texts = {failure.error(snp=snp).args for failure in FAILURES.values()}
    assert len(texts) == len(FAILURES)


def test_a_firmware_code_reads_as_qemu_writes_it() -> None:
    """Code and text stand in one line, and what follows from them below."""
    assert FAILURES["resource-limit"].error(snp=True).args == (
        "-accel kvm: sev_snp_launch_start: SNP_LAUNCH_START ret=-5 fw_error=23 'Required firmware resource depleted'",
        "-accel kvm: sev_common_kvm_init: failed to create encryption context",
        "-accel kvm: failed to initialize kvm: Operation not permitted",
    )


@pytest.mark.parametrize(("snp", "stage"), [(False, Stage.UPDATE), (True, Stage.FINISH)])
def test_snp_fails_later(snp: bool, stage: Stage) -> None:  # noqa: FBT001 - a parameter
    """Memory of SEV-SNP guests is encrypted only when their launch is finished."""
    assert FAILURES["invalid-address"].stage_for(snp=snp) is stage


def test_an_armed_failure_is_met_so_often(tmp_path: Path) -> None:
    """After its number of times launches succeed again."""
    armed = Armed(tmp_path / "failures")
    assert armed.take() is None
    armed.arm("no-slot", 2)
    assert [armed.take() for _ in range(3)] == [FAILURES["no-slot"], FAILURES["no-slot"], None]


def test_an_armed_failure_stays_until_it_is_disarmed(tmp_path: Path) -> None:
    """Without a number every launch fails."""
    armed = Armed(tmp_path)
    armed.arm("hardware-error")
    assert {armed.take() for _ in range(3)} == {FAILURES["hardware-error"]}
    assert armed.names() == ["hardware-error"]
    armed.disarm()
    assert armed.take() is None


def test_an_unknown_failure_is_not_armed(tmp_path: Path) -> None:
    """A name that means nothing is the caller's mistake."""
    with pytest.raises(KeyError):
        Armed(tmp_path).arm("bad-luck")
