"""Failures of the platform that can be armed by name, and the words in which QEMU 10 tells them.

Codes: AMD's "Secure Encrypted Virtualization API" (document 55766), table "Status Codes"; words: QEMU's
``target/i386/sev.c``.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class Stage(StrEnum):
    """The step of a launch, as QEMU takes them. ``FINISH`` comes when the virtual CPUs first run."""

    DEVICE = "device"
    INIT = "init"
    START = "start"
    UPDATE = "update"
    MEASURE = "measure"
    FINISH = "finish"


_EARLY = (Stage.DEVICE, Stage.INIT)
_STATUS = {
    0: "",
    1: "Platform state is invalid",
    2: "Guest state is invalid",
    3: "Platform configuration is invalid",
    5: "Platform is already owned",
    6: "Certificate is invalid",
    7: "Policy is not allowed",
    9: "Invalid address",
    10: "Bad signature",
    11: "Bad measurement",
    12: "ASID is already owned",
    13: "Invalid ASID",
    14: "WBINVD is required",
    15: "DF_FLUSH is required",
    19: "Hardware error",
    20: "Hardware unsafe",
    21: "Feature not supported",
    22: "Invalid parameter",
    23: "Required firmware resource depleted",
    24: "Part-specific integrity check failure",
}
_COMMANDS = {
    **{(stage, snp): "sev_common_kvm_init: failed to initialize" for stage in _EARLY for snp in (False, True)},
    (Stage.START, False): "sev_launch_start: LAUNCH_START",
    (Stage.START, True): "sev_snp_launch_start: SNP_LAUNCH_START",
    (Stage.UPDATE, False): "sev_launch_update_data: LAUNCH_UPDATE",
    (Stage.UPDATE, True): "SNP_LAUNCH_UPDATE",
    (Stage.MEASURE, False): "sev_launch_get_measure: LAUNCH_MEASURE",
    (Stage.MEASURE, True): "SNP_LAUNCH_FINISH",
    (Stage.FINISH, False): "sev_launch_finish: LAUNCH_FINISH",
    (Stage.FINISH, True): "SNP_LAUNCH_FINISH",
}
_EIO, _EBUSY, _EINVAL = -5, -16, -22

POLICY_REFUSED = 7


class LaunchError(Exception):
    """The platform refuses a launch; the arguments are the lines that QEMU writes then."""


class Failure(NamedTuple):
    """A failure at ``stage``: the firmware's ``status``, or else a ``line`` of QEMU or KVM about something else."""

    stage: Stage
    status: int = 0
    line: str = ""

    def stage_for(self, *, snp: bool) -> Stage:
        """When it shows. QEMU updates SNP guests' memory only when it finishes their launch, and measures none."""
        late = snp and self.stage in {Stage.UPDATE, Stage.MEASURE}
        return Stage.FINISH if late else self.stage

    def error(self, *, snp: bool) -> LaunchError:
        """What QEMU writes."""
        if self.line:
            return on_accelerator(self.line) if self.stage in {Stage.DEVICE, Stage.INIT} else LaunchError(self.line)
        return firmware_error(self.stage, self.status, snp=snp)


FAILURES = {
    "device-missing": Failure(
        Stage.DEVICE, line="sev_common_kvm_init: Failed to open /dev/sev 'No such file or directory'"
    ),
    "device-denied": Failure(Stage.DEVICE, line="sev_common_kvm_init: Failed to open /dev/sev 'Permission denied'"),
    "platform-status": Failure(
        Stage.DEVICE,
        line=f"sev_common_kvm_init: failed to get platform status ret=-1 fw_error='1: {_STATUS[1]}'",
    ),
    "no-slot": Failure(
        Stage.INIT, line=f"sev_common_kvm_init: failed to initialize ret={_EBUSY} fw_error=0 '{_STATUS[0]}'"
    ),
    "invalid-platform-state": Failure(Stage.INIT, 1),
    "invalid-config": Failure(Stage.INIT, 3),
    "already-owned": Failure(Stage.INIT, 5),
    "hardware-error": Failure(Stage.INIT, 19),
    "hardware-unsafe": Failure(Stage.INIT, 20),
    "secure-data-invalid": Failure(Stage.INIT, 24),
    "invalid-certificate": Failure(Stage.START, 6),
    "policy-refused": Failure(Stage.START, POLICY_REFUSED),
    "asid-owned": Failure(Stage.START, 12),
    "invalid-asid": Failure(Stage.START, 13),
    "wbinvd-required": Failure(Stage.START, 14),
    "df-flush-required": Failure(Stage.START, 15),
    "unsupported": Failure(Stage.START, 21),
    "invalid-param": Failure(Stage.START, 22),
    "resource-limit": Failure(Stage.START, 23),
    "invalid-address": Failure(Stage.UPDATE, 9),
    "memory-not-locked": Failure(
        Stage.UPDATE,
        line="sev_ram_block_added: failed to register region (0x7f2e40000000+0x10000000)"
        " error 'Cannot allocate memory'",
    ),
    "invalid-guest-state": Failure(Stage.MEASURE, 2),
    "bad-signature": Failure(Stage.FINISH, 10),
    "bad-measurement": Failure(Stage.FINISH, 11),
}
"""By name. What a launch itself gives cause for (no slot, a wrong policy, the wrong firmware) fails without these."""


def firmware_error(stage: Stage, status: int, *, snp: bool, result: int = _EIO) -> LaunchError:
    """What QEMU writes when the firmware's command of ``stage`` ends with ``status``."""
    if stage is Stage.START and not snp:
        result = 1  # QEMU writes a number here that it never sets from the answer.
    line = f"{_COMMANDS[stage, snp]} ret={result} fw_error={status} '{_STATUS[status]}'"
    match stage:
        case Stage.DEVICE | Stage.INIT:
            return on_accelerator(line)
        case Stage.START:
            return on_accelerator(line, "sev_common_kvm_init: failed to create encryption context")
        case _:
            return LaunchError(line)


def invalid_start() -> LaunchError:
    """KVM refuses the arguments of SNP_LAUNCH_START before it asks the firmware."""
    return firmware_error(Stage.START, 0, snp=True, result=_EINVAL)


def on_accelerator(*lines: str) -> LaunchError:
    """A failure while QEMU sets up KVM, which it names in every line."""
    named = (*lines, "failed to initialize kvm: Operation not permitted")
    return LaunchError(*(f"-accel kvm: {line}" for line in named))


class Armed:
    """The failures that the launches of a host will meet: one file per name in ``directory``, with the times left."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def arm(self, name: str, times: int | None = None) -> None:
        """Let launches fail as ``name`` says: the next ``times``, or all. Raises ``KeyError`` for an unknown name."""
        FAILURES[name]
        with self._locked():
            (self._directory / name).write_text("" if times is None else str(times))

    def disarm(self) -> None:
        """Let launches succeed again."""
        with self._locked():
            for name in FAILURES:
                (self._directory / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """What is armed."""
        return [name for name in FAILURES if (self._directory / name).exists()]

    def take(self) -> Failure | None:
        """The failure that a launch meets now, counted as met."""
        with self._locked():
            for name in self.names():
                path = self._directory / name
                left = path.read_text()
                if left and int(left) <= 1:
                    path.unlink()
                elif left:
                    path.write_text(str(int(left) - 1))
                return FAILURES[name]
        return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
