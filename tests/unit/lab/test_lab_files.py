"""What a lab writes and remembers."""

import json
import socket
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from sev_agent import config
from sev_agent.lab import agents, environment
from sev_agent.lab.cloud import Lab
from sev_agent.lab.control import ControlPlane, port_names
from sev_agent.lab.directory import check_directory, mounts_below
from sev_agent.lab.host import RealHost, _kernel_offers_sev, libvirt_offers_sev
from sev_agent.lab.openrc import ShellFiles, users
from sev_agent.lab.openstack import OpenStack
from sev_agent.lab.platform.compute_host import ComputeHost
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.service import LabError
from sev_agent.lab.state import LabState, free_ports

PORTS = {"keystone": 25001, "glance": 25002, "placement": 25003}
RABBIT = "amqp://sev-agent:pa%22ss@127.0.0.1:25000/"


@pytest.fixture
def cloud(tmp_path: Path) -> OpenStack:
    return OpenStack(directory=tmp_path, environment=tmp_path / "venv", ports=PORTS, password='pa"ss\\word')


def loaded(text: str, tmp_path: Path) -> config.AgentConfig:
    path = tmp_path / "sev-agent.toml"
    path.write_text(text)
    return config.load(path, {})


def test_the_daemon_of_a_simulated_host_can_read_its_configuration(cloud: OpenStack, tmp_path: Path) -> None:
    """Every value arrives as meant, quotes and backslashes in a password too."""
    host = ComputeHost(name="compute-1", directory=tmp_path / "compute-1", slots=3)
    text = agents.configuration(host, http_port=25010, rabbit_url=RABBIT, cloud=cloud)
    read = loaded(text, tmp_path)
    assert read.host.name == "compute-1"
    assert read.host.state_dir == tmp_path / "compute-1/agent"
    assert (read.hypervisor.uri, read.hypervisor.virt_type) == (host.uri, "qemu")
    assert (read.encryption.platform_root, read.encryption.limit) == (host.platform_root, 3)
    assert read.messaging.url.get_secret_value() == RABBIT
    assert read.auth.password.get_secret_value() == cloud.password
    assert (read.auth.auth_url, read.glance.endpoint) == ("http://127.0.0.1:25001/v3", "http://127.0.0.1:25002")
    assert (read.placement.endpoint, read.http.port) == ("http://127.0.0.1:25003", 25010)


def test_a_real_host_keeps_its_own_limits(cloud: OpenStack, tmp_path: Path) -> None:
    """With working SEV nothing is set that the hardware says itself."""
    host = RealHost(name="compute-1", directory=tmp_path / "compute-1")
    read = loaded(agents.configuration(host, http_port=25010, rabbit_url=RABBIT, cloud=cloud), tmp_path)
    assert (read.hypervisor.virt_type, read.encryption.limit) == ("kvm", None)
    assert read.encryption.platform_root == Path("/")


def test_the_environments_name_follows_what_is_in_it() -> None:
    """Another version of anything, or another Python, is another environment; the same is the same."""
    first = environment.key(b"glance==33.0.0\n", "3.11")
    assert first == environment.key(b"glance==33.0.0\n", "3.11")
    assert len({first, environment.key(b"glance==33.0.1\n", "3.11"), environment.key(b"glance==33.0.0\n", "3.13")}) == 3


def test_every_requirement_is_pinned_and_none_names_a_host() -> None:
    """The file is a plain list of exact versions."""
    lines = environment.REQUIREMENTS.read_text().splitlines()
    assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in lines)
    assert {"keystone", "glance", "openstack-placement", "waitress"} <= {line.partition("==")[0] for line in lines}


def test_the_state_survives_being_written(tmp_path: Path) -> None:
    """What is saved is what is loaded, readable by its owner only."""
    state = LabState.create(("a", "b"), tmp_path).with_hosts(2, 15).model_copy(update={"image_id": UUID(int=7)})
    state.save(tmp_path)
    assert LabState.load(tmp_path) == state
    assert (tmp_path / "lab.json").stat().st_mode & 0o077 == 0


