"""What configurations are made of: sections of settings, and the kinds of value that many of them have."""

import re
import socket
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _is_absolute(path: Path) -> Path:
    # They are told to libvirt and QEMU, which work in another directory.
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _is_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        raise ValueError("must be an address: http://HOST:PORT/PATH or https://HOST:PORT/PATH")
    return text


def _is_machine_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name):
        raise ValueError("must be 1 to 200 letters, digits, '.', '_' and '-'")
    return name


AbsolutePath = Annotated[Path, AfterValidator(_is_absolute)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Url = Annotated[str, AfterValidator(_is_url)]
MachineName = Annotated[str, AfterValidator(_is_machine_name)]


def machine_name() -> str:
    return socket.gethostname()


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
