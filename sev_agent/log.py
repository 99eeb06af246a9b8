"""Logging: structlog for our records and the libraries' alike, colour on a terminal, JSON lines elsewhere."""

import logging
import re
import sys
from typing import TextIO

import structlog

from sev_agent.config import LogFormat, LogSection

_QUIET = ("asyncio", "aio_pika", "aiormq", "aiohttp.access", "apscheduler", "pycdlib")
"""Libraries whose informational records repeat what we log ourselves."""

_MUTE = ("aiormq.connection",)
"""Libraries whose errors, too: this one logs each attempt of an outage that is told once."""

_PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]*@")
"""In a URL, between the user's name and the host."""


def configure(settings: LogSection, stream: TextIO | None = None) -> None:
    """Send every record of the process to ``stream`` (standard error by default), from ``settings.level`` up."""
    target = sys.stderr if stream is None else stream
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    colour = settings.format is LogFormat.CONSOLE or (settings.format is LogFormat.AUTO and target.isatty())
    # Tracebacks without the frames' variables, unlike structlog's own defaults: among them are passwords.
    render: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if colour
        else [
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render, _without_passwords],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _MUTE:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _without_passwords(_logger: object, _method: str, rendered: structlog.typing.EventDict) -> str:
    """The rendered line: a library's text may carry the broker's URL as it was given."""
    return _PASSWORD.sub(r"\1:***@", str(rendered))
