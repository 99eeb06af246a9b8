"""Where the files of one instance are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

RECORD_NAME: Final = "instance.json"


@dataclass(frozen=True, slots=True)
class InstanceFiles:
    """The files of one instance, all in its own directory."""

    directory: Path

    @property
    def record(self) -> Path:
        return self.directory / RECORD_NAME

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"

    @property
    def config_drive(self) -> Path:
        return self.directory / "config-drive.iso"

    @property
    def nvram(self) -> Path:
        return self.directory / "nvram.fd"

    @property
    def kernel(self) -> Path:
        return self.directory / "kernel"

    @property
    def ramdisk(self) -> Path:
        return self.directory / "ramdisk"

    @property
    def definition(self) -> Path:
        """What libvirt was told of the guest."""
        return self.directory / "domain.xml"

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"
