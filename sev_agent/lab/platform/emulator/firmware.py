"""The secure processor's answers: who may launch, and what the monitor is told of a launched guest.

After AMD's "Secure Encrypted Virtualization API" (document 55766), chapters 2, 3 and 6, and QEMU's
``target/i386/sev.c``, whose texts a failure bears.
"""

import base64
import hashlib
import hmac
import os
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from .command_line import Launch

API_MAJOR = 1
API_MINOR = 55
BUILD_ID = 21
C_BIT_POSITION = 51
REDUCED_PHYSICAL_BITS = 1

_POLICY_ES = 1 << 2
_POLICY_RESERVED = 0xFFC0
_MEASURED = b"\x04"

_CERTIFICATE_SIZE = 2084
_CERTIFICATE_ALGORITHM = 0x0102
_PDH, _PEK, _OCA, _CEK = 0x1003, 0x1002, 0x1001, 0x1004


class LaunchError(Exception):
    """The firmware or KVM refuses a launch; the arguments are the lines that QEMU writes then."""


class Generation(NamedTuple):
    """How one generation is launched: the slot pool it uses and the name that QEMU's text gives it."""

    pool: str
    title: str


def generation(launch: Launch) -> Generation:
    if launch.kind == "sev-snp-guest":
        return Generation("sev_es", "SEV-SNP")
    return Generation("sev_es", "SEV-ES") if launch.policy & _POLICY_ES else Generation("sev", "SEV")


def check(launch: Launch, capacity: dict[str, int]) -> Generation:
    """The generation to launch. Raises ``LaunchError`` as QEMU, KVM or the firmware's LAUNCH_START refuses it."""
    wanted = generation(launch)
    if not capacity.get(wanted.pool):
        reason = f"guest policy requires {wanted.title}, but host {wanted.title} support unavailable"
        raise LaunchError(f"sev_common_kvm_init: {reason}", *_failed())
    if launch.kind == "sev-guest":
        required = ((launch.policy >> 16) & 0xFF, (launch.policy >> 24) & 0xFF)
        if launch.policy & _POLICY_RESERVED or required > (API_MAJOR, API_MINOR):
            raise LaunchError(
                "sev_launch_start: LAUNCH_START ret=1 fw_error=7 'Policy is not allowed'",
                "sev_common_kvm_init: failed to create encryption context",
                *_failed(),
            )
    return wanted


def no_slot() -> LaunchError:
    """Every ASID is in use: KVM_SEV_INIT gives EBUSY."""
    return LaunchError("sev_common_kvm_init: failed to initialize ret=-16 fw_error=0 ''", *_failed())


def _failed() -> tuple[str, ...]:
    return ("failed to initialize kvm: Operation not permitted",)


class Platform:
    """The monitor of a QEMU that has launched no encrypted guest, on a host that could."""

    commands: ClassVar[frozenset[str]] = frozenset({"query-sev-capabilities"})

    def __init__(self, identity: bytes) -> None:
        self._identity = identity

    def answer(self, command: str) -> dict[str, Any]:
        """The body of the reply to ``command``, one of ``commands``."""
        if command != "query-sev-capabilities":
            raise ValueError(command)
        chain = b"".join(self._certificate(usage) for usage in (_PEK, _OCA, _CEK))
        return _value(
            {
                "pdh": _text(self._certificate(_PDH)),
                "cert-chain": _text(chain),
                "cpu0-id": _text(hashlib.sha512(self._identity).digest()),
                "cbitpos": C_BIT_POSITION,
                "reduced-phys-bits": REDUCED_PHYSICAL_BITS,
            }
        )

    def observe(self, command: str) -> None:
        """Take note of a command that QEMU itself carries out."""

    def _certificate(self, usage: int) -> bytes:
        """A certificate's frame (appendix C of the document) around bytes that are no key: simulated."""
        head = (1).to_bytes(4, "little") + bytes((API_MAJOR, API_MINOR, 0, 0))
        head += usage.to_bytes(4, "little") + _CERTIFICATE_ALGORITHM.to_bytes(4, "little")
        filler = hashlib.shake_256(self._identity + usage.to_bytes(4, "little"))
        return head + filler.digest(_CERTIFICATE_SIZE - len(head))


class Absent(Platform):
    """The monitor of a QEMU on a host without SEV: the real QEMU itself says that there is none."""

    commands = frozenset()


class SevGuest(Platform):
    """A guest of the first two generations, measured by the firmware and then run."""

    commands = Platform.commands | {"query-sev", "query-sev-launch-measure"}

    def __init__(self, identity: bytes, launch: Launch, handle: int) -> None:
        super().__init__(identity)
        self._launch = launch
        self._handle = handle
        self._running = False
        self._integrity_key = os.urandom(16)
        self._nonce = os.urandom(16)

    def answer(self, command: str) -> dict[str, Any]:
        match command:
            case "query-sev":
                return _value(self._status())
            case "query-sev-launch-measure":
                return _value({"data": _text(self._measurement())})
            case _:
                return super().answer(command)

    def observe(self, command: str) -> None:
        # QEMU calls LAUNCH_FINISH when the virtual CPUs first run; libvirt starts every guest paused.
        self._running = self._running or command == "cont"

    def _status(self) -> dict[str, Any]:
        return {
            "enabled": True,
            "api-major": API_MAJOR,
            "api-minor": API_MINOR,
            "build-id": BUILD_ID,
            "state": "running" if self._running else "launch-secret",
            "sev-type": "sev",
            "policy": self._launch.policy,
            "handle": self._handle,
        }

    def _measurement(self) -> bytes:
        """LAUNCH_MEASURE (chapter 6.5): an HMAC over the launch, then its nonce; 48 bytes.

        The integrity key is random here, where a guest owner's session would bring it; nobody can check it.
        """
        digest = hashlib.sha256(_content(self._launch.firmware)).digest()
        versions = bytes((API_MAJOR, API_MINOR, BUILD_ID))
        message = _MEASURED + versions + self._launch.policy.to_bytes(4, "little") + digest + self._nonce
        return hmac.digest(self._integrity_key, message, "sha256") + self._nonce


class SnpGuest(Platform):
    """A guest of the third generation: measured too, but only the guest itself can ask for the report."""

    commands = Platform.commands | {"query-sev"}

    def __init__(self, identity: bytes, launch: Launch) -> None:
        super().__init__(identity)
        self._launch = launch
        self._running = False

    def answer(self, command: str) -> dict[str, Any]:
        if command != "query-sev":
            return super().answer(command)
        return _value(
            {
                "enabled": True,
                "api-major": API_MAJOR,
                "api-minor": API_MINOR,
                "build-id": BUILD_ID,
                "state": "running" if self._running else "launch-update",
                "sev-type": "sev-snp",
                "snp-policy": self._launch.policy,
            }
        )

    def observe(self, command: str) -> None:
        self._running = self._running or command == "cont"


def host(identity: bytes, capacity: dict[str, int]) -> Platform:
    """The firmware's side of a QEMU that launches nothing."""
    return Platform(identity) if any(capacity.values()) else Absent(identity)


def guest(identity: bytes, launch: Launch, handle: int) -> Platform:
    """The firmware's side of a guest that has been launched."""
    if launch.kind == "sev-snp-guest":
        return SnpGuest(identity, launch)
    return SevGuest(identity, launch, handle)


def _content(path: str) -> bytes:
    return Path(path).read_bytes() if path else b""


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _value(value: dict[str, Any]) -> dict[str, Any]:
    return {"return": value}
