"""A user's shell in the lab: the stock ``openstack`` command and ours, with what ``openrc`` exports."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sev_agent.lab import openrc
from sev_agent.lab.cloud import Lab
from tests.e2e.cloud import Result, run
from tests.e2e.waiting import eventually


class Shell:
    """The shell of tenant ``user`` (``red-member``), or of the operator."""

    def __init__(self, lab: Lab, user: str | None = None) -> None:
        file = lab.directory / "openrc" if user is None else lab.directory / openrc.DIRECTORY / user
        self._bin = lab.directory / "bin"
        self.variables = _exported(file)

    async def run(self, command: str, *arguments: str | Path) -> Result:
        """``openstack`` or ``sev-agent`` with ``arguments``."""
        environment = {**os.environ, **self.variables, "COLUMNS": "200", "NO_COLOR": "1"}
        return await run(self._bin / command, *map(str, arguments), environment=environment)

    async def openstack(self, *arguments: str | Path) -> str:
        """What the command printed; it must succeed."""
        result = await self.run("openstack", *arguments)
        assert result.status == 0, f"openstack {arguments}: {result.errors}"
        return result.output

    async def json(self, *arguments: str | Path) -> Any:
        """What the command printed, decoded; it must succeed."""
        return json.loads(await self.openstack(*arguments, "-f", "json"))

    async def refused(self, *arguments: str | Path) -> str:
        """What the command complained of; it must fail."""
        result = await self.run("openstack", *arguments)
        assert result.status != 0, f"openstack {arguments}: {result.output}"
        return result.errors

    async def becomes(self, server: str, status: str, *, within: float = 60) -> None:
        """Wait until the server has ``status``."""

        async def has_it() -> bool:
            return bool((await self.json("server", "show", server))["status"] == status)

        await eventually(has_it, within=within, what=f"server {server} is {status}")


def _exported(file: Path) -> Mapping[str, str]:
    words = shlex.split(file.read_text())
    return dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("PATH="))
