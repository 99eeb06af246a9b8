"""libvirtd where root may not raise limits: a preloaded library answers for the limit of locked memory.

Without CAP_SYS_RESOURCE a start of a guest with locked memory fails with "cannot limit locked memory". In the lab no
memory is locked, so it is enough to let libvirtd believe that the limit was raised.
"""

import subprocess
from pathlib import Path

from sev_agent.lab.service import LabError

_CAP_SYS_RESOURCE = 24
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>

/* sys/resource.h is left out: its prototypes name an enum that differs between C libraries. */
#define RLIMIT_MEMLOCK 8

#define ANSWER(NAME) \
    int NAME(int pid, int resource, const void *new_limit, void *old_limit) \
    { \
        int (*next)(int, int, const void *, void *) = dlsym(RTLD_NEXT, #NAME); \
        if (resource == RLIMIT_MEMLOCK && new_limit) \
            return old_limit ? next(pid, resource, 0, old_limit) : 0; \
        return next(pid, resource, new_limit, old_limit); \
    }
#define ANSWER_SET(NAME) \
    int NAME(int resource, const void *limit) \
    { \
        int (*next)(int, const void *) = dlsym(RTLD_NEXT, #NAME); \
        return resource == RLIMIT_MEMLOCK ? 0 : next(resource, limit); \
    }

ANSWER(prlimit)
ANSWER(prlimit64)
ANSWER_SET(setrlimit)
ANSWER_SET(setrlimit64)
"""


def may_raise_limits() -> bool:
    """Whether this process has CAP_SYS_RESOURCE in effect."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def compile_library(path: Path) -> None:
    """Write the library to ``path``, unless it is there. Needs gcc. Blocks shortly. Raises ``LabError``."""
    if path.exists():
        return
    building = path.with_suffix(".new")
    command = ["gcc", "-shared", "-fPIC", "-O2", "-x", "c", "-o", str(building), "-", "-ldl"]
    try:
        subprocess.run(command, input=_SOURCE, text=True, capture_output=True, check=True, timeout=60)
    except FileNotFoundError:
        raise LabError(
            "the lab's limit library cannot be built: no gcc", remedy="apt-get install gcc libc6-dev"
        ) from None
    except subprocess.CalledProcessError as error:
        raise LabError(f"the lab's limit library cannot be built: {error.stderr.strip()}") from None
    building.replace(path)
