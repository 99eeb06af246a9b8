"""The shell scripts that give a compute host mount and UTS namespaces of its own, and enter them.

One process holds the namespaces; libvirtd, virtlogd and the guests live in them and come and go by themselves. All
mounts vanish with the last process in the namespace.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net/tun", "vhost-net", "pts", "shm", "fd")
"""What a host needs of ``/dev``, as far as the machine has it. ``kvm`` is not in it: guests run by emulation."""

EMULATOR = Path("/usr/bin/qemu-system-x86_64")


def holder_script(*, name: str, directories: Mapping[Path, Path], emulator: Path, host: Path, sev: bool = True) -> str:
    """The script that makes the namespaces' mounts, writes its pid to ``host``/namespace.pid and then waits.

    ``directories`` are bound, target by source; ``emulator`` takes QEMU's place, and ``host``/real shows the real one;
    ``sev`` says whether there is a device of the secure processor.
    It must run in new mount and UTS namespaces. Its arguments are lines of shell that each start of ``emulator`` reads.
    """
    quoted = shlex.quote(str(host))
    lines = [
        "#!/bin/sh",
        "set -eu",
        f"cd {quoted}",
        "rm -f namespace.pid",
        'printf "%s\\n" "$@" > shim/environment',
        f"hostname {shlex.quote(name)}",
        f"mount --bind {_q(EMULATOR)} {_q(host / 'real' / EMULATOR.name)}",
        f"mount --bind {_q(emulator)} {_q(EMULATOR)}",
        f"mount --bind {_q(host / 'etc/hosts')} /etc/hosts",
        # With them, libvirt asks the machine's systemd for scopes, whose names two hosts would share.
        "[ ! -d /run/dbus ] || mount -t tmpfs -o size=64k none /run/dbus",
        "! mountpoint --quiet /sys/fs/cgroup || umount --recursive --lazy /sys/fs/cgroup",
        *(
            line
            for target, source in directories.items()
            for line in (f"mkdir -p {_q(target)}", f"mount --bind {_q(source)} {_q(target)}")
        ),
        *_device_lines(host / "dev", sev=sev),
        'echo "$$" > namespace.pid.new',
        "mv namespace.pid.new namespace.pid",
        "exec sleep infinity",
    ]
    return "\n".join(lines) + "\n"


def enter_script(host: Path) -> str:
    """The script that runs its arguments in the namespaces of ``host``, as the same process."""
    # With its root too: entering a mount namespace leads out of a chroot, and the lab may be in one.
    return f'#!/bin/sh\nexec nsenter --target "$(cat {_q(host / "namespace.pid")})" --mount --uts --root -- "$@"\n'


def _device_lines(dev: Path, *, sev: bool) -> list[str]:
    """A ``/dev`` of the host's own, with a ``sev`` that the machine's other processes do not see."""
    quoted = _q(dev)
    lines = [f"mount -t tmpfs -o mode=755,size=1m none {quoted}", f"mkdir {quoted}/net"]
    lines += [
        f"if [ -L /dev/{name} ]; then cp -P /dev/{name} {quoted}/{name}\n"
        f"elif [ -d /dev/{name} ]; then mkdir {quoted}/{name}; mount --bind /dev/{name} {quoted}/{name}\n"
        f"elif [ -e /dev/{name} ]; then touch {quoted}/{name}; mount --bind /dev/{name} {quoted}/{name}; fi"
        for name in DEVICES
    ]
    # A node bound alone does not find its file system of terminals; the file system's own one does.
    lines.append(f"ln -s pts/ptmx {quoted}/ptmx")
    if sev:
        lines += [f"touch {quoted}/sev", f"mount --bind /dev/null {quoted}/sev"]
    return [*lines, f"mount --rbind {quoted} /dev"]


def _q(path: Path) -> str:
    return shlex.quote(str(path))
