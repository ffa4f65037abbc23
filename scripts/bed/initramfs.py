# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the emulated host starts from: BusyBox, the module, the tools, the command to run."""

import os
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from . import kmodules
from .cache import TOP, Failure
from .cpio import Cpio

# Modules of the host kernel that tests load by `modprobe`, with all they depend on.
WANTED = ("kvm-amd", "kvm-intel", "msr", "brd")
# And these, of a kernel that has them: the debug kernel is a small one.
WANTED_IF_THERE = ("dm-log-writes", "scsi_debug", "sd_mod")
# For shells with a user. Without -f these ask the first process to do it, and ours does not.
SHELL_RC = b"alias poweroff='poweroff -f' reboot='reboot -f' halt='halt -f'\n"
TOOLS = TOP / "build" / "tools"


@dataclass
class Kernel:
    """A kernel to boot: its image and the folder lib/modules/RELEASE that belongs to it."""

    image: Path
    modules: Path
    module: Path  # our own v3vee.ko, built for it


@dataclass
class Job:
    """What to run, and what to run it with."""

    command: list[str]
    token: str
    insert: bool = True
    terminal: tuple[int, int] | None = None  # rows, columns; None without a terminal
    debugger: bool = False
    add: list[tuple[Path, str]] = field(default_factory=list)


def added(words: list[str]) -> list[tuple[Path, str]]:
    """The files that FILE and FILE:NAME say, and what each is called on the host."""
    names: dict[str, Path] = {}
    for word in words:
        source, _, name = word.partition(":")
        path = Path(source)
        if not path.is_file():
            raise Failure(f"{source}: there is no such file to add")
        if names.setdefault(name or path.name, path) != path:
            raise Failure(f"{source}: {names[name or path.name]}, which is added too, has the same name. FILE:NAME gives it another")
    return [(path, name) for name, path in names.items()]


def build(root: Path, kernel: Kernel, job: Job) -> bytes:
    archive = Cpio()
    # The kernel gives the first process this console before /dev is mounted.
    archive.node("dev/console", 5, 1)
    add_busybox(archive, root)
    add_modules(archive, kernel.modules)
    if job.insert or kernel.module.exists():
        archive.file("root/v3vee.ko", stripped(kernel.module))
    add_tools(archive)
    archive.file("init", (Path(__file__).parent / "init.sh").read_bytes(), 0o755)
    archive.file("bed/settings", settings(job).encode())
    archive.file("bed/command", command(job.command).encode(), 0o755)
    for source, name in job.add:
        archive.copy(name.lstrip("/") if name.startswith("/") else f"root/{name}", source)
    for name in ("proc", "sys", "tmp", "root", "etc", "usr/local/bin"):
        archive.folder(name)
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\nuser:x:1000:\n")
    return archive.bytes()


def add_busybox(archive: Cpio, root: Path) -> None:
    busybox = root / "usr/bin/busybox"
    archive.copy("bin/busybox", busybox)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            archive.link(f"bin/{applet}", "busybox")
    archive.file("etc/shrc", SHELL_RC)
    # The kernel calls it by this path.
    archive.link("sbin/modprobe", "../bin/busybox")


def add_modules(archive: Cpio, modules: Path) -> None:
    """Uncompressed copies, and a modules.dep that names them."""
    needs = kmodules.dependencies(modules)
    there = {kmodules.name_of(path) for path in needs}
    wanted = WANTED + tuple(name for name in WANTED_IF_THERE if kmodules.name_of(name) in there)
    table = ""
    for path in kmodules.files_of(modules, wanted):
        archive.file(f"lib/modules/{modules.name}/{kmodules.plain(path)}", kmodules.unpacked(modules / path))
        table += kmodules.plain(path) + ":" + "".join(" " + kmodules.plain(need) for need in needs[path]) + "\n"
    archive.file(f"lib/modules/{modules.name}/modules.dep", table.encode())


def stripped(module: Path) -> bytes:
    """The module without its debug sections, which the kernel would only copy about."""
    if not module.exists():
        raise Failure(f"{module} is not there: run `make modules`, with KERNEL=debug or PROFILE= if you gave them here; or leave it out by --no-module")
    slim = module.with_suffix(".slim")
    if not slim.exists() or slim.stat().st_mtime <= module.stat().st_mtime:
        temporary = slim.with_name(f"{slim.name}.{os.getpid()}")
        subprocess.run(["strip", "--strip-debug", "-o", temporary, module], check=True)
        temporary.rename(slim)
    return slim.read_bytes()


def add_tools(archive: Cpio) -> None:
    if (TOOLS / "v3").exists():
        archive.copy("bin/v3", TOOLS / "v3")
        # As `v3 links` made them.
        for link in sorted(path for path in TOOLS.iterdir() if path.is_symlink()):
            archive.link(f"bin/{link.name}", os.readlink(link))


def settings(job: Job) -> str:
    rows, columns = job.terminal or (0, 0)
    values = {"TOKEN": job.token, "MODULE": int(job.insert), "TERMINAL": int(job.terminal is not None), "ROWS": rows,
              "COLUMNS": columns, "DEBUGGER": int(job.debugger)}
    return "".join(f"{name}={value}\n" for name, value in values.items())


def command(words: list[str]) -> str:
    """One word is a line of shell; several are a program and its arguments, taken as they are."""
    return "#!/bin/sh\n" + (words[0] if len(words) == 1 else "exec " + shlex.join(words)) + "\n"
