"""The API's daemon: its parts made and connected, in one place."""

import gc
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack

import aiohttp
import structlog

from sev_agent import __version__
from sev_agent.api.app import ComputeApi
from sev_agent.api.caller import Authenticator, KeystoneAuthenticator, LoopbackAuthenticator
from sev_agent.api.casts import Casts
from sev_agent.api.cloud_routes import CloudRoutes
from sev_agent.api.creation import Creation
from sev_agent.api.database import Database, DatabaseUnavailable
from sev_agent.api.events import Events
from sev_agent.api.flavor_routes import FlavorRoutes
from sev_agent.api.flavors import Flavors
from sev_agent.api.handovers import Handovers
from sev_agent.api.keypair_routes import KeypairRoutes
from sev_agent.api.keypairs import Keypairs
from sev_agent.api.listening_socket import ListeningSocket
from sev_agent.api.metrics import ApiMetrics
from sev_agent.api.network_routes import NetworkRoutes
from sev_agent.api.routes import Route
from sev_agent.api.server_actions import ServerActions
from sev_agent.api.server_routes import ServerRoutes
from sev_agent.api.servers import Servers
from sev_agent.api.tag_routes import TagRoutes
from sev_agent.api.tenant_images import TenantImages
from sev_agent.api.told import Listener
from sev_agent.api.upkeep import Upkeep
from sev_agent.api.withdrawals import Withdrawals
from sev_agent.config import ApiConfig
from sev_agent.messaging import topology
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.consumer import NotificationConsumer
from sev_agent.observe.health import Dependency, Health
from sev_agent.observe.http import HttpEndpoints
from sev_agent.observe.page import StatusPage, Table, counted
from sev_agent.openstack.identity import Identity, KeystoneIdentity, NoIdentity
from sev_agent.openstack.tokens import KeystoneTokens
from sev_agent.service import ServiceManager, Supervisor, feed_watchdog

log = structlog.stdlib.get_logger(__name__)

_TASK_STOP_SECONDS = 5.0
_BROKER_TASK = "broker"


async def run_api(config: ApiConfig) -> None:
    """Run the API until SIGTERM or SIGINT. Raises what made it stop otherwise."""
    manager = ServiceManager(os.environ)
    supervisor = Supervisor(
        stop_timeout=config.api.stop_timeout + _TASK_STOP_SECONDS,
        on_stop=lambda: manager.notify(STOPPING=1, STATUS="stopping"),
    )
    supervisor.stop_on_signals()
    log.info("api.starting", version=__version__)
    async with AsyncExitStack() as closing:
        session = await closing.enter_async_context(aiohttp.ClientSession())
        service = ApiService(config, session, manager, supervisor)
        closing.push_async_callback(service.close)
        await service.prepare()
        service.start()
        # What is there by now lives as long as the process: the collector would look through it, 50 ms each time.
        gc.collect()
        gc.freeze()
        await supervisor.wait()


def every_route(
    config: ApiConfig,
    *,
    database: Database,
    images: TenantImages,
    casts: Casts,
    changes: Listener,
    withdrawals: Withdrawals,
    handovers: Handovers,
) -> Iterable[Route]:
    """Every group of routes; a new group is a line here."""
    zone, most = config.api.availability_zone, config.api.max_limit
    flavors, servers = Flavors(database), Servers(database)
    creation = Creation(
        database=database,
        flavors=flavors,
        images=images,
        casts=casts,
        withdrawals=withdrawals,
        handovers=handovers,
        config=config,
    )
    actions = ServerActions(database, casts, changes, config.upkeep)
    return (
        *FlavorRoutes(flavors, max_limit=most).routes(),
        *ServerRoutes(servers, creation, actions, zone=zone, max_limit=most).routes(),
        *TagRoutes(servers).routes(),
        *KeypairRoutes(Keypairs(database), max_limit=most).routes(),
        *CloudRoutes(database, servers, config.quota, zone=zone).routes(),
        *NetworkRoutes(servers, config.networks).routes(),
    )


