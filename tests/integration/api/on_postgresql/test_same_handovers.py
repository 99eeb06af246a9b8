"""What was handed to the schedulers, and what was lost then, is told apart on PostgreSQL as on SQLite."""

# ruff: noqa: F403 - the very same tests, found by their names
from tests.unit.api.test_handovers import *
