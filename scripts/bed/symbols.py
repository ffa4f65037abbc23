# SPDX-License-Identifier: MIT OR Apache-2.0
"""What gdb has to know of the emulated host's kernel: names and addresses of its functions and variables, and how to find a caller.

Debian's own file with that has a gigabyte. Here it is made of what the kernel itself carries: the stock kernel's names come from
/proc/kallsyms of one short boot, the debug kernel's from its vmlinux; for the callers see orc.py.
"""

import gzip
import hashlib
import struct
import subprocess
import sys
import tempfile
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from . import hostroot, orc, steps
from .boot_disk import unpacked
from .cache import TOP
from .debugger import FOLDER
from .machine import rooted

# Kinds of symbols, as nm shows them, that are code.
CODE = "tTwW"


@dataclass
class Section:
    """A section of an ELF file that is in memory when it runs."""

    name: str
    address: int
    size: int
    data: bytes


def sections(elf: bytes) -> list[Section]:
    table, = struct.unpack_from("<Q", elf, 40)
    size, count, of_names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + size * number) for number in range(count)]
    names = headers[of_names][4]
    found = []
    for name, _, flags, address, offset, length in headers:
        if flags & 2:
            text = elf[names + name:elf.index(b"\0", names + name)].decode()
            found.append(Section(text, address, length, elf[offset:offset + length]))
    return sorted(found, key=lambda section: section.address)


@dataclass
class Symbol:
    address: int
    kind: str
    name: str


def symbols(listing: str, text: int) -> list[Symbol]:
    """Of the lines of nm or of /proc/kallsyms, ADDRESS TYPE NAME, those that are not of a module, for a kernel that begins at `text`."""
    rows = [line.split() for line in listing.splitlines()]
    found = [Symbol(int(row[0], 16), row[1], row[2]) for row in rows if len(row) == 3]
    moved = next(symbol.address for symbol in found if symbol.name == "_text") - text
    return sorted((Symbol(symbol.address - moved, symbol.kind, symbol.name) for symbol in found), key=lambda symbol: symbol.address)


def functions(named: list[Symbol]) -> list[tuple[int, int]]:
    """The first address of each, and that of the next symbol."""
    addresses = sorted({symbol.address for symbol in named})
    code = sorted({symbol.address for symbol in named if symbol.kind in CODE})
    ends = ((begin, bisect_right(addresses, begin)) for begin in code)
    return [(begin, addresses[at]) for begin, at in ends if at < len(addresses)]


def options(named: list[Symbol], parts: list[Section]) -> str:
    """For objcopy: every symbol, by its place in its section."""
    starts = [part.address for part in parts]
    lines = []
    for symbol in named:
        at = bisect_right(starts, symbol.address) - 1
        if at >= 0 and symbol.address < starts[at] + parts[at].size:
            kind = "function" if symbol.kind in CODE else "object"
            scope = "global" if symbol.kind.isupper() else "local"
            lines.append(f"--add-symbol={symbol.name}={parts[at].name}:{symbol.address - starts[at]:#x},{kind},{scope}\n")
    return "".join(lines)


def kallsyms() -> str:
    """The names that the stock kernel has of itself, read from a running one."""
    with tempfile.NamedTemporaryFile(dir=FOLDER) as out:
        # What the test bed says beside goes to the log: it is none of the names.
        bed = [sys.executable, "-B", TOP / "scripts/testbed", "run", "--no-module", "--", "gzip -1 </proc/kallsyms"]
        command = ["sh", "-c", 'exec "$@" >"$0"', out.name, *bed]
        steps.run("reading the names of the host kernel's functions from a first boot", command, FOLDER / "names.log", takes="about 20 seconds")
        return gzip.decompress(Path(out.name).read_bytes()).decode()


def ensure(kernel: str, root: Path) -> Path:
    """The file with the symbols of the stock or the debug kernel; made if it is not there."""
    if kernel == "debug":
        source = hostroot.ensure("debug") / "vmlinux"
    else:
        source = root / "usr/lib/modules" / hostroot.release_of(root) / "vmlinuz"
    contents = source.read_bytes()
    # Another kernel has other symbols, and so have these after a change here.
    makers = b"".join(Path(module.__file__).read_bytes() for module in (orc, sys.modules[__name__]))
    made = FOLDER / f"vmlinux-{kernel}-{hashlib.sha256(contents + makers).hexdigest()[:12]}"
    if not made.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        steps.say("making the symbols of the host's kernel for gdb, once for each kernel")
        elf = contents if kernel == "debug" else unpacked(root, contents)
        listing = nm(root, source) if kernel == "debug" else kallsyms()
        make(elf, listing, made)
    return made


def nm(root: Path, vmlinux: Path) -> str:
    return subprocess.run([*rooted(root, "x86_64-linux-gnu-nm"), vmlinux], capture_output=True, text=True, check=True).stdout


def make(elf: bytes, listing: str, made: Path) -> None:
    parts = sections(elf)
    named = symbols(listing, next(part.address for part in parts if part.name == ".text"))
    of_orc = {part.name: part for part in parts if part.name.startswith(".orc_unwind")}
    ips = of_orc[".orc_unwind_ip"]
    frames = orc.frame_table(orc.rows(ips.address, ips.data, of_orc[".orc_unwind"].data), functions(named))
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(name)
        for file, data in (("vmlinux", elf), ("frames", frames), ("symbols", options(named, parts).encode())):
            (folder / file).write_bytes(data)
        # Without contents first, so that little is copied; the names only where they are.
        subprocess.run(["objcopy", "--only-keep-debug", folder / "vmlinux", folder / "bare"], check=True)
        subprocess.run(["objcopy", "--strip-all", f"--add-section=.debug_frame={folder}/frames", f"@{folder}/symbols", folder / "bare",
                        folder / "made"], check=True)
        (folder / "made").rename(made)
