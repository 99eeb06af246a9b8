"""The routes that clients ask beside servers and flavors: limits, quotas, zones, and lists that are empty here."""

from collections.abc import Iterable
from typing import Any

from sev_agent.api.database import Database
from sev_agent.api.faults import Forbidden
from sev_agent.api.microversion import Microversion
from sev_agent.api.quota import Usage, usage
from sev_agent.api.routes import Call, Route
from sev_agent.api.server_bodies import MAX_METADATA
from sev_agent.api.servers import Servers
from sev_agent.config import QuotaSection

_NO_NETWORK_LIMITS = Microversion(2, 36)
_NO_IMAGE_METADATA = Microversion(2, 39)
_NO_PERSONALITY = Microversion(2, 57)
_MAX_KEYPAIRS = 100


class CloudRoutes:
    """``zone`` is the availability zone's name."""

    def __init__(self, database: Database, servers: Servers, quota: QuotaSection, *, zone: str) -> None:
        self._database = database
        self._servers = servers
        self._quota = quota
        self._zone = zone

    def routes(self) -> Iterable[Route]:
        quota, server = "/os-quota-sets/{of_project}", "/servers/{server_id}"
        return (
            Route("GET", "/limits", "showLimits", self._limits),
            Route("GET", quota, "showQuota", self._quota_set),
            Route("GET", f"{quota}/defaults", "showDefaultQuota", self._quota_set),
            Route("GET", f"{quota}/detail", "showQuotaDetail", self._quota_detail),
            Route("GET", "/os-availability-zone", "listZones", self._zones),
            Route("GET", "/os-availability-zone/detail", "listZonesDetail", self._zones),
            Route("GET", "/extensions", "listExtensions", self._extensions),
            Route("GET", f"{server}/os-volume_attachments", "listVolumes", self._volumes),
            Route("GET", f"{server}/os-security-groups", "listSecurityGroups", self._security_groups),
        )

    async def _limits(self, call: Call) -> dict[str, Any]:
        """Show what the project may have, and has."""
        async with self._database.reading() as session:
            used = await usage(session, call.caller.project_id)
        absolute = {
            "maxTotalInstances": self._quota.servers,
            "maxTotalCores": self._quota.vcpus,
            "maxTotalRAMSize": self._quota.ram_mb,
            "maxTotalKeypairs": _MAX_KEYPAIRS,
            "maxServerMeta": MAX_METADATA,
            "maxServerGroups": 0,
            "maxServerGroupMembers": 0,
            "totalInstancesUsed": used.servers,
            "totalCoresUsed": used.vcpus,
            "totalRAMUsed": used.ram_mb,
            "totalServerGroupsUsed": 0,
        }
        if call.version < _NO_NETWORK_LIMITS:
            absolute |= {"maxTotalFloatingIps": -1, "maxSecurityGroups": -1, "maxSecurityGroupRules": -1}
            absolute |= {"totalFloatingIpsUsed": 0, "totalSecurityGroupsUsed": 0}
        if call.version < _NO_IMAGE_METADATA:
            absolute["maxImageMeta"] = MAX_METADATA
        if call.version < _NO_PERSONALITY:
            absolute |= {"maxPersonality": 0, "maxPersonalitySize": 0}
        return {"limits": {"rate": [], "absolute": absolute}}

    async def _quota_set(self, call: Call) -> dict[str, Any]:
        """Show a project's quota."""
        project = _project(call)
        return {"quota_set": {"id": project, **self._limits_by_name()}}

    async def _quota_detail(self, call: Call) -> dict[str, Any]:
        """Show a project's quota with what it has."""
        project = _project(call)
        async with self._database.reading() as session:
            used = _by_name(await usage(session, project))
        found = {
            name: {"limit": limit, "in_use": used.get(name, 0), "reserved": 0}
            for name, limit in self._limits_by_name().items()
        }
        return {"quota_set": {"id": project, **found}}

    async def _zones(self, call: Call) -> dict[str, Any]:
        """List availability zones: there is one."""
        del call
        zone = {"zoneName": self._zone, "zoneState": {"available": True}, "hosts": None}
        return {"availabilityZoneInfo": [zone]}

    async def _extensions(self, call: Call) -> dict[str, Any]:
        """List extensions: there are none."""
        del call
        return {"extensions": []}

    async def _volumes(self, call: Call) -> dict[str, Any]:
        """List a server's volumes: there are none."""
        await self._servers.get(call.caller, call.parameters["server_id"])
        return {"volumeAttachments": []}

    async def _security_groups(self, call: Call) -> dict[str, Any]:
        """List a server's security groups as Neutron has them: there are none.

        Clients look up in Neutron what they find here, as Ansible's ``openstack.cloud.server`` does.
        """
        await self._servers.get(call.caller, call.parameters["server_id"])
        return {"security_groups": []}

    def _limits_by_name(self) -> dict[str, int]:
        quota = self._quota
        own = Usage(servers=quota.servers, vcpus=quota.vcpus, ram_mb=quota.ram_mb)
        return {**_by_name(own), "key_pairs": _MAX_KEYPAIRS, "metadata_items": MAX_METADATA}


def _by_name(found: Usage) -> dict[str, int]:
    return {"instances": found.servers, "cores": found.vcpus, "ram": found.ram_mb}


def _project(call: Call) -> str:
    project = call.parameters["of_project"]
    if project != call.caller.project_id and not call.caller.is_admin:
        raise Forbidden("only an administrator may see the quota of another project")
    return project
