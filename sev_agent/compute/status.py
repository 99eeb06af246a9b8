"""What this host is and has: read from libvirt and the kernel, and what that makes of its guests."""

import asyncio
from collections import Counter
from typing import Any

from sev_agent import __version__
from sev_agent.compute.admission import Admission
from sev_agent.compute.firmware_version import FirmwareVersion, Version
from sev_agent.compute.host_watch import ReadinessReport
from sev_agent.compute.inventory import Disk, HostResources, host_resources
from sev_agent.compute.slots import Generations, generations
from sev_agent.config import AgentConfig
from sev_agent.errors import SevAgentError
from sev_agent.hypervisor import capabilities
from sev_agent.hypervisor.capabilities import HostCapabilities
from sev_agent.hypervisor.connection import Hypervisor
from sev_agent.hypervisor.domains import Domains
from sev_agent.hypervisor.platform import Platform, read_platform
from sev_agent.observe.health import Health
from sev_agent.observe.metrics import Labelled
from sev_agent.sev.footprint import rmp_mb


class HostStatus:
    """The host's capabilities and its slots, and the answer of ``get_host_status``."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        hypervisor: Hypervisor,
        domains: Domains,
        health: Health,
        admission: Admission,
        readiness: ReadinessReport,
    ) -> None:
        self._config = config
        self._hypervisor = hypervisor
        self._domains = domains
        self._health = health
        self._capabilities: HostCapabilities | None = None
        self._platform: Platform | None = None
        self._acted_on: Platform | None = None
        self._admission = admission
        self._readiness = readiness
        self._firmware = FirmwareVersion(config.encryption.platform_root)
        self._firmware_version: Version | None = None
        self._disk = Disk(config.host.state_dir)
        self._found = Generations({}, {})

    @property
    def acted_on(self) -> Platform | None:
        """What the kernel said to the last comparison that was carried out; ``None`` before the first."""
        return self._acted_on

    @property
    def found(self) -> Generations:
        """The generations that the host could run, and could not, when it was last read; neither before that."""
        return self._found

    @property
    def capabilities(self) -> HostCapabilities | None:
        """What libvirt said last; ``None`` before it said anything."""
        return self._capabilities

    async def resources(self) -> HostResources:
        """What the host has to give. Raises ``HypervisorError`` where libvirt cannot say, and ``DiskUnreadable``."""
        config = self._config
        # Every time: libvirt looks at QEMU, the kernel and the processor anew when one of them is another.
        self._capabilities = await capabilities.read(self._hypervisor, config.hypervisor)
        self._platform = await asyncio.to_thread(read_platform, config.encryption.platform_root)
        self._found = generations(self._capabilities, self._platform, config.encryption)
        self._firmware_version = await self._firmware.read()
        self._admission.learn(
            self._found.unusable,
            smt=self._platform.smt,
            one_socket=self._platform.one_socket,
            firmware=self._firmware_version,
        )
        return host_resources(self._capabilities, self._found, await self._disk.size_gb(), config.placement)

    async def report(self) -> dict[str, Any]:
        """All of it, as JSON can carry it; answered also while libvirt is away, from what was read last."""
        found, platform = self._capabilities, self._platform
        return {
            "host": self._config.host.name,
            "version": __version__,
            "ready": self._health.is_ready,
            "dependencies": {
                name.value: {"up": condition.up, "reason": condition.reason}
                for name, condition in self._health.conditions.items()
            },
            "hypervisor": {"libvirt": found.libvirt_version, "qemu": found.emulator_version} if found else None,
            "simulated": platform.simulated if platform else None,
            "firmware_api": "{}.{}".format(*self._firmware_version) if self._firmware_version else None,
            "memory": None
            if found is None
            else {
                "total_mb": found.memory_mb,
                "rmp_mb": rmp_mb(found.memory_mb) if platform is not None and platform.sev_snp else 0,
            },
            "slots": {
                generation.value: {
                    "total": slots.total,
                    "ruled_by": slots.ruled_by,
                    "sources": dict(slots.sources),
                }
                for generation, slots in self._found.usable.items()
            },
            "stranded": {
                generation.value: [str(uuid) for uuid in uuids]
                for generation, uuids in self._readiness.stranded.items()
            },
            "unusable": {generation.value: why for generation, why in self._found.unusable.items()},
            "placement": {
                "mode": self._config.placement.mode,
                "guest_overhead_mb": self._config.placement.guest_overhead_mb,
                "stopped_guests": self._config.placement.stopped_guests,
            },
            "guests": await self._guests(),
        }

    def look(self) -> None:
        """Tell what the host can run and what it cannot any more, once a comparison has acted on what was read last."""
        self._acted_on = self._platform
        self._readiness.look(self._found)

    def slots_total(self) -> Labelled:
        return [((generation.value,), float(slots.total)) for generation, slots in self._found.usable.items()]

    def domains(self) -> Labelled:
        counts = Counter((guest.state.value, str(guest.generation is not None).lower()) for guest in self._domains.seen)
        return [(labels, float(count)) for labels, count in counts.items()]

    async def _guests(self) -> list[dict[str, Any]] | None:
        try:
            guests = await self._domains.guests()
        except SevAgentError:
            # The dependency's reason, beside this, says why.
            return None
        return [
            {
                "uuid": str(guest.uuid),
                "name": guest.name,
                "state": guest.state.value,
                "generation": guest.generation.value if guest.generation else None,
                "managed": guest.metadata is not None,
            }
            for guest in guests
        ]
