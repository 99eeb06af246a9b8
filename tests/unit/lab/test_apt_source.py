from pathlib import Path

import pytest

from sev_agent.lab import apt_source

DEB822 = """\
# The distribution.
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""

EMBEDDED_KEY = """\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBGPL0BUBEADmW5NdOOHwPIJlgPu6JDcKw/NZJPR8lsD3K87ZM18gzyQZJD+w
 -----END PGP PUBLIC KEY BLOCK-----
"""


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def derived(apt: Path) -> apt_source.SourceFile:
    source = apt_source.derive(apt, "bookworm")
    assert source is not None
    return source


def test_a_deb822_source_gives_its_address_and_key(apt: Path) -> None:
    """The backports come from the address, by the key, of the stanza that offers the distribution itself."""
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    source = derived(apt)
    assert source.name == "bookworm-backports.sources"
    assert source.text.splitlines()[1:] == [
        "Types: deb",
        "URIs: http://mirror.example/debian",
        "Suites: bookworm-backports",
        "Components: main",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg",
    ]


def test_a_key_that_is_written_out_is_kept_whole(apt: Path) -> None:
    """A key inside of the stanza is copied with every line of it."""
    (apt / "sources.list.d/debian.sources").write_text(EMBEDDED_KEY)
    assert derived(apt).text.endswith(EMBEDDED_KEY.partition("Components: main\n")[2])


def test_a_one_line_source_gives_its_address_and_options(apt: Path) -> None:
    """The options in brackets go along; comments, sources of source code and other suites are passed over."""
    (apt / "sources.list").write_text(
        "# deb http://old.example/debian bookworm main\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb http://mirror.example/security bookworm-security main\n"
        "deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian bookworm main non-free # here\n"
    )
    source = derived(apt)
    assert source.name == "bookworm-backports.list"
    line = "deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian bookworm-backports main"
    assert source.text.splitlines()[1:] == [line]


@pytest.mark.parametrize(
    "text",
    [
        "deb cdrom:[Debian GNU/Linux 12]/ bookworm main\n",
        "deb http://mirror.example/debian bookworm contrib\n",
        "deb http://mirror.example/ubuntu jammy main\n",
        "",
    ],
)
def test_no_source_of_the_distribution_is_no_source_of_its_backports(apt: Path, text: str) -> None:
    """From a CD, another component or another distribution nothing is derived."""
    (apt / "sources.list").write_text(text)
    assert apt_source.derive(apt, "bookworm") is None


def test_a_stanza_that_is_switched_off_does_not_count(apt: Path) -> None:
    """'Enabled: no' is as if the stanza were not there."""
    (apt / "sources.list.d/debian.sources").write_text(f"Enabled: no\n{EMBEDDED_KEY}")
    assert apt_source.derive(apt, "bookworm") is None


def test_the_suite_is_known_once_its_file_is_written(apt: Path) -> None:
    """What is derived is itself recognised, so it is not added twice."""
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    assert not apt_source.has_suite(apt, "bookworm-backports")
    source = derived(apt)
    (apt / "sources.list.d" / source.name).write_text(source.text)
    assert apt_source.has_suite(apt, "bookworm-backports")


def test_a_one_line_suite_is_known_too(apt: Path) -> None:
    """A backports line that an administrator added counts."""
    (apt / "sources.list").write_text("deb http://mirror.example/debian bookworm-backports main\n")
    assert apt_source.has_suite(apt, "bookworm-backports")


def test_files_that_apt_ignores_are_ignored(apt: Path) -> None:
    """A file with another ending is no source to apt, so it is none here."""
    (apt / "sources.list.d/debian.sources.save").write_text(DEB822)
    assert apt_source.derive(apt, "bookworm") is None
