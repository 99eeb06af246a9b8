"""The API and scheduler processes of a lab: their configuration, their database, and how they are started."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sev_agent.durable import write_durably
from sev_agent.lab import daemons
from sev_agent.lab.daemons import Sections
from sev_agent.lab.openstack import OpenStack
from sev_agent.lab.service import Service
from sev_agent.subprocesses import run_bounded

_UPGRADE_SECONDS = 60.0
_MAX_OUTPUT = 64 * 1024

# More than any lab has slots: what is tried there is the slots' end, not the quota's.
_QUOTA = {"servers": 200, "vcpus": 400, "ram_mb": 1_048_576}

# What a crash interrupted goes on while somebody watches, and a crowd on a slow machine is not given up.
_UPKEEP = {"interval": 5, "schedule_deadline": 30, "schedule_attempts": 20}

# Its tenants are whoever runs the lab, who can reach this machine's loopback anyway.
_NETWORKS = {"auto": "user"}


def port_names(apis: int, schedulers: int) -> tuple[str, ...]:
    """The names of the ports that so many processes need."""
    return (
        *(name for api in _names("api", apis) for name in (api, _http(api))),
        *(_http(scheduler) for scheduler in _names("scheduler", schedulers)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """So many processes of each kind, side by side; the first API stands in the catalog."""

    directory: Path
    ports: Mapping[str, int]
    rabbit_url: str
    cloud: OpenStack
    apis: int
    schedulers: int
    database_url: str | None = None

    @property
    def compute_urls(self) -> tuple[str, ...]:
        """The addresses of the compute API, as a catalog has them."""
        return tuple(f"http://127.0.0.1:{self.ports[name]}/v2.1" for name in _names("api", self.apis))

    @property
    def scheduler_config(self) -> Path | None:
        """The configuration file of the first scheduler."""
        return self._file("scheduler") if self.schedulers else None

    async def prepare(self) -> None:
        """Write the configurations, and bring the database up to date. Blocks shortly on the disk.

        Raises ``ProgramError`` where the database cannot be made.
        """
        for name in _names("api", self.apis):
            self._write(name, self._api(name))
        for name in _names("scheduler", self.schedulers):
            self._write(name, self._scheduler(name))
        if self.apis:
            upgrade = daemons.command("db", "upgrade", "--config", str(self._file("api")))
            await run_bounded(upgrade, timeout=_UPGRADE_SECONDS, max_output=_MAX_OUTPUT)

    def services(self) -> list[Service]:
        return [
            *(
                daemons.service(
                    name,
                    "compute API",
                    ("api", "--config", str(self._file(name))),
                    http_port=self.ports[_http(name)],
                    address=url,
                )
                for name, url in zip(_names("api", self.apis), self.compute_urls, strict=True)
            ),
            *(
                daemons.service(
                    name,
                    "scheduler",
                    ("scheduler", "--config", str(self._file(name))),
                    http_port=self.ports[_http(name)],
                )
                for name in _names("scheduler", self.schedulers)
            ),
        ]

    def _api(self, name: str) -> Sections:
        return {
            "api": {"host": "127.0.0.1", "port": self.ports[name]},
            "database": {"url": self.database_url or f"sqlite:///{self.directory / 'api/api.sqlite'}"},
            "glance": {"endpoint": self.cloud.glance_url},
            "quota": _QUOTA,
            "networks": _NETWORKS,
            "upkeep": _UPKEEP,
            **self._common(name),
        }

    def _scheduler(self, name: str) -> Sections:
        return {
            "scheduler": {"name": name},
            "placement": {"endpoint": self.cloud.placement_url},
            **self._common(name),
        }

    def _common(self, name: str) -> Sections:
        return {
            "messaging": {"url": self.rabbit_url},
            "auth": daemons.auth_section(self.cloud),
            "http": daemons.http_section(self.ports[_http(name)]),
        }

    def _file(self, name: str) -> Path:
        return self.directory / "api" / f"{name}.toml"

    def _write(self, name: str, sections: Sections) -> None:
        path = self._file(name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(path, daemons.toml(sections).encode())


def _names(kind: str, count: int) -> list[str]:
    """``kind`` alone for the first process, numbered for the others."""
    return [kind if number == 1 else f"{kind}-{number}" for number in range(1, count + 1)]


def _http(name: str) -> str:
    """The name of the port where ``name`` serves health and metrics."""
    return f"{name}-http"
