"""A whole cloud on one machine: bringing it up, asking how it does, taking it down."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from sev_agent.durable import write_durably
from sev_agent.lab import agents, control, environment, openrc, openstack, rabbitmq
from sev_agent.lab.contents import Contents
from sev_agent.lab.control import ControlPlane
from sev_agent.lab.directory import alone, check_directory, mounts_below, remove_files
from sev_agent.lab.host import Host, RealHost, has_working_sev
from sev_agent.lab.openrc import ShellFiles, StockClient
from sev_agent.lab.openstack import OpenStack
from sev_agent.lab.platform.compute_host import ComputeHost
from sev_agent.lab.platform.emulator.failures import Armed
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.processes import MarkedProcess
from sev_agent.lab.progress import Progress, Silent
from sev_agent.lab.service import GUESTS, LabError, Service, mark
from sev_agent.lab.side_by_side import side_by_side
from sev_agent.lab.state import FILE_NAME, HostState, LabState
from sev_agent.lab.supervisor import ServiceStatus, Supervisor

DEFAULT_DIRECTORY = Path("/var/lib/sev-agent-lab")
DEFAULT_SLOTS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What ``down`` ended, and what of the lab it found left."""

    processes: tuple[MarkedProcess, ...]
    left: tuple[MarkedProcess, ...]
    mounts: tuple[str, ...]


