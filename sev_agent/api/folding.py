"""Texts without the case of ASCII's letters, the same in Python and in every database."""

import string
from typing import Any, Final

from sqlalchemy import String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def folded(value: str) -> str:
    """What ``lowered`` makes of ``value``."""
    return value.translate(_LOWER)


class lowered(GenericFunction[str]):  # noqa: N801 - an SQL function, as SQLAlchemy's own are named
    """SQLite's ``lower()``, which knows ASCII only. PostgreSQL's otherwise goes by the locale of the database."""

    type = String()
    inherit_cache = True


@compiles(lowered)
def _anywhere(element: lowered, compiler: SQLCompiler, **options: Any) -> str:
    return f"lower({compiler.process(element.clauses, **options)})"


@compiles(lowered, "postgresql")
def _on_postgresql(element: lowered, compiler: SQLCompiler, **options: Any) -> str:
    return f'lower({compiler.process(element.clauses, **options)} COLLATE "C")'
