import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from sev_agent import log
from sev_agent.config import LogFormat, LogSection

_SECRET = "s3cret-of-keystone"
"""By its name in the code that fails: a traceback shows the source's lines."""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    for name in (*log._QUIET, *log._MUTE):
        logging.getLogger(name).setLevel(logging.NOTSET)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _configured(level: str = "info", **settings: Any) -> io.StringIO:
    stream = io.StringIO()
    log.configure(LogSection.model_validate({"level": level, **settings}), stream)
    return stream


def _records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_own_record_is_one_json_line() -> None:
    """A record of ours is one line of JSON with its event, fields, level, logger and time in UTC."""
    stream = _configured()
    structlog.stdlib.get_logger("sev_agent.part").info("image.download.started", size=7, name="a\nb")
    (record,) = _records(stream)
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "event": "image.download.started",
        "size": 7,
        "name": "a\nb",
        "level": "info",
        "logger": "sev_agent.part",
    }


def test_library_record_is_json_too() -> None:
    """A record of a library comes in the same form, its arguments put in and its extra fields kept."""
    stream = _configured()
    logging.getLogger("some.library").warning("lost %s of %d", "two", 3, extra={"peer": "broker"})
    (record,) = _records(stream)
    assert record["event"] == "lost two of 3"
    assert (record["level"], record["logger"], record["peer"]) == ("warning", "some.library", "broker")


def test_context_variables_are_in_both_kinds() -> None:
    """What is bound to the context of the work stands in our records and in those of the libraries it calls."""
    stream = _configured()
    with structlog.contextvars.bound_contextvars(instance_uuid="u-1", request_id="req-1"):
        structlog.stdlib.get_logger("ours").info("instance.build.started")
        logging.getLogger("theirs").warning("slow")
    structlog.stdlib.get_logger("ours").info("idle")
    ours, theirs, idle = _records(stream)
    assert (ours["instance_uuid"], ours["request_id"]) == ("u-1", "req-1")
    assert (theirs["instance_uuid"], theirs["request_id"]) == ("u-1", "req-1")
    assert "instance_uuid" not in idle


def test_level_rules_for_all() -> None:
    """Below the configured level nothing is written, neither ours nor a library's."""
    stream = _configured(level="warning")
    structlog.stdlib.get_logger("ours").info("quiet")
    logging.getLogger("theirs").info("quiet")
    structlog.stdlib.get_logger("ours").warning("loud")
    assert [record["event"] for record in _records(stream)] == ["loud"]


def test_chatter_of_libraries_is_left_out() -> None:
    """Informational records of the noisy libraries, and the error of each attempt to connect, are not written."""
    stream = _configured(level="debug")
    logging.getLogger("apscheduler.executors.default").info("Running job")
    logging.getLogger("asyncio").debug("Using selector")
    logging.getLogger("aiormq.connection").error("error when creating transport")
    logging.getLogger("aio_pika.channel").warning("channel closed")
    assert [record["event"] for record in _records(stream)] == ["channel closed"]


@pytest.mark.parametrize("form", [LogFormat.JSON, LogFormat.CONSOLE])
@pytest.mark.parametrize("password", ["hunter2", "p%2Fw%40rd", "a;b?c#d&e", "päss"])
def test_password_of_a_url_is_not_logged(form: LogFormat, password: str) -> None:
    """The password of a URL is struck out wherever it stands: in an event, a field, a nested one, an exception."""
    stream = _configured(format=form)
    url = f"amqp://agent:{password}@broker.example:5672/cloud"
    ours, theirs = structlog.stdlib.get_logger("ours"), logging.getLogger("theirs")
    ours.info("broker.lost", url=url, peers=[{"address": url}])
    theirs.warning("cannot connect to %s", url)
    ours.error("broker.failed", exc_info=ConnectionError(f"refused by {url}"))
    text = stream.getvalue()
    assert json.dumps(password)[1:-1] not in text
    assert password not in text
    assert text.count("amqp://agent:***@broker.example:5672/cloud") >= 4


def test_other_urls_are_left_alone() -> None:
    """A URL without a password, and an address with a port and a later @, stay as they are."""
    stream = _configured()
    urls = ["http://host:8778/resource_providers?name=a@b", "amqp://agent@broker/", "qemu:///system", "a:b@c"]
    structlog.stdlib.get_logger("ours").info("urls", urls=urls)
    assert _records(stream)[0]["urls"] == urls


@pytest.mark.parametrize("form", [LogFormat.JSON, LogFormat.CONSOLE])
def test_traceback_tells_no_variables(form: LogFormat) -> None:
    """A traceback names the places, and never the values of variables there: one may be a password."""
    stream = _configured(format=form)
    try:
        _fail(_SECRET)
    except ValueError:
        structlog.stdlib.get_logger("ours").exception("token.failed")
    text = stream.getvalue()
    assert "_fail" in text
    assert "ValueError" in text
    assert _SECRET not in text


def _fail(password: str) -> None:
    raise ValueError(f"{len(password)} characters")


def test_exception_stays_on_its_line_in_json() -> None:
    """With a traceback, too, a record is one line, and the exception has structure."""
    stream = _configured()
    try:
        _fail("")
    except ValueError:
        logging.getLogger("theirs").exception("failed")
    (record,) = _records(stream)
    assert record["exception"][0]["exc_type"] == "ValueError"


@pytest.mark.parametrize(
    ("form", "terminal", "json_expected"),
    [
        (LogFormat.AUTO, False, True),
        (LogFormat.AUTO, True, False),
        (LogFormat.JSON, True, True),
        (LogFormat.CONSOLE, False, False),
    ],
)
def test_format_follows_setting_and_terminal(form: LogFormat, terminal: bool, json_expected: bool) -> None:  # noqa: FBT001 - parametrized
    """``auto`` is for people on a terminal and JSON elsewhere; the other two are what they say."""
    stream = _Terminal() if terminal else io.StringIO()
    log.configure(LogSection(format=form), stream)
    structlog.stdlib.get_logger("ours").info("hello")
    assert stream.getvalue().startswith("{") == json_expected


def test_no_colour_codes_off_a_terminal() -> None:
    """The console form in a file has no escape sequences."""
    stream = _configured(format="console")
    structlog.stdlib.get_logger("ours").error("plain")
    assert "\x1b" not in stream.getvalue()


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Records go to standard error, which is what systemd keeps; standard output stays for results."""
    log.configure(LogSection(), None)
    structlog.stdlib.get_logger("ours").info("where")
    captured = capsys.readouterr()
    assert json.loads(captured.err)["event"] == "where"
    assert not captured.out


def test_configuring_twice_does_not_double() -> None:
    """A second configuration replaces the first: each record is written once, to the newer stream."""
    first, second = _configured(), _configured()
    structlog.stdlib.get_logger("ours").info("once")
    assert (len(_records(first)), len(_records(second))) == (0, 1)
