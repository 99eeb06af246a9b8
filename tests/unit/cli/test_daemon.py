"""How the commands of the daemons begin and end."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sev_agent.cli import daemon
from sev_agent.cli.main import app
from sev_agent.config import ConfigurationError
from sev_agent.errors import HostTaken, SevAgentError

ROOT = Path(__file__).parents[3]
FILES = {"run": "sev-agent.toml", "scheduler": "sev-agent-scheduler.toml", "api": "sev-agent-api.toml"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HostTaken("another one serves it"), 75),
        (ConfigurationError("it cannot be used"), 78),
        (SevAgentError("it failed"), 1),
        (OSError(98, "Address already in use"), 1),
    ],
)
def test_end(capsys: pytest.CaptureFixture[str], error: Exception, status: int) -> None:
    """What ends a daemon is one line on standard error, and the status by which a service manager decides."""

    async def work() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        daemon.serve(work())
    assert caught.value.exit_code == status
    assert capsys.readouterr().err == f"sev-agent: {error}\n"


def test_fault_of_the_program() -> None:
    """A programming error is shown whole, with its traceback."""

    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        daemon.serve(work())


@pytest.mark.parametrize("command", FILES)
class TestCheck:
    def test_in_order(self, command: str) -> None:
        """``--check`` reads the file, says that it is in order, and starts nothing."""
        path = ROOT / "conf" / FILES[command]
        result = CliRunner().invoke(app, [command, "--check", "--config", str(path)])
        assert (result.exit_code, result.stdout) == (0, f"{path} is in order.\n")

    def test_no_file(self, command: str, tmp_path: Path) -> None:
        """A file that is not there is named, with what one is made from."""
        result = CliRunner().invoke(app, [command, "--check", "--config", str(tmp_path / "none.toml")])
        assert result.exit_code == daemon.CONFIG_FAULT
        assert f"{tmp_path}/none.toml cannot be read: No such file or directory" in result.stderr
        assert f"conf/{FILES[command]}" in result.stderr