def test_known_hosts_keep_their_ports_and_slots(tmp_path: Path) -> None:
    """More hosts leave those that are there as they are."""
    one = LabState.create(("a",), tmp_path).with_hosts(1, 15)
    three = one.with_hosts(3, 4)
    assert three.hosts[0] == one.hosts[0]
    assert [host.slots for host in three.hosts] == [15, 4, 4]
    assert len({host.http_port for host in three.hosts} | set(three.ports.values())) == 4


def test_hosts_are_of_different_platforms(tmp_path: Path) -> None:
    """The first has SEV; where nobody chooses, the others are each another; what is chosen counts from the first on."""
    lab = LabState.create(("a",), tmp_path)
    assert [host.platform for host in lab.with_hosts(5, 4).hosts] == [
        Kind.SEV,
        Kind.SEV_ES,
        Kind.NONE,
        Kind.SEV_SNP,
        Kind.SEV,
    ]
    chosen = lab.with_hosts(3, 4, platforms=(Kind.SEV_SNP, Kind.SEV))
    assert [host.platform for host in chosen.hosts] == [Kind.SEV_SNP, Kind.SEV, Kind.NONE]


def test_a_host_keeps_its_platform(tmp_path: Path) -> None:
    """Another one for a host that there is is refused; the same one is no change."""
    lab = LabState.create(("a",), tmp_path).with_hosts(1, 4)
    assert lab.with_hosts(1, 4, platforms=(Kind.SEV,)) == lab
    with pytest.raises(LabError, match="compute-1 has platform sev, and keeps it"):
        lab.with_hosts(1, 4, platforms=(Kind.NONE,))


def test_a_daemon_knows_the_firmware_of_its_host(cloud: OpenStack, tmp_path: Path) -> None:
    """What the lab adds comes before what the machine has, and nothing of the machine is lost."""
    host = ComputeHost(name="compute-1", directory=tmp_path / "compute-1", kind=Kind.SEV_SNP)
    read = loaded(agents.configuration(host, http_port=25010, rabbit_url=RABBIT, cloud=cloud), tmp_path)
    assert read.hypervisor.firmware_dirs == (host.firmware_descriptors, *config.HypervisorSection().firmware_dirs)


def control(cloud: OpenStack, directory: Path, apis: int, schedulers: int) -> ControlPlane:
    names = port_names(apis, schedulers)
    ports = {name: 26000 + number for number, name in enumerate(names)}
    return ControlPlane(
        directory=directory, ports=ports, rabbit_url=RABBIT, cloud=cloud, apis=apis, schedulers=schedulers
    )


async def test_the_control_plane_can_read_its_configuration(cloud: OpenStack, tmp_path: Path) -> None:
    """Two processes of each kind: every one with ports and a name of its own, both APIs on one database."""
    await control(cloud, tmp_path, 2, 2).prepare()
    apis = [config.load_as(config.ApiConfig, tmp_path / f"api/{name}.toml", {}) for name in ("api", "api-2")]
    schedulers = [
        config.load_as(config.SchedulerConfig, tmp_path / f"api/{name}.toml", {})
        for name in ("scheduler", "scheduler-2")
    ]
    assert {each.database.url for each in apis} == {apis[0].database.url}
    ports = {each.api.port for each in apis} | {each.http.port for each in apis}
    assert len(ports | {each.http.port for each in schedulers}) == 6
    assert {each.networks.auto for each in apis} == {"user"}
    assert [each.scheduler.name for each in schedulers] == ["scheduler", "scheduler-2"]
    assert (tmp_path / "api/api.sqlite").exists()


async def test_a_lab_without_a_control_plane_makes_no_database(cloud: OpenStack, tmp_path: Path) -> None:
    """What is not asked for costs nothing."""
    plane = control(cloud, tmp_path, 0, 0)
    await plane.prepare()
    assert (plane.services(), plane.compute_urls, plane.scheduler_config) == ([], (), None)
    assert not (tmp_path / "api").exists()


def test_more_processes_get_ports_of_their_own(tmp_path: Path) -> None:
    """Those that are known keep theirs."""
    one = LabState.create(("a",), tmp_path).with_ports(port_names(1, 1))
    two = one.with_ports(port_names(2, 1))
    assert two.ports.items() > one.ports.items()
    assert len(set(two.ports.values())) == len(two.ports)


