"""What a lab remembers between commands: its ports, its passwords, its hosts. Nothing about processes."""

import secrets
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sev_agent.durable import write_durably
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.service import LabError

FILE_NAME = "lab.json"

# Below what Linux gives to outgoing connections (from 32768), so that none of them takes a lab's port by chance.
_PORTS = range(20_000, 32_000)


PLATFORMS = (Kind.SEV, Kind.SEV_ES, Kind.NONE, Kind.SEV_SNP)
"""What hosts are where nobody chooses: each another, in this order, again and again."""


class HostState(BaseModel):
    """A compute host of the lab.

    ``platform`` is what is simulated; ``slots`` how many encrypted guests each of its pools has room for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    http_port: int
    slots: int = Field(ge=1)
    platform: Kind = Kind.SEV
    real: bool = False


class LabState(BaseModel):
    """The file ``lab.json``.

    ``agents`` says whether the hosts' daemons belong to the lab; ``apis`` and ``schedulers`` count those processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ports: dict[str, int]
    password: str
    hosts: tuple[HostState, ...] = ()
    agents: bool = True
    apis: int = Field(default=0, ge=0)
    schedulers: int = Field(default=0, ge=0)
    image_id: UUID | None = None
    cache: str

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """Read the state of the lab at ``directory``; ``None`` where there is none. Blocks on the disk.

        Raises ``LabError`` for a file that is not one.
        """
        path = directory / FILE_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            # Not the error's own text, which would show the password.
            faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'file'}: {f['msg']}" for f in error.errors())
            raise LabError(
                f"{path} cannot be used: {faults}", remedy=f"end the lab: sev-agent lab down --purge --dir {directory}"
            ) from None

    @classmethod
    def create(cls, port_names: Iterable[str], cache: Path) -> Self:
        names = tuple(port_names)
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        return cls(ports=ports, password=secrets.token_urlsafe(18), cache=str(cache))

    def with_ports(self, names: Iterable[str]) -> Self:
        """The same lab with a port for each of ``names``; those that are known stay."""
        missing = [name for name in names if name not in self.ports]
        taken = {*self.ports.values(), *(host.http_port for host in self.hosts)}
        found = dict(zip(missing, free_ports(len(missing), taken), strict=True))
        return self.model_copy(update={"ports": {**self.ports, **found}})

    def with_hosts(self, count: int, slots: int, *, platforms: Sequence[Kind] = (), real: bool = False) -> Self:
        """The same lab with hosts ``compute-1`` ... ``compute-<count>``; those that are known keep what they have.

        ``platforms`` are those of the first hosts, in order. Raises ``LabError`` where a known host has another.
        """
        known = {host.name: host for host in self.hosts}
        names = [f"compute-{number}" for number in range(1, count + 1)]
        taken = {*self.ports.values(), *(host.http_port for host in self.hosts)}
        ports = iter(free_ports(sum(name not in known for name in names), taken))
        wanted = (*platforms, *(PLATFORMS[number % len(PLATFORMS)] for number in range(len(platforms), count)))
        for name, platform in zip(names, platforms, strict=False):
            if name in known and known[name].platform is not platform:
                raise LabError(
                    f"{name} has platform {known[name].platform}, and keeps it",
                    remedy="make another lab (--dir), or end this one with 'sev-agent lab down --purge'",
                )
        hosts = tuple(
            known.get(name) or HostState(name=name, http_port=next(ports), slots=slots, platform=platform, real=real)
            for name, platform in zip(names, wanted, strict=True)
        )
        return self.model_copy(update={"hosts": hosts})

    def save(self, directory: Path) -> None:
        """Blocks on the disk."""
        write_durably(directory / FILE_NAME, self.model_dump_json(indent=2).encode() + b"\n")


def free_ports(count: int, taken: Iterable[int] = ()) -> tuple[int, ...]:
    """``count`` different TCP ports that are free on loopback now. Raises ``LabError`` when there are not so many."""
    excluded = set(taken)
    found: list[int] = []
    start = secrets.randbelow(len(_PORTS))
    with ExitStack() as held:
        for offset in range(len(_PORTS)):
            if len(found) == count:
                return tuple(found)
            port = _PORTS[(start + offset) % len(_PORTS)]
            if port not in excluded and _bind(port, held):
                found.append(port)
    raise LabError(f"{count} free ports on 127.0.0.1 are not to be had", remedy="end what listens there")


def _bind(port: int, held: ExitStack) -> bool:
    probe = held.enter_context(socket.socket())
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
