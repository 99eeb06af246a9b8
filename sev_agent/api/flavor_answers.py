"""What the operations on flavors answer."""

from typing import Literal

from pydantic import Field, RootModel

from sev_agent.api.answer_parts import Link, Part, Texts


class BriefFlavor(Part):
    id: str
    name: str
    links: list[Link]
    description: str | None = None


class DetailedFlavor(BriefFlavor):
    vcpus: int
    ram: int
    disk: int
    swap: Literal[""]
    rxtx_factor: float
    disabled: bool = Field(alias="OS-FLV-DISABLED:disabled")
    ephemeral: int = Field(alias="OS-FLV-EXT-DATA:ephemeral")
    is_public: bool = Field(alias="os-flavor-access:is_public")
    extra_specs: Texts = Field(default={})


class OneFlavor(Part):
    flavor: DetailedFlavor


class BriefFlavors(Part):
    flavors: list[BriefFlavor]
    flavors_links: list[Link] = Field(default=[])


class DetailedFlavors(Part):
    flavors: list[DetailedFlavor]
    flavors_links: list[Link] = Field(default=[])


class ExtraSpecs(Part):
    extra_specs: Texts


class ExtraSpec(RootModel[Texts]):
    """One key with its value."""


class Access(Part):
    flavor_id: str
    tenant_id: str


class FlavorAccess(Part):
    flavor_access: list[Access]
