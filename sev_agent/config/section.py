"""What configurations are made of: sections of settings, and the kinds of value that many of them have."""

import socket
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _is_absolute(path: Path) -> Path:
    # They are told to libvirt and QEMU, which work in another directory.
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_is_absolute)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+(/\S*)?$")]
MachineName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._-]+$")]


def machine_name() -> str:
    return socket.gethostname()


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
