"""What the project's daemons have in common where the lab runs them: their configuration's text, and their start."""

import json
import os
import sys
from collections.abc import Mapping
from typing import TypeAlias

from sev_agent.lab.openstack import REGION, SERVICE_PROJECT, SERVICE_USER, OpenStack
from sev_agent.lab.probe import http_answers
from sev_agent.lab.service import Service

Values: TypeAlias = Mapping[str, str | int | list[str]]
Sections: TypeAlias = Mapping[str, Values]


def auth_section(cloud: OpenStack) -> Values:
    """The credentials of the daemons at OpenStack's services."""
    return {
        "type": "password",
        "auth_url": f"{cloud.keystone_url}/v3",
        "username": SERVICE_USER,
        "password": cloud.password,
        "project_name": SERVICE_PROJECT,
        "region_name": REGION,
    }


def http_section(port: int) -> Values:
    return {"host": "127.0.0.1", "port": port}


def command(*arguments: str) -> tuple[str, ...]:
    """``sev-agent`` with ``arguments``, from the Python that runs the lab."""
    return (sys.executable, "-m", "sev_agent", *arguments)


def service(
    name: str,
    kind: str,
    arguments: tuple[str, ...],
    *,
    http_port: int,
    address: str = "",
    platform: str = "",
    stop_timeout: float = 20,
) -> Service:
    """A daemon that serves its readiness on ``http_port`` of loopback."""
    url = f"http://127.0.0.1:{http_port}"
    return Service(
        name=name,
        kind=kind,
        address=address or url,
        platform=platform,
        command=command(*arguments),
        environment=_import_path(),
        port=http_port,
        ready=lambda: http_answers(f"{url}/readyz"),
        ready_timeout=60,
        stop_timeout=stop_timeout,
    )


def toml(sections: Sections) -> str:
    """Strings, whole numbers and lists of them are written alike in JSON and in TOML."""
    lines: list[str] = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items()), ""]
    return "\n".join(lines)


def _import_path() -> dict[str, str]:
    """A lab that was started from a source tree runs the daemons of that tree."""
    return {name: os.environ[name] for name in ("PYTHONPATH",) if os.environ.get(name)}
