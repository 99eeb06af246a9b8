"""What a daemon does not load."""

import subprocess
import sys

_SCRIPT = """
import sys
from sev_agent.cli.lean import without_extras
import sev_agent.cli.run, sev_agent.cli.api, sev_agent.cli.scheduler
with without_extras():
    import structlog
assert structlog.dev.ConsoleRenderer
assert not {"rich", "greenlet"} & sys.modules.keys()
import greenlet, rich.console
"""


def test_without_extras() -> None:
    """structlog comes without rich and greenlet, which others can still have."""
    ended = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr


def test_rich_stays() -> None:
    """What has loaded rich already keeps it."""
    script = """
import rich.console, sys
from sev_agent.cli.lean import without_extras
with without_extras():
    import structlog
assert sys.modules["rich"] is rich
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
