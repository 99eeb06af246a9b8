import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sev_agent

PACKAGE = Path(sev_agent.__file__).parent
DOING = {"asyncio", "io", "os", "shutil", "socket", "subprocess", "tempfile", "threading", "time", "urllib"}


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str() as module):
                yield module
            case _:
                pass


@pytest.mark.parametrize("path", sorted((*PACKAGE.glob("sev/*.py"), *PACKAGE.glob("domain/*.py"))), ids=str)
def test_pure(path: Path) -> None:
    """The packages sev and domain import nothing that does I/O."""
    for module in _imported(path):
        assert module.split(".")[0] in {"sev_agent", "lxml", "pydantic"} | sys.stdlib_module_names - DOING, module
