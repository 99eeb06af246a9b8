"""The guest's whole user space: busybox, the kernel modules it needs, and a short init."""

import gzip
import lzma
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

MODULES = (
    "virtio_pci",
    "scsi_mod",
    "sd_mod",
    "sr_mod",
    "isofs",
    "virtio_scsi",
    "virtio_rng",
    "virtio_net",
    "af_packet",
    "button",
    "evdev",
)
"""What the guest loads, in this order, each after what it depends on; those built into the kernel are left out."""

_PARAMETERS = {"scsi_mod": "scan=sync"}

_INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /run /config
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev 2>/dev/null
exec </dev/console >/dev/console 2>&1

say() { echo "sev-agent-guest: $*"; }

say "kernel $(uname -r)"
while read -r module parameters; do
    insmod "/modules/$module" $parameters || say "module $module failed"
done </modules/order

say "uuid $(cat /sys/class/dmi/id/product_uuid)"

tries=30
while [ ! -e /sys/block/sr0 ] && [ $tries -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done
if mount -t iso9660 -o ro /dev/sr0 /config 2>/dev/null; then
    metadata=/config/openstack/latest/meta_data.json
    name=$(sed -n 's/.*"hostname": *"\\([^"]*\\)".*/\\1/p' $metadata | head -n 1)
    [ -n "$name" ] && hostname "$name"
    say "hostname ${name:-missing in $metadata}"
else
    say "hostname unknown: no config drive"
fi

ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    udhcpc -b -q -t 5 -T 1 -i eth0 -s /bin/configure-network >/dev/null 2>&1 &
fi

acpid -l /dev/null
say ready
while :; do sleep 86400; done
"""

_CONFIGURE_NETWORK = """\
#!/bin/busybox sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr replace "$ip/${mask:-24}" dev "$interface"
[ -z "$router" ] || ip route replace default via "${router%% *}" dev "$interface"
[ -z "$dns" ] || echo "nameserver ${dns%% *}" >/etc/resolv.conf
echo "sev-agent-guest: address $ip" >/dev/console
"""

_POWER_BUTTON = """\
#!/bin/busybox sh
echo "sev-agent-guest: power button, going down" >/dev/console
sync
poweroff -f
"""

RECIPE = "\0".join((*MODULES, *_PARAMETERS.values(), _INIT, _CONFIGURE_NETWORK, _POWER_BUTTON))
"""All that the archive depends on, beside the packages."""

_SUFFIX = re.compile(r"\.ko(\.xz|\.gz)?$")
_NEWC = "070701"


def build(root: Path, kernel: str) -> bytes:
    """The initramfs for ``kernel`` from the packages unpacked below ``root``: an uncompressed cpio archive. Blocks.

    Uncompressed, because an emulated processor unpacks more slowly than the firmware reads. Raises ``LookupError`` for
    a module that is nowhere.
    """
    modules = ordered_modules(root, kernel)
    order = "".join(f"{name}.ko {_PARAMETERS.get(name, '')}\n" for name in modules)
    files: dict[str, tuple[int, bytes]] = {
        "init": (0o755, _INIT.encode()),
        "bin/busybox": (0o755, _busybox(root).read_bytes()),
        "bin/configure-network": (0o755, _CONFIGURE_NETWORK.encode()),
        "etc/acpi/PWRF/00000080": (0o755, _POWER_BUTTON.encode()),
        "modules/order": (0o644, order.encode()),
        **{f"modules/{name}.ko": (0o644, content) for name, content in modules.items()},
    }
    return archive(files)


def ordered_modules(root: Path, kernel: str) -> dict[str, bytes]:
    """The modules to load, dependencies first, with their content."""
    tree = next(path for path in (root / "lib/modules" / kernel, root / "usr/lib/modules" / kernel) if path.is_dir())
    files = {_name(path): path for path in sorted(tree.rglob("*.ko*"))}
    builtin = {_name(Path(line)) for line in (tree / "modules.builtin").read_text().split()}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name in builtin:
            return
        if name not in files:
            raise LookupError(f"kernel {kernel} has no module {name}")
        content = _plain(files[name])
        for needed in dependencies(content):
            add(needed)
        found[name] = content

    for name in MODULES:
        add(name)
    return found


def dependencies(module: bytes) -> list[str]:
    """The names of the modules that ``module`` (an ELF object) says it needs in its ``.modinfo``."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found.group(1).decode("ascii").split(",") if found else []
    return [name.replace("-", "_") for name in names if name]


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive ("newc") of ``files`` (mode and content by path), all root's and of no date."""
    directories = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    entries: list[tuple[str, int, bytes]] = [(name, stat.S_IFDIR | 0o755, b"") for name in directories]
    entries += [(name, stat.S_IFREG | mode, content) for name, (mode, content) in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    return b"".join(_entry(number, *entry) for number, entry in enumerate(entries, 1))


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    path = name.encode() + b"\0"
    fields: Iterable[int] = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = _NEWC.encode() + b"".join(b"%08x" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _name(path: Path) -> str:
    return _SUFFIX.sub("", path.name).replace("-", "_")


def _plain(path: Path) -> bytes:
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case _:
            return path.read_bytes()


def _busybox(root: Path) -> Path:
    return next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
