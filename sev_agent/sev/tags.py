"""The properties that the method puts on an image and a flavor, and what an image lacks of them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from sev_agent.sev import image_properties
from sev_agent.sev.booleans import read_boolean
from sev_agent.sev.generation import Generation
from sev_agent.sev.refusals import RequestRefused, Subject
from sev_agent.sev.rules import FLAVOR_ENCRYPTION, FLAVOR_MODEL, IMAGE_ENCRYPTION, IMAGE_MODEL

IMAGE: Final[Mapping[str, str]] = MappingProxyType(
    {
        image_properties.FIRMWARE_TYPE: "uefi",
        image_properties.CDROM_BUS: "scsi",
        IMAGE_ENCRYPTION: "True",
        image_properties.MACHINE_TYPE: "q35",
        image_properties.SCSI_MODEL: "virtio-scsi",
    }
)
"""The method's five properties of an image."""

_CHECKS: Final[Mapping[str, Callable[[Mapping[str, str]], object]]] = MappingProxyType(
    {
        image_properties.FIRMWARE_TYPE: image_properties.firmware_type,
        image_properties.CDROM_BUS: image_properties.cdrom_bus,
        IMAGE_ENCRYPTION: lambda properties: read_boolean(Subject.IMAGE, properties, IMAGE_ENCRYPTION),
        image_properties.MACHINE_TYPE: image_properties.machine_type,
        image_properties.SCSI_MODEL: image_properties.scsi_model,
    }
)


_STATELESS: Final = (image_properties.FIRMWARE_STATELESS, image_properties.is_stateless)
"""What an image for SEV-SNP must have beside them."""


def flavor_tags(generation: Generation | None = None) -> dict[str, str]:
    """The extra specs of a flavor for encrypted guests; without ``generation`` of the one that is the default."""
    return {FLAVOR_ENCRYPTION: "True"} | ({FLAVOR_MODEL: generation.value} if generation else {})


def image_changes(properties: Mapping[str, str], generation: Generation | None = None) -> dict[str, str | None]:
    """What to set on an image with these properties (``None``: to remove), so that it is as the method wants it.

    A property whose value an encrypted guest can have stays as it is: somebody chose ``pc-q35-9.2`` for a reason.
    """
    changes: dict[str, str | None] = {
        name: value for name, value in IMAGE.items() if not _stays(properties, name, _CHECKS[name])
    }
    other = image_properties.SCSI_MODEL_OTHER_SPELLING
    model = changes.get(image_properties.SCSI_MODEL, properties.get(image_properties.SCSI_MODEL))
    if properties.get(other, model) != model:
        changes[other] = None
    if generation is not None and properties.get(IMAGE_MODEL) != generation.value:
        changes[IMAGE_MODEL] = generation.value
    snp = Generation.SEV_SNP in {generation, properties.get(IMAGE_MODEL)}
    if snp and generation in {None, Generation.SEV_SNP} and not _stays(properties, *_STATELESS):
        changes[image_properties.FIRMWARE_STATELESS] = "True"
    return changes


def changed(properties: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """The image's properties after ``changes``."""
    return {name: value for name, value in {**properties, **changes}.items() if value is not None}


def _stays(properties: Mapping[str, str], name: str, check: Callable[[Mapping[str, str]], object]) -> bool:
    if name not in properties:
        return False
    alone = {name: properties[name]}
    try:
        return check(alone) is not False
    except RequestRefused:
        return False
