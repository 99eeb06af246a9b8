"""What the cloud says of itself: limits, quotas, zones, extensions."""

from typing import Any

from pydantic import Field

from sev_agent.api.answer_parts import Part


class Limits(Part):
    rate: list[Any]
    absolute: dict[str, int]


class ProjectLimits(Part):
    limits: Limits


class QuotaSet(Part):
    id: str
    instances: int
    cores: int
    ram: int
    key_pairs: int
    metadata_items: int


class ProjectQuota(Part):
    quota_set: QuotaSet


class QuotaUse(Part):
    limit: int
    in_use: int
    reserved: int


class QuotaSetUse(Part):
    id: str
    instances: QuotaUse
    cores: QuotaUse
    ram: QuotaUse
    key_pairs: QuotaUse
    metadata_items: QuotaUse


class ProjectQuotaUse(Part):
    quota_set: QuotaSetUse


class ZoneState(Part):
    available: bool


class Zone(Part):
    zone_name: str = Field(alias="zoneName")
    zone_state: ZoneState = Field(alias="zoneState")
    hosts: None


class Zones(Part):
    zones: list[Zone] = Field(alias="availabilityZoneInfo")


class Extensions(Part):
    extensions: list[Any]
