"""``sev-agent prepare``: what it shows, and when it changes something."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sev_agent.cli.main import app
from tests.hosts import contents, unpack

DEBIAN = {
    "etc/os-release": "ID=debian\n",
    "etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n',
    "proc/cmdline": "ro quiet\n",
}
DROP_IN = "etc/default/grub.d/99-sev-agent.cfg"


def run(root: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["prepare", "--root", str(root), *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return unpack(contents("third-generation") | DEBIAN, tmp_path)


def test_without_apply_it_only_shows(root: Path) -> None:
    """The diff of every file, what is to be run, why a reboot is needed; nothing is written."""
    status, text, _ = run(root)
    assert status == 0
    assert f"+++ b/{DROP_IN}\n" in text
    assert '+GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT mem_encrypt=on kvm_amd.sev=1"\n' in text
    assert "Nothing was changed. With --apply it is." in text
    assert "update-grub: it writes /boot/grub/grub.cfg" in text
    assert "A reboot is needed then\n  the kernel reads its boot line only when it starts" in text
    assert not (root / DROP_IN).exists()


def test_apply_and_undo(root: Path) -> None:
    """Each says what it did; a second undo has nothing to do."""
    assert run(root, "--apply")[0] == 0
    assert (root / DROP_IN).exists()
    status, text, _ = run(root, "--undo")
    assert status == 0
    assert f"--- a/{DROP_IN}\n+++ /dev/null\n" in text
    assert not (root / DROP_IN).exists()
    assert "has changed nothing here" in run(root, "--undo")[1]


def test_json(root: Path) -> None:
    """The same, for programs: files with their diffs, commands, reasons, and what is left to a person."""
    status, text, _ = run(root, "--generation", "amd-sev-snp", "--apply", "--json")
    answer = json.loads(text)
    assert status == 0
    assert answer["applied"] is True
    assert f"/{DROP_IN}" in [change["path"] for change in answer["files"]]
    assert answer["commands"][0]["arguments"] == ["update-grub"]
    assert [found["name"] for found in answer["by_hand"]] == ["bios.rmp"]
    assert json.loads(run(root, "--undo", "--json")[1])["files"]


def test_what_no_command_can_set(root: Path) -> None:
    """It is told with the menu's path."""
    text = run(root, "--generation", "amd-sev-snp")[1]
    assert "What no command can set\n  BIOS: Memory reserved for the RMP" in text
    assert "SEV-SNP Support: Enabled" in text


def test_a_refusal(root: Path) -> None:
    """One line on standard error with what to do, and status 1."""
    (root / "etc/default/grub").write_text('GRUB_CMDLINE_LINUX_DEFAULT="mem_encrypt=off"\n')
    status, _, error = run(root, "--apply")
    assert status == 1
    assert "mem_encrypt=off" in error
    assert not (root / DROP_IN).exists()


def test_apply_and_undo_exclude_each_other(root: Path) -> None:
    """It is wrong usage, and nothing is done."""
    assert run(root, "--apply", "--undo")[0] == 2
