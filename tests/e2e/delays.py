"""How long things took that a busy machine delays: printed at the end of the run, where a limit would lie."""

import pytest

FOLLOWED = pytest.StashKey[list[float]]()
"""Seconds from each of libvirt's events to the usage that Placement counts."""


def line(seconds: list[float]) -> str:
    """``seconds`` as the run's summary has them."""
    took = " ".join(f"{each:.3f}" for each in sorted(seconds))
    return f"usage in Placement followed libvirt's events after {took} s"
