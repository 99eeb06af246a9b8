"""QEMU's command line as libvirt writes it, without what only a SEV machine can do."""

import json
from typing import NamedTuple


class Launch(NamedTuple):
    """The SEV object that a command line asks for, and what the firmware would measure.

    ``firmware`` is the file with the firmware's code; ``is_flash`` says whether it is mapped as flash or as memory.
    """

    kind: str
    policy: int
    firmware: str
    name: str
    uuid: str
    is_flash: bool = True
    cbitpos: int = 51
    kernel: str = ""
    kernel_hashes: bool = False

    @property
    def is_snp(self) -> bool:
        return self.kind == _SNP


class Monitor(NamedTuple):
    """Where libvirt expects QEMU's monitor: a listening descriptor that it passed, or a path to listen at."""

    descriptor: int | None = None
    path: str = ""


class CommandLine(NamedTuple):
    """A command line taken apart: what the real QEMU gets, and what stays with the simulation."""

    arguments: list[str]
    monitor: Monitor | None
    launch: Launch | None


_SNP = "sev-snp-guest"
LAUNCH_OBJECTS = frozenset({"sev-guest", _SNP})
_MONITOR = "charmonitor"


def rewrite(arguments: list[str], monitor_descriptor: int) -> CommandLine:
    """Take the SEV objects, locked memory and KVM out; point the monitor at the listening ``monitor_descriptor``.

    ``arguments`` come without the program's name. What is not known passes unchanged.
    """
    kept: list[str] = []
    monitor: Monitor | None = None
    sev: dict[str, object] | None = None
    plain: dict[str, str] = {}
    firmware = ""
    position = 0
    while position < len(arguments):
        option = arguments[position]
        value = arguments[position + 1] if position + 1 < len(arguments) else ""
        position += 2
        match option:
            case "-object" if (found := _launch_object(value)) is not None:
                sev = found
            case "-machine":
                kept += [option, _machine(value)]
            case "-accel" if value.split(",")[0] == "kvm":
                kept += [option, "tcg"]
            case "-overcommit" | "-realtime" if "lock" in value:
                kept += _without_lock(option, value)
            case "-chardev" if f"id={_MONITOR}" in value.split(","):
                monitor = Monitor(descriptor=_descriptor(value))
                kept += [option, _listening(monitor_descriptor)]
            case "-qmp" if value.startswith("unix:"):
                monitor = Monitor(path=value.removeprefix("unix:").split(",")[0])
                kept += ["-chardev", _listening(monitor_descriptor), "-mon", f"chardev={_MONITOR},mode=control"]
            case _:
                plain[option] = value
                firmware = firmware or _firmware(option, value)
                kept.append(option)
                position -= 1
    return CommandLine(kept, monitor, _launch(sev, plain, firmware) if sev is not None else None)


def _launch_object(value: str) -> dict[str, object] | None:
    if value.startswith("{"):
        properties: dict[str, object] = json.loads(value)
    else:
        kind, *pairs = value.split(",")
        properties = {"qom-type": kind, **dict(pair.partition("=")[::2] for pair in pairs)}
    return properties if properties.get("qom-type") in LAUNCH_OBJECTS else None


def _launch(properties: dict[str, object], plain: dict[str, str], firmware: str) -> Launch:
    kind = str(properties["qom-type"])
    return Launch(
        kind=kind,
        # QEMU's own defaults.
        policy=_number(properties.get("policy", 0x30000 if kind == _SNP else 1)),
        firmware=firmware,
        name=_named(plain.get("-name", ""), "guest"),
        uuid=plain.get("-uuid", ""),
        is_flash=bool(firmware) and "-bios" not in plain,
        cbitpos=_number(properties.get("cbitpos", 0)),
        kernel=plain.get("-kernel", ""),
        kernel_hashes=properties.get("kernel-hashes") in {True, "on", "yes", "true"},
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else int(str(value), 0)


def _machine(value: str) -> str:
    """The machine without SEV and without KVM: ``/dev/kvm`` may be there and of no use."""
    kept = []
    for part in value.split(","):
        key, _, setting = part.partition("=")
        if key in {"confidential-guest-support", "memory-encryption"}:
            continue
        kept.append("accel=tcg" if key == "accel" and "kvm" in setting.split(":") else part)
    return ",".join(kept)


def _without_lock(option: str, value: str) -> list[str]:
    rest = [part for part in value.split(",") if part.partition("=")[0] not in {"mem-lock", "mlock"}]
    return [option, ",".join(rest)] if rest else []


def _firmware(option: str, value: str) -> str:
    """The file that holds the firmware's code, which the launch would encrypt and measure."""
    if option == "-bios":
        return value
    if option != "-blockdev" or "pflash0-storage" not in value or not value.startswith("{"):
        return ""
    return str(json.loads(value).get("filename", ""))


def _listening(descriptor: int) -> str:
    return f"socket,id={_MONITOR},fd={descriptor},server=on,wait=off"


def _descriptor(value: str) -> int:
    return int(_named(value, "fd"))


def _named(value: str, key: str) -> str:
    """The value of ``key`` in QEMU's comma-separated form; in JSON form too, which newer libvirt may write."""
    if value.startswith("{"):
        return str(json.loads(value).get(key, ""))
    return next((part[len(key) + 1 :] for part in value.split(",") if part.startswith(f"{key}=")), "")
