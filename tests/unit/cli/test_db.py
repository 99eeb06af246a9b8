"""``sev-agent db``, and what keeps it from its work."""

import sqlite3
from contextlib import closing
from pathlib import Path

from typer.testing import CliRunner, Result

from sev_agent.cli.main import app

CONFIG = """
[auth]
type = "none"
[database]
url = "sqlite:///{database}"
timeout = 1
"""


def test_upgrade(tmp_path: Path) -> None:
    """The tables are made, and the revision is named."""
    done = _upgrade(tmp_path, tmp_path / "api.sqlite")
    assert done.exit_code == 0
    assert done.output.startswith("The database is at revision ")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """It is an error in one line, not a traceback, and the file stays as it is."""
    file = tmp_path / "notes.txt"
    text = "not a database\n" * 100
    file.write_text(text)
    refused = _upgrade(tmp_path, file)
    assert refused.exit_code == 1
    assert refused.output == "sev-agent: the database cannot be upgraded: file is not a database\n"
    assert file.read_text() == text


def test_a_database_that_others_use(tmp_path: Path) -> None:
    """It is waited for as long as is configured, then left as it is, with the reason."""
    path = tmp_path / "api.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE other (id INTEGER)")
        other.execute("BEGIN IMMEDIATE")
        refused = _upgrade(tmp_path, path)
    assert refused.exit_code == 1
    assert refused.output.startswith("sev-agent: the database cannot be upgraded: other users of the database left it")


def _upgrade(directory: Path, database: Path) -> Result:
    config = directory / "api.toml"
    config.write_text(CONFIG.format(database=database))
    return CliRunner().invoke(app, ["db", "upgrade", "--config", str(config)])