class ApiService:
    """Everything of one API process."""

    def __init__(
        self, config: ApiConfig, session: aiohttp.ClientSession, manager: ServiceManager, supervisor: Supervisor
    ) -> None:
        self._config = config
        self._manager = manager
        self._supervisor = supervisor
        self._metrics = ApiMetrics()
        dependencies = [Dependency.DATABASE, Dependency.BROKER]
        if config.auth.type == "password":
            dependencies.append(Dependency.KEYSTONE)
        self._tokens: KeystoneTokens | None = None
        self._health = Health(dependencies, on_change=self._on_health)
        self._database = Database(config.database)
        self._broker = Broker(
            config.messaging.url.get_secret_value(),
            connection_name=f"sev-agent api, process {os.getpid()} on {socket.gethostname()}",
            connect_timeout=config.messaging.connect_timeout,
            reconnect_max=config.messaging.reconnect_max,
            publish_timeout=config.messaging.publish_timeout,
            on_change=self._on_broker,
        )
        self._rpc = RpcClient(self._broker, max_message_bytes=config.messaging.max_message_bytes)
        self._casts = Casts(self._rpc, call_timeout=config.upkeep.call_timeout)
        self._changes = Listener(config.upkeep)
        withdrawals = Withdrawals(self._database, self._changes)
        handovers = Handovers(self._database)
        events = Events(self._database, self._casts, self._changes, self._metrics)
        self._ear = NotificationConsumer(
            self._broker,
            queue=topology.api_queue(),
            handle=events.hear,
            max_message_bytes=config.messaging.max_message_bytes,
        )
        self._upkeep = Upkeep(
            config,
            database=self._database,
            casts=self._casts,
            listener=self._changes,
            withdrawals=withdrawals,
            handovers=handovers,
            metrics=self._metrics,
            broker_is_up=lambda: self._broker.is_up,
        )
        self._identity, authenticator = self._authentication(session)
        self._images = TenantImages(session, self._identity, config.glance, on_request=self._metrics.count_request)
        routes = every_route(
            config,
            database=self._database,
            images=self._images,
            casts=self._casts,
            changes=self._changes,
            withdrawals=withdrawals,
            handovers=handovers,
        )
        api = ComputeApi(routes, authenticator=authenticator, settings=config.api, metrics=self._metrics)
        self._socket = ListeningSocket(api.app, config.api, on_listening=self._on_listening)
        self._http = HttpEndpoints(
            config.http,
            health=self._health,
            metrics=self._metrics,
            page=StatusPage(f"API on {socket.gethostname()}", health=self._health, tables=self._tables),
            is_alive=self._is_alive,
        )
        self._metrics.observe_health(self._health)

    async def prepare(self) -> None:
        """Raises ``WrongRevision``. A database that is away is waited for later."""
        try:
            await self._database.check_revision()
        except DatabaseUnavailable as error:
            log.warning("api.database.away", error=str(error))

    def start(self) -> None:
        """Start every part; they are stopped in the reverse order: the listening socket first."""
        parts = {
            "database": self._database.watch(self._on_database),
            _BROKER_TASK: self._broker.run(),
            "rpc-replies": self._rpc.run(),
            "notifications": self._ear.run(),
            "upkeep": self._upkeep.run(),
            "http": self._http.run(),
            "watchdog": feed_watchdog(self._manager, self._is_alive),
            "api": self._socket.run(),
        }
        if self._tokens is not None:
            parts["keystone"] = self._tokens.watch()
        for name, work in parts.items():
            self._supervisor.start(name, work)

    async def close(self) -> None:
        """Let go of the database, when every part has stopped."""
        await self._database.close()

    def _tables(self) -> Iterator[Table]:
        yield counted("Notifications", self._metrics.notifications)
        yield counted("Servers looked after", self._metrics.upkeep)

    def _authentication(self, session: aiohttp.ClientSession) -> tuple[Identity, Authenticator]:
        auth = self._config.auth
        if auth.type == "none":
            log.warning("api.without_keystone", listens_on=self._config.api.host, everyone_is="admin")
            return NoIdentity(), LoopbackAuthenticator()
        identity = KeystoneIdentity(session, auth, on_request=self._metrics.count_request)
        tokens = KeystoneTokens(
            session,
            identity,
            auth,
            self._config.tokens,
            on_request=self._metrics.count_request,
            on_reached=self._on_keystone,
        )
        self._tokens = tokens
        return identity, KeystoneAuthenticator(tokens)

    def _on_broker(self, is_up: bool) -> None:  # noqa: FBT001 - the callback's one argument
        self._health.note(Dependency.BROKER, None if is_up else self._broker.fault or "connection lost")

    def _on_database(self, reason: str | None) -> None:
        self._health.note(Dependency.DATABASE, reason)

    def _on_keystone(self, reason: str | None) -> None:
        self._health.note(Dependency.KEYSTONE, reason)

    def _on_health(self) -> None:
        if not self._supervisor.is_stopping:
            self._manager.notify(STATUS=self._health.summary)

    def _on_listening(self) -> None:
        self._manager.notify(READY=1, STATUS=self._health.summary)

    def _is_alive(self) -> bool:
        return self._supervisor.is_running(_BROKER_TASK) and self._supervisor.is_running("api")
