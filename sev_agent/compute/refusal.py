"""A full host in the words of the request."""

from typing import Final

from sev_agent.openstack.placement import Full
from sev_agent.schema import Flavor

_FLAVOR_FIELDS: Final = {"VCPU": "vcpus", "MEMORY_MB": "memory_mb", "DISK_GB": "root_gb"}


def explained(error: Full, flavor: Flavor) -> Full:
    """``error`` by the part of the request that asks for what is not there; Placement's text names its class."""
    for resource_class, name in _FLAVOR_FIELDS.items():
        if f"'{resource_class}'" in error.message:
            return Full(
                f"this host does not have {getattr(flavor, name)} of {resource_class} left: {error.message}",
                field=f"instance.flavor.{name}",
                remedy="use a smaller flavor or another host",
            )
    return Full(
        f"every encryption slot of this host is taken: {error.message}",
        remedy="delete or stop an encrypted guest of this host, or use another host",
    )