@pytest.mark.parametrize("name", ["openrc", "openrc.d/blue-reader"])
def test_a_shell_file_makes_its_user(cloud: OpenStack, tmp_path: Path, name: str) -> None:
    """A shell that reads it gets name, project and password, whatever characters that has; only root may read it."""
    ShellFiles(directory=tmp_path, cloud=cloud, rabbit_url=RABBIT, hosts=()).write()
    script = f'. {tmp_path / name}; printf "%s\\n" "$OS_USERNAME" "$OS_PROJECT_NAME" "$OS_PASSWORD"'
    read = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    user = users(cloud)["admin" if name == "openrc" else "blue-reader"]
    assert read == [user.name, user.project, user.password]
    assert (tmp_path / name).stat().st_mode & 0o077 == 0


def test_the_operators_shell_knows_its_lab(cloud: OpenStack, tmp_path: Path) -> None:
    """In a shell that read a lab's ``openrc``, the lab's commands are about that lab, wherever it lives."""
    ShellFiles(directory=tmp_path, cloud=cloud, rabbit_url=RABBIT, hosts=()).write()
    script = f'. {tmp_path}/openrc; printf "%s" "$SEV_AGENT_LAB_DIR"'
    assert subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout == str(tmp_path)


def test_every_tenant_has_a_password_of_its_own(cloud: OpenStack) -> None:
    """Nobody can log in as another, and least of all as the operator."""
    known = users(cloud)
    assert {user.project for user in known.values()} == {"admin", "red", "blue"}
    assert len({user.password for user in known.values()}) == len(known) == 7


def test_ports_that_are_taken_are_not_given() -> None:
    """Neither a port that something listens on, nor one that is named."""
    (port,) = free_ports(1)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        assert port not in free_ports(200)
    assert port not in free_ports(200, taken=[port])


def test_a_damaged_state_is_an_error_that_shows_no_secret(tmp_path: Path) -> None:
    """Nothing is guessed from half a file; the error says what to do."""
    (tmp_path / "lab.json").write_text(json.dumps({"ports": {}, "password": "secret"}))
    with pytest.raises(LabError, match=r"lab\.json cannot be used: cache: .*down --purge") as raised:
        _ = Lab(tmp_path).keystone_url
    assert "secret" not in str(raised.value)


async def test_a_directory_without_a_lab_has_no_status(tmp_path: Path) -> None:
    """Asking changes nothing."""
    assert await Lab(tmp_path / "nothing").status() == []
    assert not (tmp_path / "nothing").exists()


def test_a_directory_too_deep_for_sockets_is_refused() -> None:
    """The last length that fits is accepted, one byte more is refused with a remedy."""
    longest = len("/hosts/compute-99/run/libvirt/virtlogd-admin-sock")
    check_directory(Path("/" + "x" * (106 - longest)))
    with pytest.raises(LabError, match=r"too long by 1 bytes.*--dir"):
        check_directory(Path("/" + "x" * (107 - longest)))


def test_mounts_below_a_directory_are_seen() -> None:
    """The root has some, a directory without any has none."""
    assert "/proc" in mounts_below(Path("/"))
    assert mounts_below(Path("/proc/1/nothing")) == ()


@pytest.mark.parametrize(("parameter", "expected"), [("1\n", True), ("Y\n", True), ("0\n", False), ("N\n", False)])
def test_the_kernels_word_on_sev(parameter: str, expected: bool, tmp_path: Path) -> None:  # noqa: FBT001 - parametrized
    """The parameter of kvm_amd is 1 or Y, by the kernel's version, and both devices are there."""
    (tmp_path / "sys/module/kvm_amd/parameters").mkdir(parents=True)
    (tmp_path / "sys/module/kvm_amd/parameters/sev").write_text(parameter)
    assert not _kernel_offers_sev(tmp_path)
    (tmp_path / "dev").mkdir()
    for device in ("sev", "kvm"):
        (tmp_path / "dev" / device).touch()
    assert _kernel_offers_sev(tmp_path) is expected


def test_libvirts_word_on_sev() -> None:
    """Only 'yes' is yes."""
    document = b"<domainCapabilities><features><sev supported='%s'/></features></domainCapabilities>"
    assert libvirt_offers_sev(document % b"yes")
    assert not libvirt_offers_sev(document % b"no")
    assert not libvirt_offers_sev(b"<domainCapabilities><features/></domainCapabilities>")
