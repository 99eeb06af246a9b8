"""What the commands of all daemons share: the file that they are told by, and their exit statuses."""

import gc
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer

from sev_agent.cli.lean import without_extras
from sev_agent.config import ConfigurationError, DaemonConfig, load_as
from sev_agent.errors import HostTaken, SevAgentError

FAILED: Final = 1
CONFIG_FAULT: Final = 78
"""``EX_CONFIG`` of sysexits.h: restarting does not help; the unit files name it too."""

HOST_TAKEN: Final = 75
"""``EX_TEMPFAIL``: another daemon has this host. It may be a leftover, so the service manager tries again, bounded."""

Check = Annotated[bool, typer.Option("--check", help="Only read the configuration, and say what is wrong.")]

D = TypeVar("D", bound=DaemonConfig)


def read(model: type[D], config: Path) -> D:
    """The configuration in ``config``; ends the command where it cannot be used."""
    try:
        return load_as(model, config)
    except SevAgentError as error:
        _end(error, CONFIG_FAULT)


def prepare(model: type[D], config: Path, *, check: bool) -> D:
    """As ``read``, with the log set up; ends the command where only a ``check`` is asked for."""
    settings = read(model, config)
    if check:
        typer.echo(f"{config} is in order.")
        raise typer.Exit
    with without_extras():
        from sev_agent import log  # noqa: PLC0415 - it imports structlog

    log.configure(settings.log)
    return settings


def serve(work: Coroutine[Any, Any, None]) -> None:
    """Run a daemon to its end; what it fails with is told on standard error and by the exit status."""
    from sev_agent import service  # noqa: PLC0415 - it imports structlog

    # What is loaded by now stays, and need not be looked through for garbage. As a part of what the collector counts it
    # would also put off the collection of all the rest: until a quarter of it has become garbage.
    gc.collect()
    gc.freeze()
    try:
        service.run(work)
    except HostTaken as error:
        _end(error, HOST_TAKEN)
    except ConfigurationError as error:
        _end(error, CONFIG_FAULT)
    except (SevAgentError, OSError) as error:
        _end(error, FAILED)


def _end(error: Exception, status: int) -> NoReturn:
    typer.echo(f"sev-agent: {error}", err=True)
    raise typer.Exit(status) from None
