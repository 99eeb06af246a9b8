"""What is tested on SQLite beside no service at all has the same answers here: bad input, faults, and filters."""

# ruff: noqa: F403 - the very same tests, found by their names
from tests.unit.api.test_bad_bodies import *
from tests.unit.api.test_bad_input import *
from tests.unit.api.test_filters import *
from tests.unit.api.test_other_projects import *
from tests.unit.api.test_parts_away import *
