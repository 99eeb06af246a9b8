from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.hypervisor.platform import Platform, _counters, read_platform


def _write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def test_reads_a_sev_host(tmp_path: Path) -> None:
    """Parameters and counters are those of the files, in the spellings of old and new kernels."""
    _write(tmp_path, "sys/module/kvm_amd/parameters/sev", "Y\n")
    _write(tmp_path, "sys/module/kvm_amd/parameters/sev_es", "1\n")
    _write(tmp_path, "sys/module/kvm_amd/parameters/sev_snp", "N\n")
    _write(tmp_path, "sys/fs/cgroup/misc.capacity", "sev 410\nsev_es 99\n")
    _write(tmp_path, "sys/fs/cgroup/misc.current", "sev 3\nsev_es 0\n")
    platform = read_platform(tmp_path)
    assert platform.misc_current == {"sev": 3, "sev_es": 0}
    assert platform == Platform(
        sev=True,
        sev_es=True,
        sev_snp=False,
        misc_capacity={"sev": 410, "sev_es": 99},
        misc_current={"sev": 3, "sev_es": 0},
        simulated=False,
    )


@pytest.mark.parametrize(("text", "smt"), [("1\n", True), ("0\n", False), ("", None), ("2", None)])
def test_threads(tmp_path: Path, text: str, smt: bool | None) -> None:  # noqa: FBT001 - a parameter of the test
    """Whether cores have two threads is what the kernel says, if it does."""
    _write(tmp_path, "sys/devices/system/cpu/smt/active", text)
    assert read_platform(tmp_path).smt is smt


@pytest.mark.parametrize(
    ("first", "every", "one"), [("0-63", "0-63", True), ("0-31,64-95", "0-127", False), ("", "0-7", None)]
)
def test_sockets(tmp_path: Path, first: str, every: str, one: bool | None) -> None:  # noqa: FBT001 - of the test
    """A host has one socket where the first processor shares it with all others."""
    _write(tmp_path, "sys/devices/system/cpu/cpu0/topology/core_siblings_list", f"{first}\n")
    _write(tmp_path, "sys/devices/system/cpu/online", f"{every}\n")
    assert read_platform(tmp_path).one_socket is one


@pytest.mark.parametrize(
    ("nodes", "found"), [(("kvm", "sev"), True), (("sev",), True), (("kvm",), False), (("null",), None)]
)
def test_device(tmp_path: Path, nodes: tuple[str, ...], found: bool | None) -> None:  # noqa: FBT001 - of the test
    """The secure processor's node is missed only where KVM's is seen: a sandbox may hide both."""
    for name in nodes:
        _write(tmp_path, f"dev/{name}", "")
    assert read_platform(tmp_path).sev_device is found


def test_a_host_without_any_of_the_files_has_no_sev(tmp_path: Path) -> None:
    """Absent files are as if the kernel lacked what they tell."""
    assert read_platform(tmp_path / "nowhere") == Platform(
        sev=False, sev_es=False, sev_snp=False, misc_capacity={}, misc_current={}, simulated=False
    )


def test_a_directory_in_the_place_of_a_file_is_no_error(tmp_path: Path) -> None:
    """What cannot be read counts as absent."""
    (tmp_path / "sys/module/kvm_amd/parameters/sev").mkdir(parents=True)
    assert not read_platform(tmp_path).sev


@pytest.mark.parametrize(("text", "expected"), [("0", False), ("N", False), ("", False), ("y", True), ("11", False)])
def test_a_parameter_is_on_only_when_the_kernel_says_so(tmp_path: Path, text: str, expected: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """``1``, ``Y`` and ``y`` are on, all else is off."""
    _write(tmp_path, "sys/module/kvm_amd/parameters/sev", text)
    assert read_platform(tmp_path).sev is expected


def test_counters_of_cgroup_v1_are_found(tmp_path: Path) -> None:
    """Where the misc controller is mounted by itself, it is read there."""
    _write(tmp_path, "sys/fs/cgroup/misc/misc.capacity", "sev 15\n")
    assert read_platform(tmp_path).misc_capacity == {"sev": 15}


def test_a_simulated_platform_says_so(tmp_path: Path) -> None:
    """The mark in the root is what tells a simulation from hardware."""
    _write(tmp_path, "SIMULATED", "")
    assert read_platform(tmp_path).simulated


def test_a_file_without_end_is_read_in_part(tmp_path: Path) -> None:
    """Reading stops at a bound."""
    _write(tmp_path, "sys/fs/cgroup/misc.capacity", "sev 1\n" + "x 1\n" * 1_000_000)
    assert read_platform(tmp_path).misc_capacity["sev"] == 1


@given(content=st.binary(max_size=200) | st.text("sev 019\n_-²٣", max_size=60).map(str.encode))
def test_any_content_of_the_counters_is_tolerated(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Lines that are not ``key number`` are passed over; what is kept is a key with a number that is not negative."""
    root = tmp_path_factory.mktemp("root")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/misc.capacity").write_bytes(content)
    assert all(number >= 0 and key for key, number in _counters(root, "misc.capacity").items())
