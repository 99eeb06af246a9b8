"""The host daemons of a lab: their configuration, and how they are started."""

from pathlib import Path

from sev_agent.config import HypervisorSection
from sev_agent.lab import daemons
from sev_agent.lab.daemons import Values
from sev_agent.lab.host import Host
from sev_agent.lab.openstack import OpenStack
from sev_agent.lab.service import Service


def configuration(host: Host, *, http_port: int, rabbit_url: str, cloud: OpenStack) -> str:
    """The text of ``sev-agent.toml`` for the daemon of ``host``."""
    # libvirt asks the real processor how many guests there is room for; under a simulated platform it finds none.
    limit: Values = {} if host.slots is None else {"limit": host.slots}
    own = host.firmware_descriptors
    firmware: Values = (
        {} if own is None else {"firmware_dirs": [str(own), *map(str, HypervisorSection().firmware_dirs)]}
    )
    return daemons.toml(
        {
            "host": {"name": host.name, "state_dir": str(host.directory / "agent")},
            "hypervisor": {"uri": host.uri, "virt_type": host.virt_type, **firmware},
            "encryption": {"platform_root": str(host.platform_root), **limit},
            "messaging": {"url": rabbit_url},
            "auth": daemons.auth_section(cloud),
            "glance": {"endpoint": cloud.glance_url},
            "placement": {"endpoint": cloud.placement_url},
            "http": daemons.http_section(http_port),
        }
    )


def service(host: Host, configuration_file: Path, http_port: int) -> Service:
    """The daemon of ``host``."""
    return daemons.service(
        f"agent-{host.name}",
        "host daemon",
        ("run", "--config", str(configuration_file)),
        http_port=http_port,
        platform=host.platform,
        stop_timeout=45,
    )
