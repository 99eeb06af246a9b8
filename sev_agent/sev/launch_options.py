"""What an image brings to the launch of its guest, beside the policy: who signed it, and what is measured.

Sources: AMD 56860 (SEV-SNP Firmware ABI), "SNP_LAUNCH_FINISH" and "ID Block Structure"; lengths as libvirt and QEMU
check them. All data is base64.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sev_agent.sev.booleans import read_boolean
from sev_agent.sev.generation import Generation
from sev_agent.sev.policy import Policy
from sev_agent.sev.refusals import LaunchOptionInvalid, Subject

KERNEL_HASHES = "hw_mem_encryption_kernel_hashes"
ID_BLOCK = "hw_snp_id_block"
ID_AUTH = "hw_snp_id_auth"
HOST_DATA = "hw_snp_host_data"
WORKAROUNDS = "hw_snp_guest_visible_workarounds"
AUTHOR_KEY = "hw_snp_author_key"
VCEK = "hw_snp_vcek"
KERNEL = "kernel_id"

SIZES: Final = {ID_BLOCK: 96, ID_AUTH: 4096, HOST_DATA: 32, WORKAROUNDS: 16}
"""Bytes that each piece of data has, no more and no less."""

_SNP_ONLY: Final = (*SIZES, AUTHOR_KEY, VCEK)
_ID_BLOCK_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """The launch's optional data, base64 as libvirt takes it.

    ``vcek`` says whether the chip's own key may sign reports; ``None`` leaves it to the firmware's default.
    """

    kernel_hashes: bool = False
    id_block: str | None = None
    id_auth: str | None = None
    host_data: str | None = None
    guest_visible_workarounds: str | None = None
    author_key: bool = False
    vcek: bool | None = None


def read_launch_options(properties: Mapping[str, str], generation: Generation, policy: Policy) -> LaunchOptions:
    """Raises ``LaunchOptionInvalid`` (or ``NotABoolean``) at the first property that cannot be used so."""
    if generation is not Generation.SEV_SNP:
        for name in _SNP_ONLY:
            if name in properties:
                raise _refused(name, "not set", "set", f"only {Generation.SEV_SNP} has it", remove=True)
    data = {name: _data(properties, name, size) for name, size in SIZES.items()}
    options = LaunchOptions(
        kernel_hashes=_is_on(properties, KERNEL_HASHES),
        id_block=_text(data[ID_BLOCK]),
        id_auth=_text(data[ID_AUTH]),
        host_data=_text(data[HOST_DATA]),
        guest_visible_workarounds=_text(data[WORKAROUNDS]),
        author_key=_is_on(properties, AUTHOR_KEY),
        vcek=read_boolean(Subject.IMAGE, properties, VCEK),
    )
    _check_kernel(options, properties)
    _check_identity(options, data[ID_BLOCK], policy)
    return options


def _check_kernel(options: LaunchOptions, properties: Mapping[str, str]) -> None:
    """Hashes are defined by libvirt also without a kernel; the guest's firmware then finds nothing to compare with."""
    if options.kernel_hashes and not properties.get(KERNEL):
        raise _refused(KERNEL_HASHES, "false or not set", "true", f"there is no kernel to hash: '{KERNEL}' is not set")


def _check_identity(options: LaunchOptions, block: bytes | None, policy: Policy) -> None:
    """The firmware takes an identity only with its signature, for the guest's own policy."""
    if options.id_block is not None and options.id_auth is None:
        raise _refused(ID_AUTH, f"set beside '{ID_BLOCK}'", "not set", "the identity block needs its signature")
    if options.id_auth is not None and options.id_block is None:
        raise _refused(ID_BLOCK, f"set beside '{ID_AUTH}'", "not set", "the signature is of an identity block")
    if options.author_key and options.id_auth is None:
        raise _refused(AUTHOR_KEY, "false or not set", "true", f"the author's key is part of '{ID_AUTH}'", remove=True)
    if block is None:
        return
    version, signed = int.from_bytes(block[80:84], "little"), int.from_bytes(block[88:96], "little")
    if version != _ID_BLOCK_VERSION:
        raise _refused(ID_BLOCK, f"of version {_ID_BLOCK_VERSION}", f"of version {version}", None)
    if signed != int(policy):
        raise _refused(
            ID_BLOCK,
            f"made for the guest's policy, {policy}",
            f"made for policy {signed:#07x}",
            "the firmware refuses an identity that was signed for another policy",
        )


def _data(properties: Mapping[str, str], name: str, size: int) -> bytes | None:
    value = properties.get(name)
    if value is None:
        return None
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(name, f"base64 of {size} bytes", "not base64", str(error)) from None
    if len(data) != size:
        raise _refused(name, f"base64 of {size} bytes", f"base64 of {len(data)} bytes", None)
    return data


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _is_on(properties: Mapping[str, str], name: str) -> bool:
    return bool(read_boolean(Subject.IMAGE, properties, name))


def _refused(name: str, expected: str, found: str, reason: str | None, *, remove: bool = False) -> LaunchOptionInvalid:
    remedy = Subject.IMAGE.unset_command(name) if remove else f"set '{name}' on the image anew, or remove it"
    return LaunchOptionInvalid(Subject.IMAGE, name, expected=expected, found=found, remedy=remedy, reason=reason)
