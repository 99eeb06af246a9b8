"""Programs that follow a change of files."""

import pytest

from sev_agent.cli.prepare import NotInEffect, _verify
from sev_agent.host.preparation.change import Command
from sev_agent.host.preparation.programs import ProgramFailed, run
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation
from tests.hosts import contents, unpack


def command(*arguments: str) -> Command:
    return Command(arguments=arguments, why="tries it")


def test_each_is_announced_and_run() -> None:
    """In their order."""
    said: list[str] = []
    run([command("true"), command("test", "a", "=", "a")], said.append)
    assert said == ["running true: tries it", "running test a = a: tries it"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("sh", "-c", "echo no disk >&2; exit 3"), "status 3: no disk"), (("no-such-program",), "cannot be run")],
)
def test_a_failure_says_what_the_program_said(arguments: tuple[str, ...], said: str) -> None:
    """And what to do; those after it are not run."""
    with pytest.raises(ProgramFailed, match=said) as failed:
        run([command(*arguments), command("false")], lambda _text: None)
    assert failed.value.remedy


def test_what_is_not_in_the_boot_loaders_file_after_all_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A later file may set the boot line anew: better told now than found out after the reboot."""
    files = contents("third-generation")
    _verify(HostFiles(unpack(files, tmp_path_factory.mktemp("good"))), Generation.SEV)
    with pytest.raises(NotInEffect, match=r"grub\.cfg has no kvm_amd\.sev_es=1"):
        _verify(HostFiles(unpack(files, tmp_path_factory.mktemp("bad"))), Generation.SEV_ES)
