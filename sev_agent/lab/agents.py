"""The host daemons of a lab: their configuration, and how they are started."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from sev_agent.config import HypervisorSection
from sev_agent.lab.host import Host
from sev_agent.lab.openstack import REGION, SERVICE_PROJECT, SERVICE_USER, OpenStack
from sev_agent.lab.probe import http_answers
from sev_agent.lab.service import Service

Values: TypeAlias = Mapping[str, str | int | list[str]]
Sections: TypeAlias = Mapping[str, Values]


def configuration(host: Host, *, http_port: int, rabbit_url: str, cloud: OpenStack) -> str:
    """The text of ``sev-agent.toml`` for the daemon of ``host``."""
    # libvirt asks the real processor how many guests there is room for; under a simulated platform it finds none.
    limit: Values = {} if host.slots is None else {"limit": host.slots}
    own = host.firmware_descriptors
    firmware: Values = (
        {} if own is None else {"firmware_dirs": [str(own), *map(str, HypervisorSection().firmware_dirs)]}
    )
    return _toml(
        {
            "host": {"name": host.name, "state_dir": str(host.directory / "agent")},
            "hypervisor": {"uri": host.uri, "virt_type": host.virt_type, **firmware},
            "encryption": {"platform_root": str(host.platform_root), **limit},
            "messaging": {"url": rabbit_url},
            "auth": {
                "type": "password",
                "auth_url": f"{cloud.keystone_url}/v3",
                "username": SERVICE_USER,
                "password": cloud.password,
                "project_name": SERVICE_PROJECT,
                "region_name": REGION,
            },
            "glance": {"endpoint": cloud.glance_url},
            "placement": {"endpoint": cloud.placement_url},
            "http": {"host": "127.0.0.1", "port": http_port},
        }
    )


def service(host: Host, configuration_file: Path, http_port: int) -> Service:
    """The daemon of ``host``, from the Python that runs the lab."""
    url = f"http://127.0.0.1:{http_port}"
    return Service(
        name=f"agent-{host.name}",
        kind="host daemon",
        address=url,
        platform=host.platform,
        command=(sys.executable, "-m", "sev_agent", "run", "--config", str(configuration_file)),
        port=http_port,
        ready=lambda: http_answers(f"{url}/readyz"),
        ready_timeout=60,
        stop_timeout=45,
    )


def _toml(sections: Sections) -> str:
    """Strings, whole numbers and lists of them are written alike in JSON and in TOML."""
    lines: list[str] = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items()), ""]
    return "\n".join(lines)
