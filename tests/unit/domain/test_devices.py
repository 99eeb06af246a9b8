from pathlib import Path

from sev_agent.domain import console, platform
from tests.unit.domain.configured import configured, texts


def test_console() -> None:
    """The serial port is logged to the instance's file, and is the first console; there is no display."""
    log = '<log file="/i/console.log" append="on"/>'

    assert texts(configured(console.configure, console_log=Path("/i/console.log"))) == [
        f'<serial type="pty">{log}<target type="isa-serial" port="0"/></serial>',
        f'<console type="pty">{log}<target type="serial" port="0"/></console>',
        '<video><model type="none"/></video>',
    ]


def test_emulator() -> None:
    """The emulator is the host's configured one."""
    assert texts(configured(platform.configure_emulator, emulator=Path("/opt/qemu"))) == [
        "<emulator>/opt/qemu</emulator>"
    ]


def test_nothing_is_added_by_itself() -> None:
    """USB controller and balloon are refused by name; the chipset's watchdog is pinned."""
    assert texts(configured(platform.configure_usb)) == ['<controller type="usb" index="0" model="none"/>']
    assert texts(configured(platform.configure_balloon)) == ['<memballoon model="none"/>']
    assert texts(configured(platform.configure_watchdog)) == ['<watchdog model="itco" action="reset"/>']


def test_rng() -> None:
    """The guest gets entropy from the host by virtio, with iommu."""
    assert texts(configured(platform.configure_rng)) == [
        '<rng model="virtio"><backend model="random">/dev/urandom</backend><driver iommu="on"/></rng>'
    ]
