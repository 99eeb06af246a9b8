"""The named places where a test can have the daemon die: all are in the code, and none does anything unasked."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sev_agent
from sev_agent import crash_points
from sev_agent.config import ConfigurationError, load
from sev_agent.crash_points import VARIABLE, CrashPoint

_PACKAGE = Path(sev_agent.__file__).parent
_SECONDS = 30.0

_PASSES = """
import sys
from sev_agent.crash_points import CrashPoint, reached
for _ in range(int(sys.argv[1])):
    for point in CrashPoint:
        reached(point)
    print(flush=True)
"""


def _passes(times: int, armed: str | None) -> subprocess.CompletedProcess[str]:
    """A process that passes every point so many times, a line each time."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", _PASSES, str(times)],
        env=environment | ({VARIABLE: armed} if armed is not None else {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )


def test_every_point_is_in_the_code() -> None:
    """No point is only a name: each stands at one place of the code or more, outside of its own module."""
    code = "".join(path.read_text() for path in _PACKAGE.rglob("*.py") if path.name != "crash_points.py")

    assert set(re.findall(r"\bCrashPoint\.([A-Z_]+)\b", code)) == {point.name for point in CrashPoint}


@pytest.mark.parametrize("unset", [None, ""])
def test_nothing_happens_unasked(unset: str | None) -> None:
    """Without the variable every point is passed, however often."""
    ended = _passes(3, unset)

    assert (ended.returncode, ended.stdout) == (0, "\n" * 3)


@pytest.mark.parametrize(("passes", "lines"), [("", 0), (":1", 0), (":3", 2)])
def test_armed_point(passes: str, lines: int) -> None:
    """The process dies by SIGKILL at the nth pass of the point that is named, the first without a number."""
    ended = _passes(5, f"{CrashPoint.BUILD_AFTER_DEFINE}{passes}")

    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "\n" * lines)


@pytest.mark.parametrize("text", ["build.nowhere", "build.after_define:0", "build.after_define:x", ":2"])
def test_what_is_no_point(tmp_path: Path, text: str) -> None:
    """A daemon that is told to die at a place that does not exist does not start: its test would prove nothing."""
    path = tmp_path / "sev-agent.toml"
    path.write_text('[auth]\ntype = "none"\n')

    with pytest.raises(ConfigurationError, match=VARIABLE):
        load(path, {VARIABLE: text})

    assert load(path, {VARIABLE: "build.after_define:2"}) == load(path, {})


def test_names() -> None:
    """A point's name is its constant's, so that either finds the other."""
    for point in CrashPoint:
        assert point.replace(".", "_").upper() == point.name
        assert crash_points.parse(point).point is point
