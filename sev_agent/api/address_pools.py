"""The addresses that the operator lets the API give to servers, each to one at a time."""

from collections.abc import Container, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from sev_agent.api.faults import BadRequest, ConflictingRequest
from sev_agent.api.tables import AddressPoolRow, AddressRow, ServerRow
from sev_agent.config import AddressPool, NetworksSection
from sev_agent.schema import Address

_FIELD = "server.networks"


class NoAddress(ConflictingRequest):
    """There is none left, or the one asked for is taken."""

    code = "api.no_address"


class AddressPools:
    """The pools of ``settings``, by the UUID of their network."""

    def __init__(self, settings: NetworksSection) -> None:
        self._pools: Mapping[str, AddressPool] = {pool.network: pool for pool in settings.pools}

    def check(self, network: str, asked: IPv4Address | None, *, servers: int) -> None:
        """Raises ``BadRequest`` where ``asked``, a fixed address for each of so many servers, cannot be given."""
        if asked is None:
            return
        pool = self._pools.get(network)
        if pool is None:
            raise BadRequest(
                f"Fixed IP address {asked} cannot be had: this API gives no addresses on network {network}.",
                field=_FIELD,
                remedy="leave fixed_ip out",
            )
        if not pool.has(asked):
            raise BadRequest(
                f"Fixed IP address {asked} is not one of network {network}: those are {pool.first} to {pool.last}.",
                field=_FIELD,
            )
        if servers > 1:
            raise BadRequest("one fixed_ip is not for several servers", field=_FIELD)

    async def give(
        self, session: AsyncSession, rows: Sequence[ServerRow], asked: Sequence[tuple[str, IPv4Address | None]]
    ) -> None:
        """Give every one of ``rows`` an address for each NIC that is on a network with a pool, in the transaction.

        The rows must be flushed. ``asked`` are network and fixed address of each NIC. Changes ``request`` and ``nics``.
        Raises ``NoAddress`` where there is none left, or the one asked for is taken.
        """
        # In one order for everybody: two requests that wait for each other's pool would wait for ever.
        for network in sorted({network for network, _ in asked} & self._pools.keys()):
            pool = self._pools[network]
            taken = await _taken(session, network)
            free = (address for address in pool.addresses() if address not in taken)
            for row in rows:
                for index, fixed in _on(network, asked):
                    address = _checked(pool, next(free, None) if fixed is None else fixed, taken)
                    taken.add(address)
                    session.add(AddressRow(network_id=network, address=str(address), server_id=row.id))
                    _write_down(row, index, pool, address)


def _on(network: str, asked: Sequence[tuple[str, IPv4Address | None]]) -> list[tuple[int, IPv4Address | None]]:
    """The NICs on ``network`` by their number; those that are content with any address come last."""
    found = [(index, fixed) for index, (wanted, fixed) in enumerate(asked) if wanted == network]
    return sorted(found, key=lambda nic: nic[1] is None)


async def _taken(session: AsyncSession, network: str) -> set[IPv4Address]:
    """What is in use, with the pool locked until the transaction ends. What deleted servers had is free again.

    Not what those had whose host never said that it deleted them: their guests may run until they are purged.
    """
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    await session.execute(insert(AddressPoolRow).values(network_id=network).on_conflict_do_nothing())
    await session.execute(select(AddressPoolRow).where(AddressPoolRow.network_id == network).with_for_update())
    gone = select(ServerRow.id).where(ServerRow.deleted_at.is_not(None), ServerRow.task_state.is_(None))
    await session.execute(
        delete(AddressRow)
        .where(AddressRow.network_id == network, AddressRow.server_id.in_(gone))
        .execution_options(synchronize_session=False)
    )
    found = await session.scalars(select(AddressRow.address).where(AddressRow.network_id == network))
    return {IPv4Address(address) for address in found}


def _checked(pool: AddressPool, address: IPv4Address | None, taken: Container[IPv4Address]) -> IPv4Address:
    if address is None:
        raise NoAddress(
            f"No more addresses: all of {pool.first} to {pool.last} of network {pool.network} are taken.",
            field=_FIELD,
            remedy="delete servers, or ask the operator for a larger pool",
        )
    if address in taken:
        raise NoAddress(f"Fixed IP address {address} is already in use.", field=_FIELD)
    return address


def _write_down(row: ServerRow, index: int, pool: AddressPool, address: IPv4Address) -> None:
    """In what the host is sent, and in what is shown."""
    interface = f"{address}/{pool.cidr.prefixlen}"
    given = Address.model_validate({"interface": interface, "gateway": pool.gateway, "dns": pool.dns})
    instance: dict[str, Any] = row.request["instance"]
    networks = _with(instance["networks"], index, address=given.model_dump(mode="json"))
    row.request = {**row.request, "instance": {**instance, "networks": networks}}
    row.nics = _with(row.nics, index, address=str(address))


def _with(entries: Sequence[Mapping[str, Any]], index: int, **values: Any) -> list[dict[str, Any]]:
    return [{**entry, **(values if number == index else {})} for number, entry in enumerate(entries)]
