"""How the fleet is shown."""

from sev_agent.cli import output
from sev_agent.cli.hosts import document, table
from sev_agent.scheduler.fleet import HostView, SlotPool
from sev_agent.sev.generation import Generation

FULL = HostView(
    name="node1",
    is_sev=True,
    enabled=True,
    alive=True,
    slots={Generation.SEV: SlotPool(used=15, limit=15)},
    ram_free_mb=2048,
    vcpus_free=3,
    disk_free_gb=40,
)
BOTH = HostView(
    name="node2",
    is_sev=True,
    enabled=False,
    alive=False,
    slots={Generation.SEV: SlotPool(used=1, limit=15), Generation.SEV_ES: SlotPool(used=2, limit=4)},
    ram_free_mb=1,
    vcpus_free=0,
    disk_free_gb=0,
)
PLAIN = HostView(
    name="node3", is_sev=False, enabled=True, alive=False, slots={}, ram_free_mb=9, vcpus_free=9, disk_free_gb=9
)


def test_document() -> None:
    """JSON has the method's own number, the limit, and each generation's pool."""
    shown = document(BOTH)
    assert (shown["host"], shown["node_type"], shown["alive"], shown["enabled"]) == ("node2", "sev", False, False)
    assert (shown["mem_encryption_used_num"], shown["limit"]) == (3, 19)
    assert shown["generations"] == {"amd-sev": {"used": 1, "limit": 15}, "amd-sev-es": {"used": 2, "limit": 4}}
    assert document(PLAIN)["node_type"] is None


def test_table() -> None:
    """Each host has its line; a host that is dead, disabled or no place for encrypted guests is told apart."""
    screen = output.screen()
    with screen.capture() as captured:
        screen.print(table([FULL, BOTH, PLAIN]))
    heading, full, both, plain = captured.get().splitlines()
    assert "mem_encryption_used_num" in heading
    assert full.split() == ["node1", "sev", "yes", "amd-sev", "15", "15", "2048", "MiB", "3"]
    assert "no, disabled" in both
    assert "amd-sev 1/15, amd-sev-es 2/4" in both
    assert plain.split() == ["node3", "-", "no", "-", "0", "0", "9", "MiB", "9"]
