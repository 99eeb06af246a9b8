"""The flavor's RAM and disk against what the image demands. Nova's rules (``_validate_flavor_image``)."""

import math
from dataclasses import dataclass
from typing import Final

from sev_agent.sev.refusals import FlavorTooSmall, ImageTooLarge, RequestRefused, Subject
from sev_agent.sev.verdict import Verdict

GIB: Final = 1024**3

RAM: Final = "ram"
DISK: Final = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a flavor gives and an image demands.

    ``ram`` and ``min_ram`` are MiB, ``disk`` and ``min_disk`` GiB; ``virtual_size`` is bytes, none or 0 where it is not
    known.
    """

    ram: int
    disk: int
    min_ram: int = 0
    min_disk: int = 0
    virtual_size: int | None = None


def check_sizes(sizes: Sizes) -> None:
    """Raises the refusal of the first size that is too small: ``FlavorTooSmall``, ``ImageTooLarge``."""
    for verdict in judge_sizes(sizes):
        if verdict.refusal is not None:
            raise verdict.refusal


def judge_sizes(sizes: Sizes) -> tuple[Verdict, ...]:
    """The verdict of every rule on sizes, in the order in which one would mend them."""
    return (_ram(sizes), _disk(sizes), _virtual_size(sizes))


def _ram(sizes: Sizes) -> Verdict:
    expected, found = f"at least {sizes.min_ram} MiB", f"{sizes.ram} MiB"
    refusal = FlavorTooSmall(
        Subject.FLAVOR,
        RAM,
        expected=expected,
        found=found,
        reason="the image's 'min_ram' demands it",
        remedy=f"use a flavor with RAM of at least {sizes.min_ram} MiB,"
        f" or lower the demand: openstack image set --min-ram {sizes.ram} IMAGE",
        field="flavor.ram",
    )
    return _verdict("RAM", RAM, expected, found, refusal if sizes.ram < sizes.min_ram else None)


def _disk(sizes: Sizes) -> Verdict:
    expected, found = f"at least {sizes.min_disk} GiB", f"{sizes.disk} GiB"
    refusal = FlavorTooSmall(
        Subject.FLAVOR,
        DISK,
        expected=expected,
        found=found,
        reason="the image's 'min_disk' demands it",
        remedy=f"use a flavor with a disk of at least {sizes.min_disk} GiB,"
        f" or lower the demand: openstack image set --min-disk {sizes.disk} IMAGE",
        field="flavor.disk",
    )
    return _verdict("disk", DISK, expected, found, refusal if sizes.disk < sizes.min_disk else None)


def _virtual_size(sizes: Sizes) -> Verdict:
    size = sizes.virtual_size or 0
    least = math.ceil(size / GIB)
    expected, found = f"at least {least} GiB", f"{sizes.disk} GiB"
    refusal = ImageTooLarge(
        Subject.FLAVOR,
        DISK,
        expected=expected,
        found=found,
        reason=f"the image has a virtual size of {size} bytes",
        remedy=f"use a flavor with a disk of at least {least} GiB",
        field="flavor.disk",
    )
    return _verdict("disk holds the image", DISK, expected, found, refusal if size > sizes.disk * GIB else None)


def _verdict(name: str, property_name: str, expected: str, found: str, refusal: RequestRefused | None) -> Verdict:
    return Verdict(
        name=name,
        subject=Subject.FLAVOR,
        property_name=property_name,
        expected=expected,
        found=found,
        refusal=refusal,
    )
