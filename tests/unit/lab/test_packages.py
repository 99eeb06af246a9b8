import os
import subprocess
import sys
from pathlib import Path

import pytest

from sev_agent.lab import packages
from sev_agent.lab.packages import Package, PackagesError

OURS = packages._POLICY_TEXT


def test_while_packages_are_installed_no_service_may_start(tmp_path: Path) -> None:
    """invoke-rc.d's policy refuses (status 101) inside, and is gone afterwards."""
    policy = tmp_path / "policy-rc.d"
    with packages._no_services_start(policy):
        assert subprocess.run([policy, "rabbitmq-server", "start"], check=False).returncode == 101
    assert not policy.exists()


def test_the_policy_is_removed_when_the_installation_fails(tmp_path: Path) -> None:
    """A failure leaves the machine as it was."""
    policy = tmp_path / "policy-rc.d"
    with pytest.raises(RuntimeError), packages._no_services_start(policy):
        raise RuntimeError
    assert not policy.exists()


def test_a_policy_of_the_machine_stays(tmp_path: Path) -> None:
    """An administrator's own policy is neither replaced nor removed."""
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    with packages._no_services_start(policy):
        assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert policy.exists()


def test_a_policy_that_a_killed_run_left_is_taken_over(tmp_path: Path) -> None:
    """What an earlier run had no time to remove is removed by the next."""
    policy = tmp_path / "policy-rc.d"
    policy.write_text(OURS)
    with packages._no_services_start(policy):
        assert os.access(policy, os.X_OK)
    assert not policy.exists()


def test_an_absent_and_an_old_package_are_missing() -> None:
    """What is not installed is missing, and so is what is too old; what is there is not."""
    absent, old = Package("no-such-package-anywhere"), Package("dpkg", "99")
    assert packages.missing([Package("dpkg"), absent, Package("dpkg", "1.0"), old]) == [absent, old]


def test_nothing_missing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has everything is left alone, and nothing is announced."""
    monkeypatch.setattr(packages, "needed", lambda _: (Package("dpkg"),))
    said: list[str] = []
    assert packages.install("all", say=said.append) == []
    assert said == []


@pytest.mark.parametrize("release", ["ID=debian\nVERSION_ID=11\n", "ID=fedora\nVERSION_ID=41\n", ""])
def test_other_systems_are_told_what_is_needed(release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on Debian 12 and 13 the error lists what to install by hand."""
    (tmp_path / "os-release").write_text(release)
    monkeypatch.setattr(packages, "_OS_RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(packages, "needed", lambda _: (Package("no-such-package", "1:9.1"),))
    with pytest.raises(PackagesError, match=r"Debian 12 and 13.*no-such-package \(>= 9.1\)"):
        packages.install("all", say=lambda _: None)


def test_on_debian_12_libvirt_and_qemu_are_taken_from_backports(tmp_path: Path) -> None:
    """Whole source packages are pinned, beside the administrator's own preferences; nothing of it stays."""
    (tmp_path / "preferences").write_text("Package: mine\nPin: version 1\nPin-Priority: 1")
    with packages._preferences(tmp_path, "bookworm") as (_, option):
        path = Path(option.removeprefix("Dir::Etc::Preferences="))
        mine, pins = path.read_text().split("\n\n")
        assert mine.startswith("Package: mine")
        assert "src:libvirt src:qemu" in pins
        assert "Pin: release n=bookworm-backports\n" in pins
    assert not path.exists()


def test_debian_13_needs_no_backports(tmp_path: Path) -> None:
    """Its own versions are new enough."""
    with packages._preferences(tmp_path, "trixie") as options:
        assert options == ()


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://mirror.example/debian bookworm main\n")
    return tmp_path


def _refuse(command: object) -> None:
    raise PackagesError(f"{command} failed")


def test_the_package_source_is_announced_before_it_is_added(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator hears the file's name and content while it is not there yet."""
    monkeypatch.setattr(packages, "_run", lambda _: None)
    path = apt / "sources.list.d/bookworm-backports.list"
    said: list[tuple[str, bool]] = []
    packages._add_backports(apt, "bookworm", lambda text: said.append((text, path.exists())))
    ((text, existed),) = said
    assert str(path) in text
    assert "http://mirror.example/debian bookworm-backports main" in text
    assert not existed
    assert path.read_text() in text


@pytest.mark.parametrize("sources", ["deb http://mirror.example/debian bookworm main\n", ""])
def test_a_source_that_cannot_be_used_is_not_left(apt: Path, sources: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address without backports, or no address at all, is an error, and the machine's sources are as before."""
    (apt / "sources.list").write_text(sources)
    monkeypatch.setattr(packages, "_run", _refuse)
    with pytest.raises(PackagesError):
        packages._add_backports(apt, "bookworm", lambda _: None)
    assert list((apt / "sources.list.d").iterdir()) == []


def test_it_runs_without_any_package_of_pythons() -> None:
    """On a bare machine the module is imported with the standard library alone (-S hides site-packages)."""
    code = "import sev_agent.lab.packages as p; print(len(p.needed('all')))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True, cwd=Path.cwd()
    )
    assert int(done.stdout) > 10


def test_one_installs_at_a_time(tmp_path: Path) -> None:
    """A second lab waits, and says for which process; after its patience it gives up and names it."""
    lock, told = tmp_path / "run/packages.lock", list[str]()

    with packages._alone(lock, told.append):
        assert lock.read_text() == f"{os.getpid()}\n"
        with (
            pytest.raises(PackagesError, match=f"process {os.getpid()} has been installing"),
            packages._alone(lock, told.append, patience=0.3),
        ):
            pytest.fail("both install")
    assert told == [f"waiting for process {os.getpid()}, which installs packages for another lab"]
    with packages._alone(lock, told.append, patience=0):
        pass
