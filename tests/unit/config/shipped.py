"""The configuration files that are shipped, and their models."""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from sev_agent.config import AgentConfig, ApiConfig, DaemonConfig, SchedulerConfig, Section

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "conf" / "sev-agent.toml"


@dataclass(frozen=True)
class Shipped:
    """A daemon's configuration: its model, its shipped file, and what is in force there."""

    model: type[DaemonConfig]
    in_force: dict[str, set[str]]

    @property
    def text(self) -> str:
        return (ROOT / self.model.reference).read_text()

    @property
    def uncommented(self) -> str:
        """The reference file with every setting that it names, the commented ones too."""
        return re.sub(r"(?m)^#(?=[a-z_]+ = )", "", self.text)


SHIPPED = [
    Shipped(AgentConfig, {"auth": {"auth_url", "username"}}),
    Shipped(ApiConfig, {"auth": {"auth_url", "username"}}),
    Shipped(SchedulerConfig, {"auth": {"auth_url", "username"}}),
]


def sections(model: type[DaemonConfig] = AgentConfig) -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
