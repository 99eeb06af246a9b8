"""``sev-agent prepare`` beside ``grubby``, for which a stand-in is run here: Debian has no package of it."""

import sys
from pathlib import Path

import pytest

from sev_agent.host.boot_line import next_boot
from sev_agent.host.preparation.arguments import missing, words
from sev_agent.host.preparation.plan import make_plan
from sev_agent.host.preparation.programs import run
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation
from tests.hosts import contents, unpack

GRUBBY = """\
#!{python}
# Does what grubby(8) says of these options, on the entries below a scratch root: an argument that is there is not added
# again, one that is to go is taken from every entry, that for repair included.
import pathlib, sys
options = dict(option.split("=", 1) for option in sys.argv[1:])
assert options.pop("--update-kernel") == "ALL"
(action, words), = options.items()
for path in pathlib.Path({root!r}).joinpath("boot/loader/entries").glob("*.conf"):
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("options "):
            kept = [word for word in line.split()[1:] if action != "--remove-args" or word not in words.split()]
            kept += [word for word in words.split() if action == "--args" and word not in kept]
            lines[number] = " ".join(["options", *kept])
    path.write_text("\\n".join(lines) + "\\n")
"""
ENTRIES = {
    "boot/loader/entries/ab-6.12.conf": "title RHEL\nlinux /vmlinuz-6.12\noptions root=/dev/sda1 ro quiet\n",
    "boot/loader/entries/ab-6.11.conf": "title RHEL\nlinux /vmlinuz-6.11\noptions root=/dev/sda1 ro\n",
    "boot/loader/entries/ab-0-rescue.conf": "title RHEL rescue\nlinux /vmlinuz-0\noptions root=/dev/sda1 ro rescue\n",
}


@pytest.mark.parametrize("generation", Generation)
def test_grubby_is_told_and_told_back(generation: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its command every entry has the words and nothing is left to do; the other way they are as they were."""
    host = contents("fourth-generation") | ENTRIES | {"proc/cmdline": "ro quiet\n"}
    host["usr/sbin/grubby"] = GRUBBY.format(python=sys.executable, root=str(tmp_path))
    host["boot/grub2/grub.cfg"] = "insmod blscfg\nblscfg\n"
    host.pop("boot/grub/grub.cfg")
    files = HostFiles(unpack(host, tmp_path))
    (tmp_path / "usr/sbin/grubby").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "usr/sbin"))
    wanted = words(generation, files)
    before = {path: (tmp_path / path).read_text() for path in ENTRIES}
    assert all(missing(entry.line, wanted) for entry in next_boot(files))

    plan = make_plan(files, generation)
    assert plan.changes.commands
    run(plan.changes.commands, lambda _: None)

    entries = next_boot(files)
    assert len(entries) == 2
    for entry in entries:
        assert missing(entry.line, wanted) == ()
    assert make_plan(files, generation).changes.commands == ()

    run(plan.changes.undo, lambda _: None)
    assert {path: (tmp_path / path).read_text() for path in ENTRIES} == before
