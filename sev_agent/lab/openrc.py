"""What a shell reads to speak to the lab: one file for each user."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sev_agent.durable import write_durably
from sev_agent.lab.accounts import ADMIN
from sev_agent.lab.host import Host
from sev_agent.lab.openstack import REGION, OpenStack
from sev_agent.lab.tenants import TENANTS

DIRECTORY = "openrc.d"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellFiles:
    """``openrc`` for the operator, who may do everything, and ``openrc.d/USER`` for every tenant."""

    directory: Path
    cloud: OpenStack
    rabbit_url: str
    hosts: Sequence[Host]

    def write(self) -> None:
        """Blocks on the disk."""
        tools = {"PATH": f'{shlex.quote(str(self._link_tools()))}:"$PATH"'}
        operator = self._user(ADMIN, ADMIN, self.cloud.password) | {
            "SEV_AGENT_BROKER_URL": shlex.quote(self.rabbit_url)
        }
        for first in self.hosts[:1]:
            # The host that commands ask which name none.
            operator |= {"SEV_AGENT_HOST": first.name, "LIBVIRT_DEFAULT_URI": shlex.quote(first.uri)}
        _write(self.directory / "openrc", operator | tools)
        (self.directory / DIRECTORY).mkdir(mode=0o700, exist_ok=True)
        for tenant in TENANTS:
            variables = self._user(tenant.name, tenant.project, tenant.password(self.cloud.password))
            _write(self.directory / DIRECTORY / tenant.name, variables | tools)

    def _user(self, name: str, project: str, password: str) -> dict[str, str]:
        return {
            "OS_AUTH_URL": f"{self.cloud.keystone_url}/v3",
            "OS_IDENTITY_API_VERSION": "3",
            "OS_USERNAME": name,
            "OS_PASSWORD": shlex.quote(password),
            "OS_PROJECT_NAME": project,
            "OS_USER_DOMAIN_NAME": "Default",
            "OS_PROJECT_DOMAIN_NAME": "Default",
            "OS_REGION_NAME": REGION,
        }

    def _link_tools(self) -> Path:
        """A directory of the two commands alone: both environments have a Python that a shell should not find."""
        tools = self.directory / "bin"
        tools.mkdir(exist_ok=True)
        for command in (self.cloud.environment / "bin/openstack", Path(sys.executable).with_name("sev-agent")):
            link = tools / command.name
            link.unlink(missing_ok=True)
            link.symlink_to(command)
        return tools


def _write(path: Path, variables: Mapping[str, str]) -> None:
    write_durably(path, "".join(f"export {name}={value}\n" for name, value in variables.items()).encode())
