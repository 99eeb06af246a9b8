from pathlib import Path

import pytest
from typer.testing import CliRunner

from sev_agent.cli.lab import app
from sev_agent.lab.cloud import Lab
from sev_agent.lab.state import LabState


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A lab with one host that was never started."""
    LabState.create(("rabbitmq",), tmp_path).with_hosts(1, 4).save(tmp_path)
    return tmp_path


def fail(directory: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fail", *arguments, "--dir", str(directory)])
    return result.exit_code, result.output


def test_a_failure_is_armed_and_disarmed_by_name(directory: Path) -> None:
    """With a name launches fail, without one they succeed again."""
    assert fail(directory, "compute-1", "no-slot", "--times", "2")[0] == 0
    assert Lab(directory).failures("compute-1").names() == ["no-slot"]
    assert fail(directory, "compute-1")[0] == 0
    assert Lab(directory).failures("compute-1").names() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("compute-1", "bad-luck"), "there are: device-missing"), (("compute-9", "no-slot"), "no host 'compute-9'")],
)
def test_what_is_not_there_cannot_fail(directory: Path, arguments: tuple[str, ...], told: str) -> None:
    """A name that means nothing is refused with those that do."""
    status, output = fail(directory, *arguments)
    assert status == 1
    assert told in output
    assert Lab(directory).failures("compute-1").names() == []


def test_an_unknown_platform_is_refused(tmp_path: Path) -> None:
    """Before anything is started, with the platforms that there are."""
    result = CliRunner().invoke(app, ["up", "--platforms", "sev,epyc", "--dir", str(tmp_path / "lab")])
    assert result.exit_code == 1
    assert "no platform 'epyc'" in result.output
    assert "none, sev, sev-es, sev-snp" in result.output
    assert not (tmp_path / "lab").exists()


def test_nothing_to_end(tmp_path: Path) -> None:
    """Where no lab ever was, ``down`` says that nothing ran, and leaves nothing, not even a directory."""
    result = CliRunner().invoke(app, ["down", "--dir", str(tmp_path / "lab")])
    assert result.exit_code == 0
    assert result.output.startswith("Nothing ran.")
    assert not (tmp_path / "lab").exists()
