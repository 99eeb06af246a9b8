"""The status page: whole, honest, and never anything but text where others wrote."""

import re
import time
from base64 import b64encode
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter

from sev_agent import __version__
from sev_agent.observe.health import OF_A_HOST, Dependency, Health
from sev_agent.observe.page import Row, StatusPage, Table, ago, counted
from tests.status_page import read, rows, words


def page(*tables: Table, health: Health | None = None) -> StatusPage:
    return StatusPage("Host node1", health=health or Health(), tables=lambda: tables)


def table(*cells: str, note: str = "") -> Table:
    return Table(heading="Some", columns=("a", "b", "c")[: len(cells)], rows=(Row(cells),) if cells else (), note=note)


def test_ready() -> None:
    """The first things said are whose page it is, that it is ready, and the version."""
    health = Health()
    for dependency in OF_A_HOST:
        health.up(dependency)
    root = read(page(health=health).html())
    header = root.find(".//header")
    assert header is not None
    assert words(header).startswith(f"Host node1 ready sev-agent {__version__}, ")
    assert root.findtext(".//title") == "Host node1: ready"
    assert [(row[0], row[1]) for row in rows(root, "What it leans on")] == [(each, "up") for each in OF_A_HOST]
    assert not root.findall(".//*[@class='look']")


def test_not_ready() -> None:
    """What is down is named with its reason and since when; it is marked, and said in words as well."""
    health = Health([Dependency.LIBVIRT, Dependency.BROKER])
    health.up(Dependency.LIBVIRT)
    health.down(Dependency.BROKER, "connection refused")
    root = read(page(health=health).html())
    assert root.findtext(".//title") == "Host node1: not ready"
    libvirt, broker = rows(root, "What it leans on")
    assert (libvirt[:2], libvirt[4]) == (["libvirt", "up"], "")
    assert (broker[:2], broker[4]) == (["broker", "down"], "connection refused")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", broker[2])
    assert broker[3].endswith(" s")
    assert [words(row[0]) for row in root.findall(".//tr[@class='look']")] == ["broker"]


def test_tables() -> None:
    """Each table has its heading, the names of its columns and of its rows for those who hear them, and its note."""
    root = read(page(table("x", "1", note="2 more"), table(note="None.")).html())
    _, shown, empty = root.iter("section")
    head = shown.find("h2")
    assert head is not None
    assert (words(head), shown.get("aria-labelledby")) == ("Some", head.get("id"))
    assert [(each.text, each.get("scope")) for each in shown.iter("th")] == [("a", "col"), ("b", "col"), ("x", "row")]
    assert words(shown).endswith("1 2 more")
    assert (words(empty), empty.find("table")) == ("Some None.", None)
    identities = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(identities) == len(set(identities)) == 3


def test_needs_nothing_else() -> None:
    """The page loads nothing and runs nothing, and its links stay with the daemon, also behind a proxy's path."""
    root = read(page(table("x")).html())
    assert root.get("lang") == "en"
    assert {each.tag for each in root.iter()}.isdisjoint({"script", "link", "img", "iframe", "form", "object", "base"})
    assert [each.get("href") for each in root.iter("a")] == [".", "readyz", "healthz", "metrics"]
    assert not [name for each in root.iter() for name in each.keys() if name.startswith("on") or name == "style"]  # noqa: SIM118 - an element's


def test_policy_lets_the_style_through() -> None:
    """A browser applies the page's one style, because its digest is in the policy that forbids all else."""
    status_page = page()
    (style,) = read(status_page.html()).iter("style")
    digest = b64encode(sha256((style.text or "").encode()).digest()).decode()
    policy = dict(each.split(" ", 1) for each in status_page.headers["Content-Security-Policy"].split("; "))
    assert policy.pop("style-src") == f"'sha256-{digest}'"
    assert set(policy.values()) == {"'none'"}
    assert "color-scheme: light dark" in (style.text or "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("</td><script>alert(1)</script>", "</td><script>alert(1)</script>"),
        ('"><img src=x onerror=alert(1)>', '"><img src=x onerror=alert(1)>'),
        ("&lt;b&gt; &amp;", "&lt;b&gt; &amp;"),
        ("\x1b[31mred\x00", "\ufffd[31mred\ufffd"),
        ("moc.live\u202egood.com", "moc.live\ufffdgood.com"),
        ("two\n  lines", "two lines"),
        ("x" * 501, "x" * 500 + "…"),
    ],
)
def test_text_from_outside(text: str, shown: str) -> None:
    """What others wrote is text on the page, whatever it looks like: in a reason, in a cell, in a note."""
    health = Health([Dependency.LIBVIRT])
    health.down(Dependency.LIBVIRT, text)
    root = read(page(table("a", text, note=text), health=health).html())
    assert rows(root, "What it leans on")[0][4] == shown
    assert rows(root, "Some")[0][1] == shown
    assert root.find(".//script") is None
    assert root.find(".//img") is None


@given(st.text(min_size=1))
def test_any_text(text: str) -> None:
    """No text whatever breaks the page, or makes elements of its own."""
    tags = [each.tag for each in read(page(table("a", "b", "c", note="d")).html()).iter()]
    root = read(page(table("a", text, "c", note=text)).html())
    assert [each.tag for each in root.iter()] == tags


def test_counted() -> None:
    """A counter is a table of its labels; one that has counted nothing says so."""
    counter = Counter("builds", "Builds.", ("outcome", "code"), registry=CollectorRegistry())
    assert (counted("Builds", counter).rows, counted("Builds", counter).note) == ((), "None.")
    counter.labels("active", "").inc()
    counter.labels("error", "image.missing").inc(2)
    shown = counted("Builds", counter)
    assert (shown.heading, shown.columns) == ("Builds since the start", ("outcome", "code", "number"))
    assert [row.cells for row in shown.rows] == [("active", "", "1"), ("error", "image.missing", "2")]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "0 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (3 * 3600 + 60, "3 h 1 min"),
        (50 * 3600, "2 d 2 h"),
    ],
)
def test_ago(seconds: float, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that passed is told in two units at most; a clock that was set back shows nothing odd."""
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert ago(1e9 - seconds) == told
