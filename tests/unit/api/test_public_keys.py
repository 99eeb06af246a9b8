import base64
import re
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.api.faults import BadRequest
from sev_agent.api.public_keys import MAX_LENGTH, read_public_key

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"

FINGERPRINT = "65:96:2d:fc:e8:d5:a9:11:64:0c:0f:ea:00:6e:5b:bd"


def line(kind: str, *parts: bytes) -> str:
    blob = b"".join(struct.pack(">I", len(part)) + part for part in (kind.encode(), *parts))
    return f"{kind} {base64.b64encode(blob).decode()}"


def refusal(text: str) -> str:
    with pytest.raises(BadRequest) as caught:
        read_public_key(text)
    assert caught.value.field == "keypair.public_key"
    assert caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize(
    "private",
    [
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        rsa.generate_private_key(65537, 3072),
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
    ],
    ids=lambda key: f"{type(key).__name__}-{getattr(key, 'key_size', '')}",
)
def test_keys_of_openssh(private: Any) -> None:
    """Keys of every kind that OpenSSH makes are taken, with the comment that follows them."""
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert read_public_key(f"{public} größe by nobody\n").text == f"{public} größe by nobody"


def test_fingerprint() -> None:
    """The fingerprint is the one that 'ssh-keygen -l -E md5' tells."""
    assert read_public_key(ED25519).fingerprint == FINGERPRINT


def test_security_keys() -> None:
    """Keys of hardware tokens are taken."""
    read_public_key(line("sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:"))
    read_public_key(line("sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", b"\x04" + bytes(64), b"ssh:"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not of the kind"),
        ("ssh-ed25519", "not of the kind"),
        ("ssh-ed25519 ???", "not base64"),
        ("ssh-ed25519 größe", "not base64"),
        (ED25519.replace("ssh-ed25519", "ssh-rsa"), "not of the kind 'ssh-rsa'"),
        (ED25519[:-8], "not of the kind"),
        (f"{ED25519}\n{ED25519}", "not one line"),
        (f"{ED25519} \x1b[2J", "not one line"),
        (f"{ED25519} {'x' * MAX_LENGTH}", f"over {MAX_LENGTH} characters"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "not base64"),
        (line("ssh-dss", b"p", b"q", b"g", b"y"), "no kind of key that is accepted"),
        (line("ssh-ed25519", bytes(31)), "no ssh-ed25519 key of a usable size"),
        (line("ssh-ed25519", bytes(32), b"more"), "no kind of key that is accepted"),
        (line("ssh-rsa", b"\x03", b"\x7f" + bytes(60)), "of a usable size"),
        (line("ssh-rsa", b"\x01", b"\x7f" + bytes(255)), "of a usable size"),
        (line("ssh-rsa", b"\x03", b"\x7f" + bytes(2048)), "of a usable size"),
        (line("ecdsa-sha2-nistp256", b"nistp384", b"\x04" + bytes(96)), "of a usable size"),
        (line("ecdsa-sha2-nistp256", b"nistp256", b"\x02" + bytes(64)), "of a usable size"),
    ],
)
def test_no_key(text: str, why: str) -> None:
    """What is no public key is refused with the reason."""
    assert re.search(re.escape(why), refusal(text))


@given(st.text() | st.binary().map(lambda blob: f"ssh-rsa {base64.b64encode(blob).decode()}"))
def test_any_text(text: str) -> None:
    """Whatever is sent is a key or is refused."""
    with pytest.raises(BadRequest):
        read_public_key(text)
