import base64

import pytest

from sev_agent.sev.generation import Generation
from sev_agent.sev.launch_options import SIZES, LaunchOptions, read_launch_options
from sev_agent.sev.policy import default_policy
from sev_agent.sev.refusals import RequestRefused

SNP = Generation.SEV_SNP


def data(size: int) -> str:
    return base64.b64encode(bytes(size)).decode()


def id_block(policy: int = 0x30000, version: int = 1) -> str:
    """An identity block: 80 bytes of digest and names, version, security version, policy (AMD 56860)."""
    fields = version.to_bytes(4, "little") + (7).to_bytes(4, "little") + policy.to_bytes(8, "little")
    return base64.b64encode(bytes(80) + fields).decode()


def read(properties: dict[str, str], generation: Generation = SNP) -> LaunchOptions:
    return read_launch_options(properties, generation, default_policy(generation))


ALL = {
    "hw_snp_id_block": id_block(),
    "hw_snp_id_auth": data(4096),
    "hw_snp_host_data": data(32),
    "hw_snp_guest_visible_workarounds": data(16),
    "hw_snp_author_key": "true",
    "hw_snp_vcek": "false",
    "hw_mem_encryption_kernel_hashes": "yes",
    "kernel_id": "k",
}


def test_everything() -> None:
    """What an image says is what libvirt is told."""
    assert read(ALL) == LaunchOptions(
        kernel_hashes=True,
        id_block=id_block(),
        id_auth=data(4096),
        host_data=data(32),
        guest_visible_workarounds=data(16),
        author_key=True,
        vcek=False,
    )


def test_nothing() -> None:
    """An image that says nothing leaves everything to libvirt and the firmware."""
    assert read({}) == read({}, Generation.SEV) == LaunchOptions()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("wrong", [-1, 1])
def test_lengths(name: str, wrong: int) -> None:
    """Data of a wrong length is refused, naming its property and both lengths."""
    size = SIZES[name]

    with pytest.raises(RequestRefused, match=f"base64 of {size + wrong} bytes, but must be base64 of {size}") as caught:
        read(ALL | {name: data(size + wrong)})
    assert caught.value.field == f"image.properties.{name}"


@pytest.mark.parametrize("text", ["!", "AAA", "A\nAA", " ", "\u00e9"])
def test_not_base64(text: str) -> None:
    """Data that is not base64 is refused."""
    with pytest.raises(RequestRefused, match="not base64"):
        read(ALL | {"hw_snp_host_data": text})


@pytest.mark.parametrize(
    ("changes", "culprit", "why"),
    [
        ({"hw_snp_id_auth": None, "hw_snp_author_key": None}, "hw_snp_id_auth", "needs its signature"),
        ({"hw_snp_id_block": None}, "hw_snp_id_block", "is of an identity block"),
        ({"hw_snp_id_block": None, "hw_snp_id_auth": None}, "hw_snp_author_key", "is part of"),
        ({"hw_snp_id_block": id_block(0xB0000)}, "hw_snp_id_block", "made for policy 0xb0000"),
        ({"hw_snp_id_block": id_block(version=2)}, "hw_snp_id_block", "of version 2"),
        ({"kernel_id": None}, "hw_mem_encryption_kernel_hashes", "no kernel to hash"),
        ({"hw_snp_vcek": "maybe"}, "hw_snp_vcek", "boolean"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, str | None], culprit: str, why: str) -> None:
    """What the firmware would refuse at the launch is refused before it, naming the property."""
    properties = {name: value for name, value in (ALL | changes).items() if value is not None}

    with pytest.raises(RequestRefused, match=why) as caught:
        read(properties)
    assert caught.value.name == culprit
    assert caught.value.remedy


@pytest.mark.parametrize("generation", [Generation.SEV, Generation.SEV_ES])
def test_of_another_generation(generation: Generation) -> None:
    """Hashes of the kernel are for all generations, the rest for SEV-SNP alone."""
    assert read({"hw_mem_encryption_kernel_hashes": "true", "kernel_id": "k"}, generation).kernel_hashes
    with pytest.raises(RequestRefused, match="only amd-sev-snp has it"):
        read({"hw_snp_host_data": data(32)}, generation)
