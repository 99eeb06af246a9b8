"""The secure processor's answers: what the monitor is told of the platform, and of a guest that was launched.

After AMD's "Secure Encrypted Virtualization API" (document 55766), chapters 2, 3 and 6, its "SEV Secure Nested Paging
Firmware ABI" (document 56860), and the types in QEMU's ``qapi/misc-i386.json``.
"""

import base64
import hashlib
import hmac
import os
from pathlib import Path
from typing import Any, ClassVar

from .command_line import Launch
from .failures import LaunchError
from .kind import Kind
from .launch import API_MAJOR, API_MINOR, C_BIT_POSITION, check_run

BUILD_ID = 21
REDUCED_PHYSICAL_BITS = 1

_MEASURED = b"\x04"

_CERTIFICATE_SIZE = 2084
_CERTIFICATE_ALGORITHM = 0x0102
_PDH, _PEK, _OCA, _CEK = 0x1003, 0x1002, 0x1001, 0x1004


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
        """Take note of a command that QEMU itself carries out. Raises ``LaunchError`` where QEMU would end over it."""

    def _certificate(self, usage: int) -> bytes:
        """A certificate's frame (appendix C of the document) around bytes that are no key: simulated."""
        head = (1).to_bytes(4, "little") + bytes((API_MAJOR, API_MINOR, 0, 0))
        head += usage.to_bytes(4, "little") + _CERTIFICATE_ALGORITHM.to_bytes(4, "little")
        filler = hashlib.shake_256(self._identity + usage.to_bytes(4, "little"))
        return head + filler.digest(_CERTIFICATE_SIZE - len(head))


class Absent(Platform):
    """The monitor of a QEMU on a host without SEV: the real QEMU itself says that there is none."""

    commands = frozenset()


class Guest(Platform):
    """What all generations have: a guest that was launched, and has not run yet.

    ``late`` is a failure that shows when its virtual CPUs first run: QEMU finishes the launch then.
    """

    commands = Platform.commands | {"query-sev"}
    unfinished: ClassVar[str]
    """QEMU's name of the state that the guest is in until then."""

    def __init__(self, identity: bytes, launch: Launch, *, late: LaunchError | None = None) -> None:
        super().__init__(identity)
        self._launch = launch
        self._late = late
        self._running = False

    def answer(self, command: str) -> dict[str, Any]:
        return _value(self._status()) if command == "query-sev" else super().answer(command)

    def observe(self, command: str) -> None:
        # libvirt starts every guest paused.
        if command != "cont" or self._running:
            return
        check_run(self._launch)
        if self._late is not None:
            raise self._late
        self._running = True

    def _status(self) -> dict[str, Any]:
        return {
            "enabled": True,
            "api-major": API_MAJOR,
            "api-minor": API_MINOR,
            "build-id": BUILD_ID,
            "state": "running" if self._running else self.unfinished,
        }


class SevGuest(Guest):
    """A guest of the first two generations, measured by the firmware and then run."""

    commands = Guest.commands | {"query-sev-launch-measure"}
    unfinished = "launch-secret"

    def __init__(self, identity: bytes, launch: Launch, handle: int, *, late: LaunchError | None = None) -> None:
        super().__init__(identity, launch, late=late)
        self._handle = handle
        self._integrity_key = os.urandom(16)
        self._nonce = os.urandom(16)

    def answer(self, command: str) -> dict[str, Any]:
        if command == "query-sev-launch-measure":
            return _value({"data": _text(self._measurement())})
        return super().answer(command)

    def _status(self) -> dict[str, Any]:
        return {**super()._status(), "sev-type": "sev", "policy": self._launch.policy, "handle": self._handle}

    def _measurement(self) -> bytes:
        """LAUNCH_MEASURE (chapter 6.5): an HMAC over the launch, then its nonce; 48 bytes.

        The integrity key is random here, where a guest owner's session would bring it; nobody can check it.
        """
        digest = hashlib.sha256(_content(self._launch.firmware)).digest()
        versions = bytes((API_MAJOR, API_MINOR, BUILD_ID))
        message = _MEASURED + versions + self._launch.policy.to_bytes(4, "little") + digest + self._nonce
        return hmac.digest(self._integrity_key, message, "sha256") + self._nonce


class SnpGuest(Guest):
    """A guest of the third generation: measured too, but only the guest itself can ask for the report.

    So its monitor answers no question about the measurement, and QEMU says that it is not available.
    """

    unfinished = "launch-update"

    def _status(self) -> dict[str, Any]:
        return {**super()._status(), "sev-type": "sev-snp", "snp-policy": self._launch.policy}


def host(identity: bytes, kind: Kind) -> Platform:
    """The firmware's side of a QEMU that launches nothing."""
    return Absent(identity) if kind is Kind.NONE else Platform(identity)


def guest(identity: bytes, launch: Launch, handle: int, *, late: LaunchError | None = None) -> Platform:
    """The firmware's side of a guest that has been launched."""
    if launch.is_snp:
        return SnpGuest(identity, launch, late=late)
    return SevGuest(identity, launch, handle, late=late)


def _content(path: str) -> bytes:
    return Path(path).read_bytes() if path else b""


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _value(value: dict[str, Any]) -> dict[str, Any]:
    return {"return": value}
