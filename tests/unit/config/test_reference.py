"""The files that are shipped: every setting is in them, with its default."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from sev_agent.config import load_as
from tests.unit.config.shipped import ROOT, SHIPPED, Shipped, sections


@pytest.fixture(params=SHIPPED, ids=lambda shipped: shipped.model.__name__)
def shipped(request: pytest.FixtureRequest) -> Shipped:
    shipped: Shipped = request.param
    return shipped


def _plain(value: Any) -> Any:
    """A value as TOML would write it."""
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class TestReference:
    def test_loads_as_shipped(self, shipped: Shipped) -> None:
        """The file as it is shipped can be started with."""
        assert load_as(shipped.model, ROOT / shipped.model.reference, {})

    def test_loads_with_every_line_in_force(self, path: Path, shipped: Shipped) -> None:
        """No default that it shows, and no example, is refused."""
        path.write_text(shipped.uncommented)
        load_as(shipped.model, path, {})

    def test_names_every_setting_and_no_other(self, shipped: Shipped) -> None:
        """Its sections and keys are those of the model, one for one."""
        expected = {name: set(section.model_fields) for name, section in sections(shipped.model).items()}
        assert {name: set(keys) for name, keys in tomllib.loads(shipped.uncommented).items()} == expected
        assert set(expected) == set(shipped.model.model_fields)

    def test_names_a_setting_once(self, shipped: Shipped) -> None:
        """No key stands twice in a section, neither commented nor in force."""
        section, seen = "", []
        for line in shipped.text.splitlines():
            if heading := re.fullmatch(r"\[(\w+)\]", line):
                section = heading[1]
            elif setting := re.match(r"#?([a-z_]+) = ", line):
                seen.append(f"{section}.{setting[1]}")
        assert len(seen) == len(set(seen))

    def test_shows_the_defaults(self, shipped: Shipped) -> None:
        """The value of each line is the default; where there is none, the line is an example."""
        shown = tomllib.loads(shipped.uncommented)
        for name, section in sections(shipped.model).items():
            for key, field in section.model_fields.items():
                if field.default is PydanticUndefined or field.default in {None, ()}:
                    continue
                if (name, key) == ("auth", "username"):
                    continue
                assert shown[name][key] == _plain(field.default), f"{name}.{key}"

    def test_sets_only_what_has_no_usable_default(self, shipped: Shipped) -> None:
        """What is in force in the shipped file is what a site must set, and nothing else."""
        live = tomllib.loads(shipped.text)
        assert {name: set(keys) for name, keys in live.items() if keys} == shipped.in_force

    def test_explains_every_setting(self, shipped: Shipped) -> None:
        """Each group of settings follows a comment of prose."""
        blocks = [block for block in shipped.text.split("\n\n") if re.search(r"(?m)^#?[a-z_]+ = ", block)]
        for block in blocks:
            first = re.sub(r"^\[\w+\]\n", "", block)
            assert first.startswith("# "), block
