import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sev_agent"

BELOW: dict[str, set[str]] = {
    # What everything may lean on.
    "errors": set(),
    "backoff": set(),
    "foreign_json": set(),
    "uninterrupted": set(),
    "question": set(),
    "service": set(),
    "crash_points": set(),
    "durable": {"crash_points"},
    "subprocesses": {"errors"},
    # The vocabulary: no I/O.
    "sev": {"errors"},
    "schema": {"errors", "sev"},
    "domain": {"errors", "schema", "sev"},
    "config": {"crash_points", "errors", "sev"},
    "log": {"config"},
    # The adapters: each knows one thing outside, and none of the others.
    "hypervisor": {"backoff", "config", "domain", "errors", "sev"},
    "messaging": {"backoff", "crash_points", "durable", "errors", "foreign_json", "schema", "uninterrupted"},
    "openstack": {"config", "errors", "uninterrupted"},
    "observe": {"config", "errors", "uninterrupted"},
}
ALLOWED: dict[str, set[str]] = {
    **BELOW,
    # The daemons: none knows another.
    "compute": {*BELOW},
    "scheduler": BELOW.keys() - {"hypervisor", "domain"},
    "api": BELOW.keys() - {"hypervisor", "domain"},
    # What readies a host, and the cloud on one machine, which reaches the daemons by their commands alone.
    "host": {*BELOW},
    "lab": BELOW.keys() - {"hypervisor", "messaging", "observe"},
    # The wiring.
    "cli": {*BELOW, "compute", "scheduler", "api", "host", "lab"},
    "__main__": {"cli"},
}
"""What each part of the package may import of the others."""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def part_of(module: str) -> str:
    return module.split(".")[1]


def imports(module: str) -> Iterator[str]:
    """Every module of the package that ``module`` imports, anywhere in it."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        match node:
            case ast.Import(names):
                wanted = [name.name for name in names]
            case ast.ImportFrom(of, names, level):
                origin = resolve_name("." * level + (of or ""), package) if level else str(of)
                # A name that is a module is imported by it; another one is of its origin.
                wanted = [each if (each := f"{origin}.{name.name}") in MODULES else origin for name in names]
            case _:
                continue
        yield from (name for name in wanted if name in MODULES and name not in {module, "sev_agent"})


def test_every_part_has_its_place() -> None:
    """A new part of the package says here what it may import."""
    assert {part_of(name) for name in MODULES if name != "sev_agent"} == set(ALLOWED)


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows_point_down(part: str) -> None:
    """A part imports what stands below it, and nothing beside or above."""
    wrong = {
        (module, wanted)
        for module in MODULES
        if module != "sev_agent" and part_of(module) == part
        for wanted in imports(module)
        if part_of(wanted) not in {part, *ALLOWED[part]}
    }
    assert not wrong


def test_no_module_imports_itself_by_way_of_others() -> None:
    """The modules can be put into an order in which each comes after all that it imports."""
    try:
        TopologicalSorter({module: set(imports(module)) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
