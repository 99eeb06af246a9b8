"""The boot line of the next boot, changed in the way of the boot loader that the host has."""

import re
from typing import Final

from sev_agent.host import boot_line
from sev_agent.host.boot_line import BootLine
from sev_agent.host.preparation.arguments import PreparationRefused, missing, refuse_contradiction, words
from sev_agent.host.preparation.change import Changes, Command, FileChange
from sev_agent.host.preparation.drop_ins import MARK, own_file
from sev_agent.hypervisor.host_files import MAX_BYTES, HostFiles
from sev_agent.sev.generation import Generation

GRUB: Final = "etc/default/grub"
GRUB_DROP_INS: Final = "etc/default/grub.d"
DROP_IN: Final = f"{GRUB_DROP_INS}/99-sev-agent.cfg"
KERNEL_CMDLINE: Final = "etc/kernel/cmdline"

_GRUB_MKCONFIG: Final = ("usr/sbin/grub-mkconfig", "usr/bin/grub-mkconfig")
_GRUBBY: Final = ("usr/sbin/grubby", "sbin/grubby", "usr/bin/grubby")
_SETTING = re.compile(r"^[ \t]*(?:export[ \t]+)?(GRUB_CMDLINE_LINUX(?:_DEFAULT)?)\+?=(.*)$", re.MULTILINE)
_OPTIONS = re.compile(rb"^(options[ \t]+)(.*?)[ \t]*$", re.MULTILINE)


def boot_line_changes(files: HostFiles, generation: Generation) -> Changes:
    """What makes the next boot line have all words. Raises ``PreparationRefused`` for a host that is not understood.

    Known are, in this order: grubby (Red Hat's), GRUB that reads drop-ins (Debian's), and boot loader entries that
    ``kernel-install`` makes from ``/etc/kernel/cmdline`` (systemd-boot).
    """
    wanted = words(generation, files)
    if any(files.exists(path) for path in _GRUBBY):
        return _grubby(files, wanted, generation)
    by_kernel_install = files.exists(KERNEL_CMDLINE)
    # GRUB's settings may be left over where another boot loader has taken its place.
    if files.exists(GRUB) and (not by_kernel_install or any(map(files.exists, boot_line.GRUB_FILES))):
        return _grub(files, wanted, generation)
    if by_kernel_install:
        return _kernel_install(files, wanted, generation)
    raise PreparationRefused(
        f"no boot loader below {files.root} is understood: there is no grubby, no /{GRUB} and no /{KERNEL_CMDLINE}",
        remedy=f"add '{' '.join(wanted)}' to the boot line by hand",
    )


def _grubby(files: HostFiles, wanted: tuple[str, ...], generation: Generation) -> Changes:
    entries = boot_line.next_boot(files)
    for entry in entries:
        refuse_contradiction(entry.line, entry.source, wanted, generation)
    lines = [entry.line for entry in entries]
    absent = wanted if not lines else tuple(word for word in wanted if any(missing(line, (word,)) for line in lines))
    if not absent:
        return Changes()
    arguments = " ".join(absent)
    return Changes(
        commands=(
            Command(
                arguments=("grubby", "--update-kernel=ALL", f"--args={arguments}"),
                why="puts the words on the boot line of every installed and future kernel",
            ),
        ),
        undo=(
            Command(
                arguments=("grubby", "--update-kernel=ALL", f"--remove-args={arguments}"),
                why="takes the words from the boot line of every kernel",
            ),
        ),
    )


def _grub(files: HostFiles, wanted: tuple[str, ...], generation: Generation) -> Changes:
    _refuse_grub_contradictions(files, wanted, generation)
    if not _reads_drop_ins(files):
        raise PreparationRefused(
            f"this GRUB does not read /{GRUB_DROP_INS}",
            remedy=f"add '{' '.join(wanted)}' to GRUB_CMDLINE_LINUX_DEFAULT in {files.where(GRUB)} by hand, then "
            "grub-mkconfig -o /boot/grub/grub.cfg",
        )
    text = f'{MARK}\nGRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {" ".join(wanted)}"\n'
    changes = own_file(files, DROP_IN, text)
    update = (Command(arguments=("update-grub",), why="writes /boot/grub/grub.cfg from the settings"),)
    lines = [entry.line for entry in boot_line.next_boot(files)]
    is_written = bool(lines) and not any(missing(line, wanted) for line in lines)
    return Changes(files=changes.files, commands=() if is_written and not changes else update, undo=update)


