from pathlib import Path

from sev_agent.domain import boot
from sev_agent.domain.spec import DiskFormat, KernelBoot, Rom, SplitFlash, StatelessFlash
from tests.unit.domain.configured import configured, texts


def test_firmware_by_name() -> None:
    """Code is a read-only flash chip, variables are the guest's own file; nothing is left for libvirt to choose."""
    firmware = SplitFlash(code=Path("/c"), code_format=DiskFormat.QCOW2, nvram=Path("/n"), nvram_template=Path("/t"))

    (os,) = configured(boot.configure_os, firmware=firmware, machine="pc-q35-9.2")

    assert os.get("firmware") is None
    assert texts(os) == [
        '<type arch="x86_64" machine="pc-q35-9.2">hvm</type>',
        '<loader readonly="yes" type="pflash" format="qcow2">/c</loader>',
        '<nvram template="/t" format="raw">/n</nvram>',
        '<smbios mode="sysinfo"/>',
    ]


def test_stateless_flash() -> None:
    """Stateless firmware in flash has no variables, and nobody writes it."""
    (os,) = configured(boot.configure_os, firmware=StatelessFlash(code=Path("/c")))

    assert texts(os)[1] == '<loader readonly="yes" type="pflash" stateless="yes" format="raw">/c</loader>'
    assert os.find("nvram") is None


def test_rom() -> None:
    """Firmware that is mapped as memory is a ROM without variables."""
    (os,) = configured(boot.configure_os, firmware=Rom(code=Path("/c")))

    assert texts(os)[1] == '<loader type="rom" stateless="yes">/c</loader>'
    assert os.find("nvram") is None


def test_kernel() -> None:
    """A kernel brings its RAM disk and its command line where it has them; text of a tenant stays text."""
    (os,) = configured(boot.configure_os, kernel=KernelBoot(kernel=Path("/k"), ramdisk=Path("/r"), command_line="a<b"))
    (bare,) = configured(boot.configure_os, kernel=KernelBoot(kernel=Path("/k")))

    assert texts(os)[3:6] == ["<kernel>/k</kernel>", "<initrd>/r</initrd>", "<cmdline>a&lt;b</cmdline>"]
    assert [child.tag for child in bare] == ["type", "loader", "nvram", "kernel", "smbios"]


def test_features() -> None:
    """ACPI and APIC are on, the VMware port is off, and nothing else is asked for."""
    (features,) = configured(boot.configure_features)

    assert texts(features) == ["<acpi/>", "<apic/>", '<vmport state="off"/>']


def test_clock_is_utc() -> None:
    """The guest's clock is UTC."""
    assert configured(boot.configure_clock)[0].get("offset") == "utc"


def test_events() -> None:
    """Power-off and crash end the domain, a reboot restarts it, and it never sleeps."""
    assert texts(configured(boot.configure_events)) == [
        "<on_poweroff>destroy</on_poweroff>",
        "<on_reboot>restart</on_reboot>",
        "<on_crash>destroy</on_crash>",
        '<pm><suspend-to-mem enabled="no"/><suspend-to-disk enabled="no"/></pm>',
    ]
