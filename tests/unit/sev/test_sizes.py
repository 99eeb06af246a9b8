import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.sev.refusals import FlavorTooSmall, ImageTooLarge, RequestRefused
from sev_agent.sev.rules import RULES, encryption_request, judge
from sev_agent.sev.sizes import GIB, Sizes, check_sizes, judge_sizes

FLAVOR = {"hw:mem_encryption": "true"}
IMAGE = {"hw_mem_encryption": "true", "hw_firmware_type": "uefi"}


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(ram=512, disk=1),
        Sizes(ram=512, disk=1, min_ram=512, min_disk=1, virtual_size=GIB),
        Sizes(ram=512, disk=1, virtual_size=0),
    ],
)
def test_enough(sizes: Sizes) -> None:
    """As much as the image demands is enough; what it does not say is no demand."""
    check_sizes(sizes)


@pytest.mark.parametrize(
    ("sizes", "kind", "text"),
    [
        (
            Sizes(ram=512, disk=1, min_ram=513),
            FlavorTooSmall,
            (
                "flavor.ram: flavor property 'ram' is 512 MiB, but must be at least 513 MiB:"
                " the image's 'min_ram' demands it (use a flavor with RAM of at least 513 MiB, or lower the demand:"
                " openstack image set --min-ram 512 IMAGE)"
            ),
        ),
        (
            Sizes(ram=512, disk=1, min_disk=2),
            FlavorTooSmall,
            (
                "flavor.disk: flavor property 'disk' is 1 GiB, but must be at least 2 GiB:"
                " the image's 'min_disk' demands it (use a flavor with a disk of at least 2 GiB, or lower the demand:"
                " openstack image set --min-disk 1 IMAGE)"
            ),
        ),
        (
            Sizes(ram=512, disk=1, virtual_size=GIB + 1),
            ImageTooLarge,
            (
                "flavor.disk: flavor property 'disk' is 1 GiB, but must be at least 2 GiB: the image has a virtual size"
                " of 1073741825 bytes (use a flavor with a disk of at least 2 GiB)"
            ),
        ),
    ],
)
def test_too_small(sizes: Sizes, kind: type[RequestRefused], text: str) -> None:
    """A size that is too small is refused by its name, with both numbers, who demands it, and what to use."""
    with pytest.raises(RequestRefused) as caught:
        encryption_request(FLAVOR, IMAGE, sizes)
    assert type(caught.value) is kind
    assert str(caught.value) == text


def test_sizes_in_the_table() -> None:
    """Sizes have their lines after those of the properties, and only where they are given."""
    properties, all_ = judge(FLAVOR, IMAGE), judge(FLAVOR, IMAGE, Sizes(ram=64, disk=1, min_ram=128))
    assert len(properties) == len(RULES)
    assert all_[: len(RULES)] == properties
    assert [(verdict.name, verdict.ok) for verdict in all_[len(RULES) :]] == [
        ("RAM", False),
        ("disk", True),
        ("disk holds the image", True),
    ]


_sizes = st.integers(0, 2**50)


@given(st.builds(Sizes, ram=_sizes, disk=_sizes, min_ram=_sizes, min_disk=_sizes, virtual_size=st.none() | _sizes))
def test_remedies_help(sizes: Sizes) -> None:
    """A flavor enlarged to what every refusal says is accepted."""
    for verdict in judge_sizes(sizes):
        least = int(verdict.expected.split()[2])
        larger = {"ram": sizes.ram, "disk": sizes.disk}
        larger[verdict.property_name] = max(least, larger[verdict.property_name])
        sizes = Sizes(**larger, min_ram=sizes.min_ram, min_disk=sizes.min_disk, virtual_size=sizes.virtual_size)
    check_sizes(sizes)
