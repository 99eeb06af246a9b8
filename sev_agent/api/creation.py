"""From a request for servers to rows and casts to the schedulers: the method's check, the quota, row first."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog

from sev_agent.api import quota
from sev_agent.api.address_pools import AddressPools, NoAddress
from sev_agent.api.addresses import known_nics
from sev_agent.api.caller import Caller
from sev_agent.api.casts import Casts
from sev_agent.api.database import Database, DatabaseUnavailable
from sev_agent.api.faults import BadRequest, Forbidden, ItemNotFound
from sev_agent.api.flavors import Flavor, Flavors
from sev_agent.api.handovers import Handovers
from sev_agent.api.quota import QuotaExceeded, Usage
from sev_agent.api.server_bodies import MAX_METADATA, NewServer
from sev_agent.api.servers import merged
from sev_agent.api.state import Task, Vm
from sev_agent.api.tables import KeypairRow, ServerRow
from sev_agent.api.tenant_images import TenantImages
from sev_agent.api.withdrawals import Withdrawals
from sev_agent.config import ApiConfig, NetworksSection
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.openstack.glance import Image
from sev_agent.schema import Instance, Network, NetworkKind, ScheduleArguments, parse
from sev_agent.sev.generation import Generation
from sev_agent.sev.rules import encryption_request
from sev_agent.sev.sizes import Sizes, check_sizes
from sev_agent.uninterrupted import uninterrupted

log = structlog.stdlib.get_logger(__name__)

_FOREIGN = re.compile(r"[^A-Za-z0-9 ._:@+-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """A request that can succeed."""

    asked: NewServer
    flavor: Flavor
    image: Image
    generation: Generation
    networks: tuple[Network, ...]
    public_keys: dict[str, str]
    host: str | None


class Creation:
    """Makes servers."""

    def __init__(
        self,
        *,
        database: Database,
        flavors: Flavors,
        images: TenantImages,
        casts: Casts,
        withdrawals: Withdrawals,
        handovers: Handovers,
        config: ApiConfig,
    ) -> None:
        self._database = database
        self._flavors = flavors
        self._images = images
        self._casts = casts
        self._withdrawals = withdrawals
        self._handovers = handovers
        self._config = config
        self._pools = AddressPools(config.networks)

    async def create(self, caller: Caller, asked: NewServer, request_id: str) -> list[ServerRow]:
        """Write the servers down and hand them to the schedulers; as many as the quota allows, or none.

        Raises ``BadRequest`` and the refusals of the rules, ``Forbidden`` (quota), ``Unavailable``.
        """
        if asked.count > self._config.api.max_servers_per_request:
            raise BadRequest(
                f"at most {self._config.api.max_servers_per_request} servers can be created at once",
                field="server.max_count",
            )
        merged({}, asked.metadata, MAX_METADATA)
        checked = await self._check(caller, asked)
        rows = self._rows(caller, checked, request_id)
        ids = [row.id for row in rows]
        try:
            rows = await self._write(caller, rows, asked)
            reached(CrashPoint.CREATE_AFTER_ROW)
            for row in rows:
                await self._casts.schedule(row)
                reached(CrashPoint.CREATE_AFTER_CAST)
        except (QuotaExceeded, NoAddress):
            raise
        except DatabaseUnavailable:
            # Whether they were written down is not known.
            self._withdrawals.remember(ids)
            raise
        except BaseException as error:
            log.warning("server.create.failed", error=str(error))
            await uninterrupted(self._withdrawals.withdraw(ids))
            raise
        self._handovers.remember(row.id for row in rows)
        log.info("server.create.accepted", instance_uuids=[row.id for row in rows])
        return rows

    async def _check(self, caller: Caller, asked: NewServer) -> _Checked:
        host = self._host(caller, asked.availability_zone)
        networks = _networks(self._config.networks, asked)
        for network, address in asked.addresses:
            self._pools.check(network, address, servers=asked.count)
        public_keys = await self._public_keys(caller, asked.key_name)
        try:
            flavor = await self._flavors.get(caller, asked.flavor_id)
        except ItemNotFound as error:
            raise BadRequest(error.message, field="server.flavorRef") from None
        image = await self._images.get(caller, asked.image_id)
        bounds = self._config.encryption.policy_bounds
        encryption = encryption_request(flavor.extra_specs, image.properties, bounds=bounds)
        check_sizes(
            Sizes(
                ram=flavor.memory_mb,
                disk=flavor.root_gb,
                min_ram=image.min_ram,
                min_disk=image.min_disk,
                virtual_size=image.virtual_size,
            )
        )
        return _Checked(
            asked=asked,
            flavor=flavor,
            image=image,
            generation=encryption.generation,
            networks=networks,
            public_keys=public_keys,
            host=host,
        )

    def _host(self, caller: Caller, asked: str | None) -> str | None:
        """The host that an administrator names as ``zone:host``."""
        if asked is None:
            return None
        zone, _, rest = asked.partition(":")
        host, _, node = rest.partition(":")
        if zone not in {"", self._config.api.availability_zone} or (not zone and not host):
            raise BadRequest(
                f"The requested availability zone is not available: {zone!r}", field="server.availability_zone"
            )
        if not host and not node:
            return None
        if not caller.is_admin:
            raise Forbidden("only an administrator may name the host of a server", field="server.availability_zone")
        return host or node

    async def _public_keys(self, caller: Caller, name: str | None) -> dict[str, str]:
        if name is None:
            return {}
        async with self._database.reading() as session:
            row = await session.get(KeypairRow, (caller.user_id, name))
        if row is None:
            raise BadRequest("Invalid key_name provided.", field="server.key_name", remedy="openstack keypair list")
        return {name: row.public_key}

    def _rows(self, caller: Caller, checked: _Checked, request_id: str) -> list[ServerRow]:
        asked, now = checked.asked, datetime.now(UTC)
        reservation = f"r-{secrets.token_hex(4)}"
        names = [asked.name] if asked.count == 1 else [f"{asked.name}-{index + 1}" for index in range(asked.count)]
        return [
            self._row(caller, checked, name, now, index, reservation_id=reservation, request_id=request_id)
            for index, name in enumerate(names)
        ]

    def _row(self, caller: Caller, checked: _Checked, name: str, now: datetime, index: int, **values: str) -> ServerRow:
        asked, flavor, uuid = checked.asked, checked.flavor, uuid4()
        instance = _instance(caller, checked, uuid, name)
        kept = {
            "name": flavor.name,
            "vcpus": flavor.vcpus,
            "memory_mb": flavor.memory_mb,
            "root_gb": flavor.root_gb,
            "extra_specs": dict(flavor.extra_specs),
        }
        return ServerRow(
            id=str(uuid),
            project_id=caller.project_id,
            user_id=caller.user_id,
            name=name,
            description=asked.description,
            created_at=now,
            updated_at=now,
            vm_state=Vm.BUILDING.value,
            task_state=Task.SCHEDULING.value,
            forced_host=checked.host,
            flavor_id=flavor.id,
            flavor=kept,
            vcpus=flavor.vcpus,
            memory_mb=flavor.memory_mb,
            image_id=asked.image_id,
            key_name=asked.key_name,
            launch_index=index,
            properties=dict(asked.metadata),
            tags=sorted(set(asked.tags)),
            request={"instance": instance.model_dump(mode="json"), "generation": checked.generation.value},
            nics=known_nics(instance),
            attempt=0,
            casts=0,
            looks=0,
            look_at=now + timedelta(seconds=self._config.upkeep.schedule_deadline),
            **values,
        )

    async def _write(self, caller: Caller, rows: Sequence[ServerRow], asked: NewServer) -> list[ServerRow]:
        """Those of ``rows``, which are all alike, that the quota allows."""
        each = Usage(servers=1, vcpus=rows[0].vcpus, ram_mb=rows[0].memory_mb)
        async with self._database.writing() as session:
            await quota.hold(session, caller.project_id)
            used = await quota.usage(session, caller.project_id)
            count = quota.affordable(self._config.quota, used, each, least=asked.min_count, most=len(rows))
            written = list(rows[:count])
            session.add_all(written)
            await session.flush()
            await self._pools.give(session, written, asked.addresses)
        return written


def _instance(caller: Caller, checked: _Checked, uuid: UUID, name: str) -> Instance:
    asked, flavor = checked.asked, checked.flavor
    values: dict[str, Any] = {
        "uuid": uuid,
        "name": _plain(name),
        "project_id": caller.project_id,
        "user_id": caller.user_id,
        "flavor": {
            "name": flavor.name,
            "vcpus": flavor.vcpus,
            "memory_mb": flavor.memory_mb,
            "root_gb": flavor.root_gb,
            "extra_specs": dict(flavor.extra_specs),
        },
        "image": {"id": asked.image_id},
        "networks": checked.networks,
        "user_data": asked.user_data,
        "public_keys": checked.public_keys,
        "metadata": dict(asked.metadata),
    }
    # The whole as the schedulers will check it: what they would refuse is refused here, where somebody hears it.
    checked_again = parse(ScheduleArguments, {"instance": values, "host": checked.host})
    return checked_again.instance


def _plain(name: str) -> str:
    """The name as hosts take it, where it becomes part of other names: a server's owner may call it anything."""
    kept = _FOREIGN.sub("-", name).strip(" ").lstrip("._:@+- ")
    return kept or "server"


def _networks(settings: NetworksSection, asked: NewServer) -> tuple[Network, ...]:
    match asked.networks:
        case "none":
            return (Network(type=NetworkKind.NONE),)
        case "auto" | ():
            return (Network(type=NetworkKind(settings.auto)),)
        case named:
            offered = dict(entry.split("=", 1) for entry in settings.offered)
            return tuple(_network(offered, request.uuid) for request in named)


def _network(offered: dict[str, str], uuid: str) -> Network:
    if uuid not in offered:
        raise BadRequest(
            f"Network {uuid} could not be found.",
            field="server.networks",
            remedy="use --no-network, --auto-network, or one of the networks that the operator offers",
        )
    kind, _, source = offered[uuid].partition(":")
    return Network(type=NetworkKind(kind), source=source)
