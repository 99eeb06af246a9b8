"""Addresses are given on PostgreSQL as on SQLite, to many at once, too."""

# ruff: noqa: F403 - the very same tests, found by their names
from tests.unit.api.test_addresses import *