def _refuse_grub_contradictions(files: HostFiles, wanted: tuple[str, ...], generation: Generation) -> None:
    """The settings are shell, and are not run here: what their plain assignments say is looked at."""
    names = [name for name in files.names(GRUB_DROP_INS) if name.endswith(".cfg")]
    for path in (GRUB, *(f"{GRUB_DROP_INS}/{name}" for name in names)):
        if path == DROP_IN:
            continue
        for name, value in _SETTING.findall(files.text(path)):
            line = BootLine.parse(value.strip().strip("\"'"))
            refuse_contradiction(line, f"{files.where(path)}, {name},", wanted, generation)
        # A later file that does not keep what was set before it takes our words away again.
        if (
            path > DROP_IN
            and _SETTING.search(files.text(path))
            and "$GRUB_CMDLINE_LINUX_DEFAULT" not in files.text(path)
        ):
            raise PreparationRefused(
                f"{files.where(path)} is read after /{DROP_IN} and sets the boot line anew",
                remedy="give it a name that sorts earlier, or let it keep $GRUB_CMDLINE_LINUX_DEFAULT",
            )


def _reads_drop_ins(files: HostFiles) -> bool:
    """Debian's GRUB does, by a patch of its own; the program says so, and a directory of drop-ins does."""
    for path in _GRUB_MKCONFIG:
        if (text := files.text_or_none(path)) is not None:
            return "/default/grub.d" in text
    release = files.text_or_none("etc/os-release") or files.text_or_none("usr/lib/os-release") or ""
    return bool(re.search(r"^ID(?:_LIKE)?=.*\b(debian|ubuntu)\b", release, re.MULTILINE))


def _kernel_install(files: HostFiles, wanted: tuple[str, ...], generation: Generation) -> Changes:
    """``/etc/kernel/cmdline`` for kernels to come, and the entries that are there, as kernel-install writes them."""
    for entry in boot_line.next_boot(files):
        refuse_contradiction(entry.line, entry.source, wanted, generation)
    before = _whole(files, KERNEL_CMDLINE)
    line = BootLine.parse(before.decode(errors="replace"))
    refuse_contradiction(line, files.where(KERNEL_CMDLINE), wanted, generation)
    changed = []
    if absent := missing(line, wanted):
        after = before.rstrip() + b" " + " ".join(absent).encode() + b"\n"
        changed.append(FileChange(path=KERNEL_CMDLINE, before=before, after=after))
    paths = [f"{directory}/{name}" for directory in boot_line.ENTRY_DIRECTORIES for name in files.names(directory)]
    entries = (_entry(files, path, wanted) for path in paths if path.endswith(".conf"))
    return Changes(files=(*changed, *(change for change in entries if change is not None)))


def _entry(files: HostFiles, path: str, wanted: tuple[str, ...]) -> FileChange | None:
    before = _whole(files, path)
    found = _OPTIONS.findall(before)
    if not found:
        return None
    line = BootLine.parse(" ".join(options.decode(errors="replace") for _, options in found))
    absent = " ".join(missing(line, wanted)).encode()
    if not absent or line.is_for_repair:
        return None
    # An entry may have several lines of options, which are joined; the first takes what is new.
    after = _OPTIONS.sub(lambda match: match[1] + match[2] + b" " + absent, before, count=1)
    return FileChange(path=path, before=before, after=after)


def _whole(files: HostFiles, path: str) -> bytes:
    content = files.content(path)
    if len(content) == MAX_BYTES:
        raise PreparationRefused(f"{files.where(path)} is too long for a boot line", remedy="look what is in it")
    return content
