"""Questions to the AMD secure processor through ``/dev/sev``, which change nothing.

Source: the kernel's ``include/uapi/linux/psp-sev.h``. In a captured host a text file stands in the device's place:
``[sev]`` and ``[snp]`` sections in TOML, with the fields of ``Status`` or ``error``.
"""

import ctypes
import fcntl
import os
import struct
import tomllib
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from sev_agent.hypervisor.host_files import HostFiles

DEVICE = "dev/sev"

_ISSUE = 0xC010_5300
"""``SEV_ISSUE_CMD``: _IOWR('S', 0, struct sev_issue_cmd), whose packed size is 16."""


class Command(IntEnum):
    """Commands that only ask."""

    SEV_PLATFORM_STATUS = 1
    SNP_PLATFORM_STATUS = 9


class State(IntEnum):
    """The state of the platform. AMD's SEV API (document 55766), section 5.1.2; SNP's (56860) has the first two."""

    UNINIT = 0
    INIT = 1
    WORKING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One answer of the secure processor. ``guests`` is how many its firmware knows."""

    api_major: int
    api_minor: int
    build: int
    state: int
    guests: int

    @property
    def api(self) -> str:
        return f"{self.api_major}.{self.api_minor}"

    @property
    def state_name(self) -> str:
        return State(self.state).name.lower() if self.state in set(State) else str(self.state)


def platform_status(files: HostFiles, command: Command) -> Status:
    """Ask the device, or the file in its place.

    Raises ``FileNotFoundError``, ``PermissionError``, and ``OSError`` where the secure processor does not answer.
    """
    node = files.node(DEVICE)
    if node is None:
        raise FileNotFoundError(f"{files.where(DEVICE)} is not there")
    if not node.is_device:
        return _captured(files, command)
    answer = ctypes.create_string_buffer(64)
    request = bytearray(struct.pack("=IQI", command, ctypes.addressof(answer), 0))
    descriptor = os.open(files.resolve(DEVICE), os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _ISSUE, request)
    except OSError as error:
        code = struct.unpack("=IQI", request)[2]
        detail = f", its error code is {code:#x}" if code else ""
        raise OSError(error.errno, f"{command.name} failed: {error.strerror}{detail}") from error
    finally:
        os.close(descriptor)
    return _decode(command, answer.raw)


def _decode(command: Command, answer: bytes) -> Status:
    if command is Command.SEV_PLATFORM_STATUS:
        major, minor, state, _flags, build, guests = struct.unpack_from("=BBBIBI", answer)
    else:
        major, minor, state, _rmp, build, _mask, guests = struct.unpack_from("=BBBBIII", answer)
    return Status(api_major=major, api_minor=minor, build=build, state=state, guests=guests)


def _captured(files: HostFiles, command: Command) -> Status:
    try:
        document = tomllib.loads(files.text(DEVICE))
    except tomllib.TOMLDecodeError as error:
        raise OSError(f"{files.where(DEVICE)} is neither a device nor a captured answer") from error
    section: Any = document.get("sev" if command is Command.SEV_PLATFORM_STATUS else "snp")
    if not isinstance(section, dict) or "error" in section:
        why = section["error"] if isinstance(section, dict) else "no answer was captured"
        raise OSError(f"{command.name} failed: {why}")
    try:
        return Status(**section)
    except TypeError as error:
        raise OSError(f"{files.where(DEVICE)}: {error}") from error
