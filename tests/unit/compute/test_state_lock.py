"""Two daemons with one state directory."""

import subprocess
import sys
from pathlib import Path

import pytest

from sev_agent.compute.state_lock import StateLock
from sev_agent.errors import HostTaken

_HOLDER = """
import sys
from pathlib import Path
from sev_agent.compute.state_lock import StateLock
StateLock(Path(sys.argv[1]), "host-1").take()
print("held", flush=True)
sys.stdin.read()
"""


def test_one_holder_until_it_dies(tmp_path: Path) -> None:
    """A second daemon is refused with the holder's name and process; after SIGKILL of the holder it gets the lock."""
    state_dir = tmp_path / "state"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HostTaken, match=f"host host-1, process {holder.pid} ") as refused:
            StateLock(state_dir, "host-2").take()
        assert refused.value.field == "host.state_dir"
        holder.kill()
    StateLock(state_dir, "host-2").take()


def test_unusable_directory(tmp_path: Path) -> None:
    """A state directory that is a file is an error of the disk, not of another daemon."""
    (tmp_path / "state").write_text("")
    with pytest.raises(FileExistsError):
        StateLock(tmp_path / "state", "host-1").take()
