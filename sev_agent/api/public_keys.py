"""Public keys for SSH, as OpenSSH writes them: is it one, of which kind, and what is its fingerprint? Pure.

The form of each kind: RFC 4253 section 6.6, RFC 5656 section 3.1, RFC 8709 section 4, OpenSSH's PROTOCOL.u2f.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from sev_agent.api.faults import BadRequest

MAX_LENGTH: Final = 4096
"""Characters of a key on its line; RSA's largest has under 3,000."""

_FIELD: Final = "keypair.public_key"
_REMEDY: Final = "send the one line of a file such as ~/.ssh/id_ed25519.pub"
_ED25519_BYTES: Final = 32
_RSA_BITS: Final = range(1024, 16384 + 1)
_POINT_BYTES: Final = {"nistp256": 65, "nistp384": 97, "nistp521": 133}
_UNCOMPRESSED: Final = b"\x04"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """``text`` is the key on one line, without line ends; ``fingerprint`` is MD5's, as the compute API shows it."""

    text: str
    fingerprint: str


def read_public_key(text: str) -> PublicKey:
    """Raises ``BadRequest`` that says why it is no public key that OpenSSH would take."""
    line = text.strip()
    if len(line) > MAX_LENGTH:
        raise _invalid(f"it has over {MAX_LENGTH} characters")
    if not line.isprintable():
        raise _invalid("it is not one line of text")
    kind, _, rest = line.partition(" ")
    encoded = rest.lstrip().partition(" ")[0]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("its second word is not base64") from None
    parts = _parts(blob)
    if not parts or parts[0] != kind.encode():
        raise _invalid(f"its content is not of the kind {kind[:40]!r} that it begins with")
    _check(kind, parts[1:])
    digest = hashlib.md5(blob, usedforsecurity=False).hexdigest()
    return PublicKey(text=line, fingerprint=":".join(digest[i : i + 2] for i in range(0, len(digest), 2)))


def _parts(blob: bytes) -> list[bytes]:
    """The length-prefixed strings of which ``blob`` consists; none where it does not."""
    parts = []
    while blob:
        size, rest = int.from_bytes(blob[:4]), blob[4:]
        if len(blob) < 4 or size > len(rest):
            return []
        parts.append(rest[:size])
        blob = rest[size:]
    return parts


def _check(kind: str, parts: list[bytes]) -> None:
    match kind, parts:
        case "ssh-ed25519", [key]:
            is_good = len(key) == _ED25519_BYTES
        case "sk-ssh-ed25519@openssh.com", [key, _]:
            is_good = len(key) == _ED25519_BYTES
        case "ssh-rsa", [exponent, modulus]:
            bits = int.from_bytes(modulus).bit_length()
            is_good = int.from_bytes(exponent) > 2 and bits in _RSA_BITS
        case (("ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" | "ecdsa-sha2-nistp521"), [curve, point]):
            is_good = kind.endswith(curve.decode(errors="replace")) and _is_point(curve, point)
        case "sk-ecdsa-sha2-nistp256@openssh.com", [b"nistp256" as curve, point, _]:
            is_good = _is_point(curve, point)
        case _:
            raise _invalid(f"{kind[:40]!r} is no kind of key that is accepted")
    if not is_good:
        raise _invalid(f"its content is no {kind} key of a usable size")


def _is_point(curve: bytes, point: bytes) -> bool:
    return len(point) == _POINT_BYTES.get(curve.decode(errors="replace")) and point.startswith(_UNCOMPRESSED)


def _invalid(why: str) -> BadRequest:
    return BadRequest(f"Keypair data is invalid: {why}", field=_FIELD, remedy=_REMEDY)
