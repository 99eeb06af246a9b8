"""Reading a daemon's configuration: its TOML file, overridden by the environment."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sev_agent import crash_points
from sev_agent.config.agent import AgentConfig
from sev_agent.config.every_daemon import DaemonConfig
from sev_agent.config.section import Section
from sev_agent.errors import SevAgentError

ENVIRONMENT_PREFIX = "SEV_AGENT_"
_FOREIGN = frozenset({"SEV_AGENT_CONFIG", "SEV_AGENT_BROKER_URL", "SEV_AGENT_HOST"})
_FOREIGN_PREFIX = "SEV_AGENT_LAB"
"""Variables of the commands and of the lab, which a daemon may inherit from a shell that has them."""

_DELIMITER = "__"

D = TypeVar("D", bound=DaemonConfig)


class ConfigurationError(SevAgentError):
    """The configuration cannot be used."""

    code = "configuration"


def load(path: Path, environment: Mapping[str, str] | None = None) -> AgentConfig:
    """The host daemon's configuration, read by ``load_as``."""
    return load_as(AgentConfig, path, environment)


def load_as(model: type[D], path: Path, environment: Mapping[str, str] | None = None) -> D:
    """Read a configuration from the TOML file ``path``, overridden by ``SEV_AGENT_<SECTION>__<KEY>`` variables.

    A variable's value is a text; where the setting is a list, it is one in TOML's spelling.
    Raises ``ConfigurationError`` that lists every fault with its path: an unreadable file, an unknown key or variable,
    a value of the wrong type or out of bounds, one that another value demands.
    """
    values = _read(path, model.reference)
    for section in model.model_fields.keys() & {"host", "scheduler"}:
        # Without its section, a fault of the machine's own name would be told without its path, and alone.
        values.setdefault(section, {})
    faults = _override(values, os.environ if environment is None else environment, variables(model))
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        faults += [_describe(fault) for fault in error.errors(include_url=False, include_input=False)]
    else:
        faults += config.missing()
        if not faults:
            return config
    raise ConfigurationError(
        f"{path} cannot be used:\n  " + "\n  ".join(faults),
        remedy=f"correct each line; {model.reference} documents every key",
    )


def variables(model: type[DaemonConfig] = AgentConfig) -> dict[str, tuple[str, str]]:
    """Every environment variable that ``load_as`` knows, with the section and the key that it sets."""
    return {
        f"{ENVIRONMENT_PREFIX}{section}{_DELIMITER}{key}".upper(): (section, key)
        for section, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        for key in field.annotation.model_fields
    }


def _read(path: Path, reference: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}",
            remedy=f"give the daemon's file with --config, or make one from {reference}",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}", remedy="correct the syntax") from None


def _override(
    values: dict[str, Any], environment: Mapping[str, str], known: Mapping[str, tuple[str, str]]
) -> list[str]:
    """Put the environment's settings over those of the file, and tell what is wrong with them."""
    faults = []
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in _FOREIGN or name.startswith(_FOREIGN_PREFIX):
            continue
        if name == crash_points.VARIABLE:
            faults += crash_points.faults(text)
            continue
        if name not in known:
            # Ignored, a mistyped variable would silently do nothing.
            faults.append(f"{name}: no such setting")
            continue
        section, key = known[name]
        present = values.setdefault(section, {})
        if isinstance(present, dict):
            present[key] = _list(text) if text.lstrip().startswith("[") else text
    return faults


def _list(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _describe(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    text = "no such setting" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
    return f"{path}: {text}"
