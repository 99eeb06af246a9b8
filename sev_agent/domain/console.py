"""The serial console, and no other."""

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec


def configure(spec: DomainSpec, devices: Element) -> None:
    """A serial port that a person may attach to, and a log of all that it says.

    QEMU hands the log to virtlogd, which bounds its size. It is appended to, so a reboot does not hide why it came.
    """
    serial = add(devices, "serial", type="pty")
    add(serial, "log", file=str(spec.console_log), append="on")
    add(serial, "target", type="isa-serial", port="0")
    console = add(devices, "console", type="pty")
    add(console, "log", file=str(spec.console_log), append="on")
    add(console, "target", type="serial", port="0")
    # No display: its memory would be one more thing that the host sees.
    add(add(devices, "video"), "model", type="none")
