"""Why a flavor and an image cannot become an encrypted guest: one error per reason."""

from enum import StrEnum

from sev_agent.errors import InvalidRequest


class Subject(StrEnum):
    """Who carries a property: a flavor in its extra specs, an image in its properties."""

    FLAVOR = "flavor"
    IMAGE = "image"

    def path(self, name: str) -> str:
        """Where ``name`` stands in a request, such as ``image.properties.hw_firmware_type``."""
        match self:
            case Subject.FLAVOR:
                return f"flavor.extra_specs.{name}"
            case Subject.IMAGE:
                return f"image.properties.{name}"

    def set_command(self, name: str, value: str) -> str:
        """The ``openstack`` command that sets ``name``."""
        return f"openstack {self} set --property {name}={value} {self.upper()}"

    def unset_command(self, name: str) -> str:
        """The ``openstack`` command that removes ``name``."""
        return f"openstack {self} unset --property {name} {self.upper()}"


class RequestRefused(InvalidRequest):
    """A flavor or an image has a property that an encrypted guest cannot have.

    ``expected`` and ``found`` are what the property must be and is, in words; ``message`` says both.
    """

    code = "sev.refused"

    def __init__(
        self,
        subject: Subject,
        name: str,
        *,
        expected: str,
        found: str,
        remedy: str,
        reason: str | None = None,
        field: str | None = None,
    ) -> None:
        why = f": {reason}" if reason else ""
        super().__init__(
            f"{subject} property '{name}' is {found}, but must be {expected}{why}",
            field=field or subject.path(name),
            remedy=remedy,
        )
        self.subject = subject
        self.name = name
        self.expected = expected
        self.found = found


class NotABoolean(RequestRefused):
    """A property that answers yes or no has some other value."""

    code = "sev.not_a_boolean"


class FlavorLacksEncryption(RequestRefused):
    """The flavor does not ask for memory encryption."""

    code = "sev.flavor_lacks_encryption"


class ImageLacksEncryption(RequestRefused):
    """The image does not say that it supports memory encryption."""

    code = "sev.image_lacks_encryption"


class EncryptionConflict(RequestRefused):
    """Flavor and image give opposite answers."""

    code = "sev.conflict"


class ModelUnsupported(RequestRefused):
    """A generation of memory encryption that does not exist, or is not offered."""

    code = "sev.model_unsupported"


class PolicyRefused(RequestRefused):
    """A guest policy that cannot be, or that the operator does not allow."""

    code = "sev.policy_refused"


class LaunchOptionInvalid(RequestRefused):
    """What an image brings to the launch is of the wrong form, or belongs to another generation."""

    code = "sev.launch_option"


class KernelInvalid(RequestRefused):
    """The image's kernel, initial RAM disk or kernel command line cannot be used."""

    code = "sev.kernel"


class FirmwareNotUefi(RequestRefused):
    code = "sev.firmware_not_uefi"


class FirmwareStateless(RequestRefused):
    code = "sev.firmware_stateless"


class MachineNotQ35(RequestRefused):
    code = "sev.machine_not_q35"


class ArchitectureUnsupported(RequestRefused):
    code = "sev.architecture_unsupported"


class CdromBusUnsupported(RequestRefused):
    code = "sev.cdrom_bus_unsupported"


class DiskBusUnsupported(RequestRefused):
    code = "sev.disk_bus_unsupported"


class ScsiModelUnsupported(RequestRefused):
    code = "sev.scsi_model_unsupported"


class ScsiModelConflict(RequestRefused):
    """``hw_scsi_model`` and its other spelling ``hw_scsi_mode`` differ."""

    code = "sev.scsi_model_conflict"


class VifModelUnsupported(RequestRefused):
    code = "sev.vif_model_unsupported"


class SecureBootUnsupported(RequestRefused):
    code = "sev.secure_boot_unsupported"


class PassthroughUnsupported(RequestRefused):
    """A host device would have to reach memory that it cannot read."""

    code = "sev.passthrough_unsupported"


class FlavorTooSmall(RequestRefused):
    """The flavor has less RAM or disk than the image demands."""

    code = "image.flavor_too_small"


class ImageTooLarge(RequestRefused):
    """The image's virtual disk is larger than the flavor's disk."""

    code = "image.too_large"


class ImageInactive(RequestRefused):
    """The image has no data yet, or no longer."""

    code = "image.inactive"


class ImageFormatUnsupported(RequestRefused):
    """The image's declared format is not one that hosts take."""

    code = "image.format_unsupported"
