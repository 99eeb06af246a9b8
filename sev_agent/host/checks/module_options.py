"""No option in modprobe.d switches a generation off."""

from functools import partial

from sev_agent.host import modprobe
from sev_agent.host.check import NEEDED_FOR, Check, Finding, judged
from sev_agent.host.evidence import Evidence
from sev_agent.host.kvm_amd import IS_ON, PARAMETERS
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation


def name(generation: Generation) -> str:
    return f"module.options_{PARAMETERS[generation]}"


def look(generation: Generation, evidence: Evidence) -> Finding:
    parameter = PARAMETERS[generation]
    given = [option for option in modprobe.kvm_amd(evidence.files) if option.parameter == parameter]
    last = given[-1] if given else None
    return judged(
        passed=last is None or last.value in IS_ON,
        expected=f"no 'options kvm_amd {parameter}=0'",
        found=f"options kvm_amd {parameter}={last.value}" if last else "no such option",
        source=last.source if last else ", ".join(f"/{directory}" for directory in modprobe.DIRECTORIES[:2]),
        remedy=f"take {parameter} from {last.source if last else 'it'}, then load kvm_amd anew or reboot",
    )


CHECKS = tuple(
    Check(
        name=name(generation),
        title=f"modprobe.d leaves {generation.value} on",
        layer=Layer.KERNEL_MODULE,
        look=partial(look, generation),
        generations=generations,
    )
    for generation, generations in NEEDED_FOR.items()
)