class Lab:
    """The lab in one directory. ``cache`` holds what is costly to make, and may be shared by labs.

    ``database_url`` is where its APIs keep their state, from their next start on, in place of a file of the lab's.

    The properties need a lab that was brought up once; without one they raise ``LabError``. Blocks on the disk.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cache: Path | None = None,
        progress: Progress | None = None,
        database_url: str | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self._database_url = database_url
        self._progress = progress or Silent()
        self._supervisor = Supervisor(self.directory, self._progress)
        self._damage: LabError | None = None
        self._known: LabState | None = None
        try:
            self._known = LabState.load(self.directory)
        except LabError as damage:
            # Kept until something needs the state: the lab can be ended without.
            self._damage = damage
        remembered = Path(self._known.cache) if self._known else None
        self.cache = (cache or remembered or self.directory / "cache").resolve()

    # What the lab consists of.

    @property
    def rabbit_url(self) -> str:
        return f"amqp://{rabbitmq.USER}:{self._state.password}@127.0.0.1:{self._state.ports['rabbitmq']}/"

    @property
    def keystone_url(self) -> str:
        return self.cloud.keystone_url

    @property
    def glance_url(self) -> str:
        return self.cloud.glance_url

    @property
    def placement_url(self) -> str:
        return self.cloud.placement_url

    @property
    def cloud(self) -> OpenStack:
        """The OpenStack services, with the passwords and ports that they have in this lab."""
        return OpenStack(
            directory=self.directory,
            environment=environment.location(self.cache),
            ports=self._state.ports,
            password=self._state.password,
        )

    @property
    def compute_urls(self) -> tuple[str, ...]:
        """The compute API's processes; the first is the catalog's."""
        return self._control.compute_urls

    @property
    def scheduler_config(self) -> Path | None:
        """What ``sev-agent hosts`` reads, where there is a scheduler."""
        return self._control.scheduler_config

    def stock_client(self, user: str) -> StockClient:
        """The stock ``openstack`` command as the operator ``admin``, or as a tenant such as ``red-member``."""
        return StockClient(self.cloud, openrc.users(self.cloud)[user])

    @property
    def image_id(self) -> UUID:
        """The guest image in Glance."""
        if self._state.image_id is None:
            raise LabError("the lab has no guest image yet", remedy="bring it up with at least one host")
        return self._state.image_id

    @property
    def hosts(self) -> tuple[Host, ...]:
        return tuple(self._host(known) for known in self._state.hosts)

    def host(self, name: str) -> Host:
        """The host of this name. Raises ``LabError``."""
        return next((host for host in self.hosts if host.name == name), None) or _no_host(name)

    def failures(self, name: str) -> Armed:
        """What launches on the host of this name are to fail with. Raises ``LabError`` where none is simulated."""
        match self.host(name):
            case ComputeHost() as host:
                return host.failures
            case _:
                raise LabError(f"{name} is a real machine, whose platform does not fail by command")

    def http_url(self, host: Host) -> str:
        """Where the daemon of ``host`` serves health and metrics."""
        return f"http://127.0.0.1:{self._http_port(host)}"

    def agent_config(self, host: Host) -> Path:
        """The configuration file for the daemon of ``host``, written anew. Blocks on the disk."""
        host.directory.mkdir(parents=True, exist_ok=True)
        path = self._agent_file(host)
        port = self._http_port(host)
        text = agents.configuration(host, http_port=port, rabbit_url=self.rabbit_url, cloud=self.cloud)
        write_durably(path, text.encode())
        return path

    def log_path(self, name: str) -> Path:
        return self._supervisor.log_path(name)

    def log_names(self) -> list[str]:
        """The services that have a log."""
        return sorted(path.stem for path in (self.directory / "log").glob("*.log"))

    # What is done with it.

    async def up(
        self,
        *,
        hosts: int | None = None,
        agents: bool = True,
        slots: int = DEFAULT_SLOTS,
        platforms: Sequence[Kind] = (),
        apis: int | None = None,
        schedulers: int | None = None,
    ) -> None:
        """Bring up what is not up. A lab never shrinks: ``hosts`` below what it has leaves it as it is.

        Without a number of API and scheduler processes there is one of each where there are ``agents``.

        ``platforms`` are those of the first hosts, in order; there are at least as many hosts. Raises ``LabError``;
        what was started until then goes on running, and the next ``up`` continues from there.
        """
        if self._damage is not None:
            raise self._damage
        check_directory(self.directory)
        await asyncio.to_thread(self.directory.mkdir, mode=0o755, parents=True, exist_ok=True)
        await asyncio.to_thread(self.cache.mkdir, mode=0o755, parents=True, exist_ok=True)
        with alone(self.directory):
            await self._remember(hosts, slots, platforms, agents=agents)
            await self._remember_control(apis, schedulers)
            with self._progress.step("openstack packages") as say:
                await environment.provide(self.cache, say)
            await self._start_services()
            await side_by_side(self._start_hosts(), self._provide_tenants(), self._control.prepare())
            for each in self.hosts if agents else ():
                await asyncio.to_thread(self.agent_config, each)
            await self._supervisor.start_side_by_side([*self._control.services(), *(self._agents() if agents else ())])
            if self.compute_urls:
                await self._contents.flavor(self.compute_urls[0])

    async def down(self, *, purge: bool = False) -> Ended:
        """End everything that carries the lab's mark, its services in order. Harmless when nothing runs.

        ``purge`` removes the lab's files too, but for the cache, if nothing of the lab is left that could use them.
        """
        if not await asyncio.to_thread(self.directory.exists) and not await self._supervisor.marked():
            return Ended(processes=(), left=(), mounts=())
        # The directory may have been removed from below its processes; it is also where the lock is.
        await asyncio.to_thread(self.directory.mkdir, parents=True, exist_ok=True)
        with alone(self.directory):
            ended = await self._end()
            left = await self._supervisor.marked()
            mounts = await asyncio.to_thread(mounts_below, self.directory)
            if not left and not mounts:
                for each in self.hosts if self._known else ():
                    await each.cleanup()
                if purge:
                    await asyncio.to_thread(self._forget)
        return Ended(processes=tuple(ended), left=tuple(left), mounts=mounts)

    async def status(self) -> list[ServiceStatus]:
        """How every service of the lab does now; of a lab that never was, nothing."""
        if self._known is None and self._damage is None:
            return []
        return await asyncio.gather(*(self._supervisor.status(service) for service in self._services()))

    # How.

    @property
    def _state(self) -> LabState:
        if self._damage is not None:
            raise self._damage
        if self._known is None:
            raise LabError(
                f"there is no lab in {self.directory}", remedy=f"bring it up: sev-agent lab up --dir {self.directory}"
            )
        return self._known

    async def _remember(self, hosts: int | None, slots: int, platforms: Sequence[Kind], *, agents: bool) -> None:
        state = self._known or LabState.create((*rabbitmq.PORT_NAMES, *openstack.PORT_NAMES), self.cache)
        real = await has_working_sev()
        fewest = (len(platforms) or 1) if hosts is None else hosts
        wanted = max(fewest, len(platforms), len(state.hosts))
        if real and wanted > 1:
            self._progress.note("this machine has working SEV: it is the one host of the lab, nothing is simulated")
            wanted, platforms = 1, ()
        state = state.with_hosts(wanted, slots, platforms=platforms, real=real)
        await self._save(state.model_copy(update={"cache": str(self.cache), "agents": agents}))

    async def _remember_control(self, apis: int | None, schedulers: int | None) -> None:
        default = int(self._state.agents)
        state = self._state.model_copy(
            update={
                "apis": max(default if apis is None else apis, self._state.apis),
                "schedulers": max(default if schedulers is None else schedulers, self._state.schedulers),
            }
        )
        await self._save(state.with_ports(control.port_names(state.apis, state.schedulers)))

    async def _save(self, state: LabState) -> None:
        self._known = state
        await asyncio.to_thread(state.save, self.directory)

    async def _start_services(self) -> None:
        cloud = self.cloud
        await asyncio.to_thread(rabbitmq.prepare, self.directory, self._state.ports, self._state.password)
        await asyncio.to_thread(cloud.prepare)
        await asyncio.to_thread(self._shell_files.write)
        mapper, node = rabbitmq.services(self.directory, self._state.ports)
        await self._supervisor.start(mapper)
        await self._supervisor.start_side_by_side([node, cloud.keystone(), cloud.glance(), cloud.placement()])
        await self._contents.accounts()

    async def _start_hosts(self) -> None:
        for each in self.hosts:
            await each.prepare()
        await self._supervisor.start_chains(each.services(self._guest_mark) for each in self.hosts)
        if self.hosts:
            await self._provide_image()

    async def _provide_tenants(self) -> None:
        if self.compute_urls:
            await self._contents.tenants(self.compute_urls[0])

    async def _provide_image(self) -> None:
        image_id = await self._contents.image(self.cache, self._state.image_id)
        await self._save(self._state.model_copy(update={"image_id": image_id}))

    @property
    def _contents(self) -> Contents:
        return Contents(self.cloud, self._progress)

    @property
    def _control(self) -> ControlPlane:
        return ControlPlane(
            directory=self.directory,
            ports=self._state.ports,
            rabbit_url=self.rabbit_url,
            cloud=self.cloud,
            apis=self._state.apis,
            schedulers=self._state.schedulers,
            database_url=self._database_url,
        )

    @property
    def _shell_files(self) -> ShellFiles:
        return ShellFiles(
            directory=self.directory,
            cloud=self.cloud,
            rabbit_url=self.rabbit_url,
            hosts=self.hosts,
            scheduler_config=self._control.scheduler_config,
        )

    @property
    def _guest_mark(self) -> dict[str, str]:
        return mark(self.directory, GUESTS)

    async def _end(self) -> list[MarkedProcess]:
        """Daemons first, so that none of them sees its guests or its services vanish; then guests; then the rest."""
        if self._known is None:
            return await self._supervisor.end_marked()
        ended = await self._supervisor.stop_all([*self._agents(), *self._control.services()])
        # While libvirtd is there to note that they are gone.
        if await self._supervisor.marked(GUESTS):
            with self._progress.step("guests") as say:
                guests = await self._supervisor.end_marked(GUESTS)
                say(f"ended {len(guests)} processes")
            ended += guests
        ended += await self._supervisor.stop_all(self._services())
        return ended + await self._supervisor.end_marked()

    def _forget(self) -> None:
        # Its memory of itself goes first: half a lab must not be taken for one.
        (self.directory / FILE_NAME).unlink(missing_ok=True)
        remove_files(self.directory)
        self._known = self._damage = None

    def _services(self) -> tuple[Service, ...]:
        """All, in the order in which they are started."""
        cloud = self.cloud
        of_hosts = [service for each in self.hosts for service in each.services(self._guest_mark)]
        return (
            *rabbitmq.services(self.directory, self._state.ports),
            *(cloud.keystone(), cloud.glance(), cloud.placement()),
            *of_hosts,
            *(self._agents() if self._state.agents else ()),
            *self._control.services(),
        )

    def _agents(self) -> list[Service]:
        return [agents.service(each, self._agent_file(each), self._http_port(each)) for each in self.hosts]

    @staticmethod
    def _agent_file(each: Host) -> Path:
        return each.directory / "sev-agent.toml"

    def _http_port(self, each: Host) -> int:
        return next(known.http_port for known in self._state.hosts if known.name == each.name)

    def _host(self, known: HostState) -> Host:
        directory = self.directory / "hosts" / known.name
        if known.real:
            return RealHost(name=known.name, directory=directory)
        return ComputeHost(name=known.name, directory=directory, slots=known.slots, kind=known.platform)


def _no_host(name: str) -> Host:
    raise LabError(f"the lab has no host '{name}'", remedy="see 'sev-agent lab status'")
