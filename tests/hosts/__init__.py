"""Captured hosts: a TOML file each, unpacked below a directory as ``sev-agent check --root`` reads it.

``[files]`` are contents by path, ``[modes]`` permissions; ``include`` names files whose contents come first, and
``remove`` what is then left out.
"""

import tomllib
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent


def contents(name: str) -> dict[str, str]:
    """The files of the host ``name``, by path."""
    document = _document(name)
    files: dict[str, str] = {}
    for included in document.get("include", ()):
        files |= contents(included.removesuffix(".toml"))
    for path in document.get("remove", ()):
        files.pop(path, None)
    files |= document.get("files", {})
    return files


def unpack(files: dict[str, str], root: Path) -> Path:
    """Write ``files`` below ``root``, and give it back."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name, mode in _document("system")["modes"].items():
        if (root / name).exists():
            (root / name).chmod(int(mode, 8))
    return root


def faults() -> list[dict[str, Any]]:
    """Hosts with one fault each, as ``faults.toml`` tells them."""
    found: list[dict[str, Any]] = _document("faults")["fault"]
    return found


def with_fault(fault: dict[str, Any]) -> dict[str, str]:
    """The files of a host that has ``fault``. Raises ``ValueError`` where the fault changes nothing."""
    files = contents(fault["host"])
    before = dict(files)
    for path in fault.get("remove", ()):
        gone = [name for name in files if name == path or name.startswith(f"{path}/")]
        for name in gone:
            del files[name]
    for path, (old, new) in fault.get("replace", {}).items():
        if old not in files[path]:
            raise ValueError(f"{fault['name']}: {path} has no {old!r}")
        files[path] = files[path].replace(old, new)
    files |= fault.get("files", {})
    if files == before and "modes" not in fault:
        raise ValueError(f"{fault['name']} changes nothing")
    return files


def _document(name: str) -> dict[str, Any]:
    return tomllib.loads((DIRECTORY / f"{name}.toml").read_text())
