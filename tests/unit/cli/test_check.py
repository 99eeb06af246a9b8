"""``sev-agent check``: its exit status and its two ways to speak."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sev_agent.cli.main import app
from sev_agent.hypervisor.platform import read_platform
from tests.hosts import contents, unpack


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *arguments])
    return result.exit_code, result.stdout


@pytest.mark.parametrize(
    ("host", "arguments", "status"),
    [
        ("third-generation", [], 0),
        ("third-generation", ["--generation", "amd-sev-es"], 0),
        ("third-generation", ["--generation", "amd-sev-snp"], 1),
        ("intel", [], 1),
        ("third-generation", ["--generation", "sev"], 2),
    ],
)
def test_exit_status(host: str, arguments: list[str], status: int, tmp_path: Path) -> None:
    """0 only if the host is ready for what is asked, 1 if not, 2 for wrong usage."""
    unpack(contents(host), tmp_path)
    assert run("--root", str(tmp_path), *arguments)[0] == status


def test_an_absent_root_is_wrong_usage(tmp_path: Path) -> None:
    """It is not a host without SEV."""
    assert run("--root", str(tmp_path / "nowhere"))[0] == 2


def test_json_names_what_to_mend_first(tmp_path: Path) -> None:
    """One object: verdict by generation, the first thing to mend, and every check with all that it knows."""
    unpack(contents("third-generation"), tmp_path)
    status, text = run("--root", str(tmp_path), "--generation", "amd-sev-snp", "--json")
    answer = json.loads(text)
    assert status == 1
    assert answer["ready"] is False
    assert (answer["mend_first"]["layer"], answer["mend_first"]["name"]) == ("BIOS", "bios.rmp")
    assert answer["verdicts"]["amd-sev"] == {
        "readiness": "ready",
        "layer": None,
        "check": None,
        "found": None,
        "remedy": None,
    }
    for check in answer["checks"]:
        if check["outcome"] == "failed":
            assert all(check[part] for part in ("expected", "found", "source", "remedy"))


def test_the_table_ends_with_what_to_mend_first(tmp_path: Path) -> None:
    """Layers from the silicon up, a verdict for each generation, and the remedy."""
    unpack(contents("virtual-machine"), tmp_path)
    _, text = run("--root", str(tmp_path))
    assert text.index("\nBIOS\n") < text.index("\nboot line\n") < text.index("\nlibvirt\n")
    end = text[text.index("mend first:") :]
    assert end.startswith("mend first: CPU: flag hypervisor: this is a virtual machine\n  run on the physical host")


def test_verbose_tells_where_everything_was_read(tmp_path: Path) -> None:
    """Also of what passed, which otherwise is one line."""
    unpack(contents("third-generation"), tmp_path)
    source = f"      read from {tmp_path}/dev/kvm\n"
    assert source not in run("--root", str(tmp_path))[1]
    assert source in run("--root", str(tmp_path), "--verbose")[1]


def test_a_simulated_platform_says_so(tmp_path: Path) -> None:
    """Nobody takes the lab for hardware."""
    unpack(contents("third-generation") | {"SIMULATED": ""}, tmp_path)
    assert run("--root", str(tmp_path))[1].startswith("This is a simulated platform")


def test_this_machine_is_refused_with_a_reason() -> None:
    """Where the tests run there is no SEV: the refusal names a layer, what was found there, and what to do."""
    status, text = run("--json")
    answer = json.loads(text)
    assert status == (0 if answer["ready"] else 1)
    if read_platform(Path("/")).sev:
        return  # someone runs the tests on the real thing
    assert answer["ready"] is False
    assert answer["mend_first"]["layer"]
    assert answer["mend_first"]["outcome"] == "failed"
    assert all(answer["mend_first"][part] for part in ("found", "source", "remedy"))
