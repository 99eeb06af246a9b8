"""Who somebody is to the lab's cloud: as a file that a shell reads, and for the stock ``openstack`` command."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sev_agent.durable import write_durably
from sev_agent.lab.accounts import ADMIN
from sev_agent.lab.host import Host
from sev_agent.lab.openstack import REGION, OpenStack
from sev_agent.lab.tenants import TENANTS
from sev_agent.subprocesses import run_bounded

DIRECTORY = "openrc.d"
_COMMAND_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One who may log in at Keystone."""

    name: str
    project: str
    password: str

    def variables(self, cloud: OpenStack) -> dict[str, str]:
        """What every OpenStack client reads of its environment."""
        return {
            "OS_AUTH_URL": f"{cloud.keystone_url}/v3",
            "OS_IDENTITY_API_VERSION": "3",
            "OS_USERNAME": self.name,
            "OS_PASSWORD": self.password,
            "OS_PROJECT_NAME": self.project,
            "OS_USER_DOMAIN_NAME": "Default",
            "OS_PROJECT_DOMAIN_NAME": "Default",
            "OS_REGION_NAME": REGION,
        }


def users(cloud: OpenStack) -> dict[str, User]:
    """The operator and the tenants of a lab, by name."""
    operator = User(name=ADMIN, project=ADMIN, password=cloud.password)
    tenants = (User(name=each.name, project=each.project, password=each.password(cloud.password)) for each in TENANTS)
    return {user.name: user for user in (operator, *tenants)}


@dataclass(frozen=True, slots=True)
class StockClient:
    """The stock ``openstack`` command in the hands of ``user``."""

    cloud: OpenStack
    user: User

    async def run(self, *arguments: str, timeout: float = _COMMAND_SECONDS) -> str:  # noqa: ASYNC109 - run_bounded's
        """What it prints. Raises ``ProgramFailed`` with what it says."""
        own = self.user.variables(self.cloud)
        # Whatever other cloud the shell was set up for.
        foreign = (f"--unset={name}" for name in os.environ if name.startswith("OS_") and name not in own)
        command = ("env", *foreign, str(self.cloud.environment / "bin/openstack"), *arguments)
        completed = await run_bounded(command, timeout=timeout, environment=own)
        return completed.stdout.decode()

    async def ask(self, *arguments: str, timeout: float = _COMMAND_SECONDS) -> Any:  # noqa: ASYNC109 - as above
        """The same, read from its JSON."""
        return json.loads(await self.run(*arguments, "-f", "json", timeout=timeout))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellFiles:
    """``openrc`` for the operator, who may do everything, and ``openrc.d/USER`` for every tenant."""

    directory: Path
    cloud: OpenStack
    rabbit_url: str
    hosts: Sequence[Host]
    scheduler_config: Path | None = None

    def write(self) -> None:
        """Blocks on the disk."""
        own = {"SEV_AGENT_LAB_DIR": str(self.directory), "SEV_AGENT_BROKER_URL": self.rabbit_url}
        for first in self.hosts[:1]:
            # The host that commands ask which name none.
            own |= {"SEV_AGENT_HOST": first.name, "LIBVIRT_DEFAULT_URI": first.uri}
        if self.scheduler_config is not None:
            # For 'sev-agent hosts'.
            own["SEV_AGENT_CONFIG"] = str(self.scheduler_config)
        tools = self._link_tools()
        (self.directory / DIRECTORY).mkdir(mode=0o700, exist_ok=True)
        for name, user in users(self.cloud).items():
            if name == ADMIN:
                _write(self.directory / "openrc", user.variables(self.cloud) | own, tools)
            else:
                _write(self.directory / DIRECTORY / name, user.variables(self.cloud), tools)

    def _link_tools(self) -> Path:
        """A directory of the two commands alone: both environments have a Python that a shell should not find."""
        tools = self.directory / "bin"
        tools.mkdir(exist_ok=True)
        for command in (self.cloud.environment / "bin/openstack", Path(sys.executable).with_name("sev-agent")):
            link = tools / command.name
            link.unlink(missing_ok=True)
            link.symlink_to(command)
        return tools


def _write(path: Path, variables: Mapping[str, str], tools: Path) -> None:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f'export PATH={shlex.quote(str(tools))}:"$PATH"')
    write_durably(path, ("\n".join(lines) + "\n").encode())
