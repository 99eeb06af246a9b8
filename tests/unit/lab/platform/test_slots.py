import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sev_agent.lab.platform.emulator.slots import NoSlotError, Slots

# Takes a slot and becomes another program that knows nothing of it, as the shim becomes QEMU.
HOLDER = """
import os, sys
from pathlib import Path
from sev_agent.lab.platform.emulator.slots import Slots
slots = Slots(Path(sys.argv[1]), {"sev": 2}, Path(sys.argv[1]))
descriptor, _ = slots.take("sev", {"name": "guest"})
os.set_inheritable(descriptor, True)
print("held", flush=True)
os.execv("/bin/sleep", ["sleep", "60"])
"""


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path, {"sev": 2}, tmp_path)


def test_there_are_so_many_and_no_more(slots: Slots) -> None:
    """Taking more than there are fails; giving one back makes room again."""
    first, _ = slots.take("sev", {})
    second, _ = slots.take("sev", {})
    with pytest.raises(NoSlotError):
        slots.take("sev", {})
    os.close(first)
    third, _ = slots.take("sev", {})
    os.close(second)
    os.close(third)


def test_handles_are_never_given_twice(slots: Slots) -> None:
    """Each launch has another handle, also in a slot that was used before."""
    handles = set()
    for _ in range(3):
        descriptor, handle = slots.take("sev", {})
        os.close(descriptor)
        handles.add(handle)
    assert handles == {1, 2, 3}


def test_a_pool_without_room_gives_nothing(slots: Slots) -> None:
    """A host without SEV-ES has no slot for it."""
    with pytest.raises(NoSlotError):
        slots.take("sev_es", {})


def test_pools_are_apart(tmp_path: Path) -> None:
    """A full pool leaves the other's slots free."""
    slots = Slots(tmp_path, {"sev": 1, "sev_es": 1}, tmp_path)
    held = [slots.take(pool, {})[0] for pool in ("sev", "sev_es")]
    assert (slots.used("sev"), slots.used("sev_es")) == (1, 1)
    for descriptor in held:
        os.close(descriptor)


def test_a_killed_guest_frees_its_slot(slots: Slots, tmp_path: Path) -> None:
    """A slot is held by the program that the holder became, and is free when that is killed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert slots.used("sev") == 1
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert slots.used("sev") == 0


def test_shows_what_the_kernel_shows(slots: Slots, tmp_path: Path) -> None:
    """``misc.capacity`` and ``misc.current`` have the kernel's form, and count what is held."""
    descriptor, _ = slots.take("sev", {})
    assert (tmp_path / "misc.capacity").read_text() == "sev 2\nsev_es 0\n"
    assert (tmp_path / "misc.current").read_text() == "sev 1\nsev_es 0\n"
    os.close(descriptor)
    slots.show()
    assert (tmp_path / "misc.current").read_text() == "sev 0\nsev_es 0\n"


def test_counting_never_hides_a_free_slot(slots: Slots) -> None:
    """While others count, whoever may have a slot gets it."""
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            slots.used("sev")

    counting = [threading.Thread(target=count) for _ in range(2)]
    for thread in counting:
        thread.start()
    try:
        for _ in range(100):
            held = [slots.take("sev", {})[0] for _ in range(2)]
            for descriptor in held:
                os.close(descriptor)
    finally:
        stop.set()
        for thread in counting:
            thread.join()
