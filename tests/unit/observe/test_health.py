"""What the daemon leans on, and whether it can."""

import pytest

from sev_agent.observe.health import OF_A_HOST, Dependency, Health


def test_at_start() -> None:
    """Before anything is connected nothing is ready, and each dependency says why."""
    health = Health()

    assert not health.is_ready
    assert health.summary == (
        "not ready: libvirt: not connected yet; broker: not connected yet; placement: not connected yet;"
        " work_queue: not connected yet; keystone: not connected yet; glance: not connected yet"
    )


def test_ready() -> None:
    """With all of them up it is ready, without any one it is not."""
    health = Health()
    for dependency in OF_A_HOST:
        health.up(dependency)
    assert health.is_ready
    assert health.summary == "ready"

    health.down(Dependency.BROKER, "connection\nlost")

    assert not health.is_ready
    assert health.summary == "not ready: broker: connection lost"


def test_changes_are_told_once() -> None:
    """A change, also of the reason alone, is told; what stays as it is, is not."""
    told: list[str] = []
    health = Health(on_change=lambda: told.append(health.conditions[Dependency.LIBVIRT].reason))

    assert health.down(Dependency.LIBVIRT, "gone")
    assert not health.down(Dependency.LIBVIRT, "gone")
    assert health.down(Dependency.LIBVIRT, "refused")
    health.up(Dependency.LIBVIRT)
    health.up(Dependency.LIBVIRT)

    assert told == ["gone", "refused", ""]


def test_noted() -> None:
    """What has a fault is down for it, and what has none is up."""
    health = Health((Dependency.LIBVIRT,))
    health.note(Dependency.LIBVIRT, OSError("gone"))
    assert health.summary == "not ready: libvirt: gone"

    health.note(Dependency.LIBVIRT, None)
    assert health.is_ready


def test_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since when is the time of the change between up and down, not that of the reason."""
    now = 100.0
    monkeypatch.setattr("sev_agent.observe.health.time.time", lambda: now)
    health = Health()
    now = 200.0
    health.down(Dependency.LIBVIRT, "refused")
    assert health.conditions[Dependency.LIBVIRT].since == 100.0
    now = 300.0
    health.up(Dependency.LIBVIRT)
    assert health.conditions[Dependency.LIBVIRT].since == 300.0
