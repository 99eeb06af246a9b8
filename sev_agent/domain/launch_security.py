"""The launch of the guest under the secure processor."""

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec, SevLaunch, SnpLaunch
from sev_agent.domain.xml import DomainXmlInvalid
from sev_agent.sev.generation import Generation
from sev_agent.sev.policy import SevFlag


def configure(spec: DomainSpec, domain: Element) -> None:
    """Policy and options. ``cbitpos`` and ``reducedPhysBits`` libvirt fills in at start, as the host has them then."""
    launch = spec.launch_security
    options = launch.options
    match launch:
        case SevLaunch():
            element = add(domain, "launchSecurity", type="sev")
        case SnpLaunch():
            element = add(domain, "launchSecurity", type="sev-snp")
    if options.kernel_hashes:
        element.set("kernelHashes", "yes")
    if options.author_key:
        element.set("authorKey", "yes")
    if options.vcek is not None:
        element.set("vcek", "yes" if options.vcek else "no")
    add(element, "policy", str(launch.policy))
    children = {
        "guestVisibleWorkarounds": options.guest_visible_workarounds,
        "idBlock": options.id_block,
        "idAuth": options.id_auth,
        "hostData": options.host_data,
    }
    for name, value in children.items():
        if value is not None:
            add(element, name, value)


def read(domain: Element) -> Generation | None:
    """The generation that ``domain`` uses; ``None`` for none, and for those that are not AMD's.

    Raises ``DomainXmlInvalid`` where a SEV policy is not a number.
    """
    found = domain.find("launchSecurity")
    match None if found is None else found.get("type"):
        case "sev":
            return _generation_of(domain.findtext("launchSecurity/policy") or "", domain.findtext("name"))
        case "sev-snp":
            return Generation.SEV_SNP
        case _:
            return None


def _generation_of(policy: str, name: str | None) -> Generation:
    # Only this one bit: a foreign domain's policy may have bits that this version does not know.
    try:
        return Generation.SEV_ES if int(policy, 0) & SevFlag.ES else Generation.SEV
    except ValueError:
        raise DomainXmlInvalid(f"the SEV policy of domain {name!r} is {policy!r}, not a number") from None
