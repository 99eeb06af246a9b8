"""Everything that the checks of one host may look at."""

from dataclasses import dataclass
from pathlib import Path

from sev_agent.host.answers import Libvirt, Service
from sev_agent.hypervisor.host_files import HostFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The files are read when a check asks; libvirt and the services were asked beforehand.

    ``firmware_dirs`` are the daemon's, on this machine; None stands for the usual ones below the root of ``files``.
    """

    files: HostFiles
    libvirt: Libvirt
    placement: Service
    rabbitmq: Service
    firmware_dirs: tuple[Path, ...] | None = None
