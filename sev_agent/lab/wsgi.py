"""Serves one OpenStack WSGI application under waitress. Run by path, by the Python of the services' environment.

It knows nothing of this project's package, which that environment does not have.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_MAX_BODY = 64 * 1024**3


def main() -> None:
    """Run the preparing commands that have not been run, then serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("application", help="module:attribute")
    parser.add_argument("--name", required=True, help="what the application finds as its program name")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prepare", type=json.loads, default=[], help="JSON: list of [module, argument, ...]")
    parser.add_argument("--prepared", type=Path, help="file that says that the preparing commands were run")
    options = parser.parse_args()

    if options.prepare and not options.prepared.exists():
        _prepare(options.prepare)
        options.prepared.touch()

    # The applications parse the command line themselves when they are imported.
    sys.argv = [options.name]
    module, _, attribute = options.application.partition(":")
    application = getattr(importlib.import_module(module), attribute)
    waitress = importlib.import_module("waitress")
    waitress.serve(
        application,
        host="127.0.0.1",
        port=options.port,
        threads=options.threads,
        max_request_body_size=_MAX_BODY,
        ident=None,
    )


def _prepare(commands: Sequence[Sequence[str]]) -> None:
    """Run each command's ``main`` in a child: it registers options that can be registered once in a process.

    The import, which takes most of the time, happens once, here.
    """
    for module, *arguments in commands:
        entry = importlib.import_module(module)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                sys.argv = arguments
                status = _status(entry.main())
            except SystemExit as exit_:
                status = _status(exit_.code)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(ended) != 0:
            sys.exit(f"{' '.join(arguments)} failed with status {os.waitstatus_to_exitcode(ended)}")


def _status(code: object) -> int:
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    main()
