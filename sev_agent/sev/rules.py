"""The check of a request: the flavor asks for memory encryption, and the image can run encrypted.

The rules are those of Nova's ``get_mem_encryption_constraint``, made stricter: flavor and image must both say yes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sev_agent.sev import image_properties, refusals
from sev_agent.sev.booleans import read_boolean
from sev_agent.sev.generation import Generation
from sev_agent.sev.launch_options import ID_BLOCK, LaunchOptions, read_launch_options
from sev_agent.sev.policy import (
    NO_BOUNDS,
    Policy,
    PolicyBounds,
    PolicyInvalid,
    check_policy,
    default_policy,
    parse_policy,
)
from sev_agent.sev.refusals import RequestRefused, Subject
from sev_agent.sev.sizes import Sizes, judge_sizes
from sev_agent.sev.verdict import Verdict

FLAVOR_ENCRYPTION = "hw:mem_encryption"
IMAGE_ENCRYPTION = "hw_mem_encryption"
_ENCRYPTION = {Subject.FLAVOR: FLAVOR_ENCRYPTION, Subject.IMAGE: IMAGE_ENCRYPTION}
FLAVOR_MODEL = "hw:mem_encryption_model"
IMAGE_MODEL = "hw_mem_encryption_model"
FLAVOR_SECURE_BOOT = "os:secure_boot"
FLAVOR_POLICY = "hw:mem_encryption_policy"
PASSTHROUGH = "pci_passthrough:alias"


@dataclass(frozen=True, slots=True)
class EncryptionRequest:
    """What a flavor and an image together ask of the secure processor."""

    generation: Generation
    policy: Policy
    options: LaunchOptions = field(default_factory=LaunchOptions)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the rules look at: a flavor's extra specs, an image's properties, and what the operator allows."""

    flavor: Mapping[str, str]
    image: Mapping[str, str]
    bounds: PolicyBounds = NO_BOUNDS

    def of(self, subject: Subject) -> Mapping[str, str]:
        return self.flavor if subject is Subject.FLAVOR else self.image


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule on one property of a flavor or an image. ``check`` raises ``RequestRefused``."""

    name: str
    subject: Subject
    property_name: str
    expected: str
    check: Callable[[Asked], object]

    def apply(self, asked: Asked) -> Verdict:
        value = asked.of(self.subject).get(self.property_name)
        try:
            self.check(asked)
        except RequestRefused as refusal:
            return Verdict(
                name=self.name,
                subject=refusal.subject,
                property_name=refusal.name,
                expected=refusal.expected,
                found=refusal.found,
                refusal=refusal,
            )
        return Verdict(
            name=self.name,
            subject=self.subject,
            property_name=self.property_name,
            expected=self.expected,
            found="not set" if value is None else repr(value),
        )


def encryption_request(
    flavor_extra_specs: Mapping[str, str],
    image_properties: Mapping[str, str],
    sizes: Sizes | None = None,
    *,
    bounds: PolicyBounds = NO_BOUNDS,
) -> EncryptionRequest:
    """What the flavor and the image together ask for. Raises the ``RequestRefused`` of the first rule that fails."""
    for verdict in judge(flavor_extra_specs, image_properties, sizes, bounds=bounds):
        if verdict.refusal is not None:
            raise verdict.refusal
    asked = Asked(flavor_extra_specs, image_properties, bounds)
    policy = _policy(asked)
    return EncryptionRequest(policy.generation, policy, read_launch_options(asked.image, policy.generation, policy))


def judge(
    flavor_extra_specs: Mapping[str, str],
    image_properties: Mapping[str, str],
    sizes: Sizes | None = None,
    *,
    bounds: PolicyBounds = NO_BOUNDS,
) -> tuple[Verdict, ...]:
    """The verdict of every rule, in the order in which one would mend them; of those on sizes only where given.

    ``bounds`` are what the operator allows in a policy.
    """
    asked = Asked(flavor_extra_specs, image_properties, bounds)
    return tuple(rule.apply(asked) for rule in RULES) + (judge_sizes(sizes) if sizes is not None else ())


def _flavor_asks(asked: Asked) -> None:
    _encrypts(asked, Subject.FLAVOR, refusals.FlavorLacksEncryption)


def _image_supports(asked: Asked) -> None:
    _encrypts(asked, Subject.IMAGE, refusals.ImageLacksEncryption)


def _encrypts(asked: Asked, subject: Subject, lacks: type[RequestRefused]) -> None:
    """Both have to say yes; one that says no where the other says yes contradicts it."""
    name, properties = _ENCRYPTION[subject], asked.of(subject)
    value = read_boolean(subject, properties, name)
    if value:
        return
    other = Subject.IMAGE if subject is Subject.FLAVOR else Subject.FLAVOR
    others_name, others = _ENCRYPTION[other], asked.of(other)
    is_opposite = value is False and _says_yes(other, others, others_name)
    raise (refusals.EncryptionConflict if is_opposite else lacks)(
        subject,
        name,
        expected="true",
        found=_found(properties, name),
        reason=f"{other} property '{others_name}' is {others[others_name]!r}, the opposite" if is_opposite else None,
        remedy=subject.set_command(name, "true"),
    )


def _says_yes(subject: Subject, properties: Mapping[str, str], name: str) -> bool:
    try:
        return bool(read_boolean(subject, properties, name))
    except refusals.NotABoolean:
        return False  # the rule on that property says so


def _model(asked: Asked) -> Generation:
    flavor = _model_of(Subject.FLAVOR, asked.flavor, FLAVOR_MODEL)
    image = _model_of(Subject.IMAGE, asked.image, IMAGE_MODEL)
    if flavor is not None and image is not None and flavor is not image:
        raise refusals.EncryptionConflict(
            Subject.IMAGE,
            IMAGE_MODEL,
            expected=f"{flavor.value!r} as the flavor's '{FLAVOR_MODEL}'",
            found=repr(image.value),
            remedy=f"{Subject.IMAGE.set_command(IMAGE_MODEL, flavor.value)}, or change the flavor",
        )
    return flavor or image or Generation.SEV


def _model_of(subject: Subject, properties: Mapping[str, str], name: str) -> Generation | None:
    value = properties.get(name)
    if value is None:
        return None
    for generation in Generation:
        if generation.value == value:
            return generation
    raise refusals.ModelUnsupported(
        subject,
        name,
        expected=" or ".join(repr(generation.value) for generation in Generation),
        found=repr(value),
        remedy=subject.set_command(name, Generation.SEV.value),
    )


def _policy(asked: Asked) -> Policy:
    """The policy that the flavor names, else the generation's default; both within the operator's bounds."""
    generation = _model(asked)
    text = asked.flavor.get(FLAVOR_POLICY)
    try:
        policy = default_policy(generation) if text is None else parse_policy(text, generation)
        check_policy(policy, generation)
        asked.bounds.check(policy)
    except PolicyInvalid as error:
        raise refusals.PolicyRefused(
            Subject.FLAVOR,
            FLAVOR_POLICY,
            expected=f"a policy of {generation} that this cloud allows",
            found=_found(asked.flavor, FLAVOR_POLICY),
            reason=error.message,
            remedy=error.remedy or "",
        ) from error
    return policy


def _known_policy(asked: Asked) -> Policy | None:
    """The policy, where the rules on generation and policy find no fault in it; they say it themselves."""
    try:
        return _policy(asked)
    except RequestRefused:
        return None


def _policy_given(asked: Asked) -> None:
    try:
        _model(asked)
    except RequestRefused:
        return  # the rule on the generation says so
    _policy(asked)


def _launch_options(asked: Asked) -> None:
    if (policy := _known_policy(asked)) is not None:
        read_launch_options(asked.image, policy.generation, policy)


def _stateless(asked: Asked) -> None:
    """SEV-SNP's firmware is mapped as memory and measured whole: it has no place for variables (Nova's rule)."""
    is_stateless = image_properties.is_stateless(asked.image)
    policy = _known_policy(asked)
    if policy is not None and policy.generation is Generation.SEV_SNP and not is_stateless:
        raise refusals.FirmwareStateless(
            Subject.IMAGE,
            image_properties.FIRMWARE_STATELESS,
            expected="true",
            found=_found(asked.image, image_properties.FIRMWARE_STATELESS),
            reason=f"the firmware of {Generation.SEV_SNP} keeps no variables",
            remedy=Subject.IMAGE.set_command(image_properties.FIRMWARE_STATELESS, "true"),
        )


def _no_flavor_secure_boot(asked: Asked) -> None:
    value = asked.flavor.get(FLAVOR_SECURE_BOOT, "disabled")
    if value not in {"disabled", "optional"}:
        raise refusals.SecureBootUnsupported(
            Subject.FLAVOR,
            FLAVOR_SECURE_BOOT,
            expected="'disabled', 'optional' or not set",
            found=repr(value),
            remedy=Subject.FLAVOR.unset_command(FLAVOR_SECURE_BOOT),
            reason="the firmware for Secure Boot needs system management mode, which encrypted guests do not have",
        )


def _no_passthrough(asked: Asked) -> None:
    if (value := asked.flavor.get(PASSTHROUGH)) is not None:
        raise refusals.PassthroughUnsupported(
            Subject.FLAVOR,
            PASSTHROUGH,
            expected="not set",
            found=repr(value),
            remedy=Subject.FLAVOR.unset_command(PASSTHROUGH),
            reason="a host device cannot read encrypted memory",
        )


def _found(properties: Mapping[str, str], name: str) -> str:
    value = properties.get(name)
    return "not set" if value is None else repr(value)


def _image_rule(name: str, prop: str, expected: str, check: Callable[[Mapping[str, str]], object]) -> Rule:
    return Rule(name, Subject.IMAGE, prop, expected, lambda asked: check(asked.image))


RULES: tuple[Rule, ...] = (
    Rule("flavor asks for encryption", Subject.FLAVOR, FLAVOR_ENCRYPTION, "true", _flavor_asks),
    Rule("image supports encryption", Subject.IMAGE, IMAGE_ENCRYPTION, "true", _image_supports),
    Rule("generation", Subject.FLAVOR, FLAVOR_MODEL, "'amd-sev', 'amd-sev-es', 'amd-sev-snp' or not set", _model),
    Rule("policy", Subject.FLAVOR, FLAVOR_POLICY, "flags of the generation, or not set", _policy_given),
    _image_rule("firmware", image_properties.FIRMWARE_TYPE, "'uefi'", image_properties.firmware_type),
    _image_rule("machine type", image_properties.MACHINE_TYPE, "'q35' or not set", image_properties.machine_type),
    _image_rule("CD-ROM bus", image_properties.CDROM_BUS, "'scsi', 'sata' or not set", image_properties.cdrom_bus),
    _image_rule(
        "disk bus", image_properties.DISK_BUS, "'scsi', 'virtio', 'sata' or not set", image_properties.disk_bus
    ),
    _image_rule("SCSI model", image_properties.SCSI_MODEL, "'virtio-scsi' or not set", image_properties.scsi_model),
    _image_rule("NIC model", image_properties.VIF_MODEL, "'virtio' or not set", image_properties.check_vif_model),
    _image_rule(
        "architecture", image_properties.ARCHITECTURES[0], "'x86_64' or not set", image_properties.check_architecture
    ),
    Rule(
        "stateless firmware",
        Subject.IMAGE,
        image_properties.FIRMWARE_STATELESS,
        "true for 'amd-sev-snp', else true, false or not set",
        _stateless,
    ),
    Rule("launch options", Subject.IMAGE, ID_BLOCK, "data of the right length, or not set", _launch_options),
    _image_rule("kernel", image_properties.KERNEL_ID, "an image's UUID, or not set", image_properties.kernel_images),
    _image_rule(
        "Secure Boot of the image",
        image_properties.SECURE_BOOT,
        "not 'required'",
        image_properties.check_secure_boot,
    ),
    Rule("Secure Boot of the flavor", Subject.FLAVOR, FLAVOR_SECURE_BOOT, "not 'required'", _no_flavor_secure_boot),
    Rule("host devices", Subject.FLAVOR, PASSTHROUGH, "not set", _no_passthrough),
)
"""Every rule on properties, in the order in which one would mend them."""
