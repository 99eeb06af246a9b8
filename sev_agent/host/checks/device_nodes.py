"""The device nodes are there, and who may open them."""

from sev_agent.host import accounts
from sev_agent.host.check import Check, Finding, judged
from sev_agent.host.checks import kernel_options, module_loaded
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.hypervisor.secure_processor import DEVICE as SEV_DEVICE

SEV = "device.sev"
KVM = "device.kvm"

_KVM_DEVICE = "dev/kvm"
_GROUP_READ_WRITE, _OTHERS_READ_WRITE = 0o060, 0o006


def look_at_sev(evidence: Evidence) -> Finding:
    """Who owns it does not matter to guests: libvirt gives each a node of its own, owned by QEMU's user."""
    node = evidence.files.node(SEV_DEVICE)
    return judged(
        passed=node is not None,
        expected="the secure processor's device",
        found=accounts.holders(evidence.files, node) if node else "absent",
        source=evidence.files.where(SEV_DEVICE),
        remedy="modprobe ccp; if it stays absent, 'dmesg | grep -i ccp' says why (some BIOS hide the secure processor)",
    )


def look_at_kvm(evidence: Evidence) -> Finding:
    node = evidence.files.node(_KVM_DEVICE)
    open_to_qemu = node is not None and any(
        node.mode & wanted == wanted for wanted in (_GROUP_READ_WRITE, _OTHERS_READ_WRITE)
    )
    return judged(
        passed=open_to_qemu,
        expected="readable and writable for QEMU's user",
        found=accounts.holders(evidence.files, node) if node else "absent",
        source=evidence.files.where(_KVM_DEVICE),
        remedy="chgrp kvm /dev/kvm && chmod 660 /dev/kvm; udev's rule for it is missing"
        if node
        else "modprobe kvm_amd",
    )


CHECKS = (
    Check(
        name=SEV,
        title="/dev/sev",
        layer=Layer.DEVICE_NODES,
        look=look_at_sev,
        needs=(kernel_options.name("CONFIG_CRYPTO_DEV_SP_PSP"),),
    ),
    Check(name=KVM, title="/dev/kvm", layer=Layer.DEVICE_NODES, look=look_at_kvm, needs=(module_loaded.NAME,)),
)
