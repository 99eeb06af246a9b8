"""Programs that follow a change of files, such as ``update-grub``: run on the machine itself only."""

import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from sev_agent.errors import SevAgentError
from sev_agent.host.preparation.change import Command

_SECONDS: Final = 600
_KEPT: Final = 2000


class ProgramFailed(SevAgentError):
    """A program of the boot loader failed. The files stay as they were written."""

    code = "preparation.program"


def run(commands: Sequence[Command], say: Callable[[str], None]) -> None:
    """Run each, telling ``say`` before. Blocks, for minutes at most. Raises ``ProgramFailed``."""
    for command in commands:
        say(f"running {command}: {command.why}")
        try:
            done = subprocess.run(
                command.arguments,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProgramFailed(f"{command} cannot be run: {error}", remedy=f"run '{command}' by hand") from error
        if done.returncode != 0:
            raise ProgramFailed(
                f"{command} failed with status {done.returncode}: {done.stdout[-_KEPT:].strip()}",
                remedy=f"mend that, then run '{command}' by hand, or take everything back with --undo",
            )
