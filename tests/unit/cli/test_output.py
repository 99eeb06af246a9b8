"""How the commands speak."""

import json
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sev_agent.cli import output
from sev_agent.config import ConfigurationError
from sev_agent.errors import Conflict, InvalidRequest, NotFound, SevAgentError, Unavailable
from sev_agent.messaging.client import RemoteError
from sev_agent.messaging.envelope import Failure


def remote(code: str) -> RemoteError:
    return RemoteError(Failure(kind="Error", message="it failed", code=code, remedy="try [b]this[/b]"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SevAgentError("it failed"), 1),
        (InvalidRequest("it failed"), 1),
        (output.WrongUsage("it cannot be", field="--name"), 2),
        (ConfigurationError("it cannot be used:\n  a line\n  another", remedy="correct each"), 78),
        (Conflict("it failed"), 1),
        (NotFound("it failed"), 4),
        (remote("instance.not_found"), 4),
        (remote("instance.exists"), 1),
        (Unavailable("it failed"), 5),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], error: SevAgentError, status: int) -> None:
    """An error stands on standard error, with its remedy as it is, and ends with the exit status of its kind."""
    with pytest.raises(typer.Exit) as caught, output.errors():
        raise error

    said = capsys.readouterr()
    assert caught.value.exit_code == status
    assert said.out == ""
    assert said.err == f"sev-agent: {error}\n"


def test_file_that_cannot_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What the system says of a file is told with the file's name, and not as a fault of the program."""
    with pytest.raises(typer.Exit) as caught, output.errors():
        (tmp_path / "absent").read_text()

    assert caught.value.exit_code == output.FAILED
    assert capsys.readouterr().err == f"sev-agent: {tmp_path}/absent: No such file or directory\n"


def test_fault_of_the_program() -> None:
    """An error of the system that is about no file is not hidden."""
    with pytest.raises(ConnectionResetError), output.errors():
        raise ConnectionResetError


def test_error_with_control_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    """What a host says cannot steer the terminal, nor make the command fail."""
    with pytest.raises(typer.Exit), output.errors():
        raise SevAgentError("a\x1b[2Jb\x1b]0;title\x07c [/red] \x9b31m\u202e")

    assert capsys.readouterr().err == "sev-agent: abc [/red] 31m\n"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON is JSON: nothing in it is markup, nothing is folded."""
    value = {"text": "[red]" + "x" * 500, "list": [1, None, True]}

    output.print_json(value)

    assert json.loads(capsys.readouterr().out) == value


def rendered(value: object) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(output.details({"name": output.cell(value)}), highlight=False)
    return capture.get()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        (7, "7"),
        ("[Errno 28] No space", "[Errno 28] No space"),
        ("[red]x[/red]", "[red]x[/red]"),
        ("[/red]", "[/red]"),
        ("a\x1b[31mb", "ab"),
    ],
)
def test_cell(value: object, shown: str) -> None:
    """A value is shown as it is, were it markup or control sequences."""
    assert rendered(value).split(maxsplit=1)[1].rstrip() == shown


@given(st.text(max_size=60))
def test_any_cell(text: str) -> None:
    """No text makes a table fail, and none brings a control character to the terminal."""
    assert all(c.isprintable() or c in "\n\t" for c in rendered(text))


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_printable(text: str) -> None:
    """What is left can be printed; what could be printed is left, but for what belonged to a control sequence."""
    plain = output.printable(text)

    assert all(c.isprintable() or c in "\n\t" for c in plain)
    if "\x1b" not in text and "\r" not in text:
        assert plain == "".join(c for c in text if c.isprintable() or c in "\n\t")
