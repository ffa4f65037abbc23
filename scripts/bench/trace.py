# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a tracer (tracer.c) wrote down of one round of a bench: instructions by function, and those that cost more than others."""

import base64
import gzip
import re
import subprocess
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bed.cache import TOP

HERE = Path(__file__).parent
# Below are the guest's instructions, and below the kernel's those of programs.
GUEST_END = 1 << 32
KERNEL_BEGIN = 1 << 63
# tracer.c's letters, and what they are in a table.
CLASSES = {"w": "WRMSR", "r": "RDMSR", "x": "XSAVE/XRSTOR", "b": "XSETBV", "g": "XGETBV", "k": "WRPKRU", "v": "VMRUN/LOAD/SAVE", "f": "VMCS fields",
           "c": "MOV CR", "l": "locked", "t": "RDTSC"}
# Functions that zero memory, which every VMM has to do.
ZEROING = re.compile(r"^(clear_page|memset|__memset)")


def plugin() -> Path:
    """The tracer, built if it is not there."""
    made, source = TOP / "build/tools/tracer.so", HERE / "tracer.c"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        made.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", made, source], check=True)
    return made


def unpacked(text: str) -> str:
    return gzip.decompress(base64.b64decode(re.sub(r"\s", "", text))).decode()


class Functions:
    """Functions by address, from lines of /proc/kallsyms."""

    def __init__(self, listing: str, base: "Functions | None" = None) -> None:
        rows = [line.split() for line in listing.splitlines()]
        self.rows = sorted({(int(row[0], 16), " ".join(row[2:])) for row in rows} | set(base.of_kernel() if base else []))
        self.starts = [address for address, _ in self.rows]

    def of_kernel(self) -> list[tuple[int, str]]:
        return [row for row in self.rows if "[" not in row[1]]

    def with_modules(self, listing: str) -> "Functions":
        """The kernel's, and those of other modules."""
        return Functions(listing, self)

    def at(self, address: int) -> str:
        if address < GUEST_END:
            return "(the guest)"
        if address < KERNEL_BEGIN:
            return "(a program of the host)"
        return self.row_at(address)[1]

    def row_at(self, address: int) -> tuple[int, str]:
        """Where the function begins, and its name."""
        return self.rows[bisect_right(self.starts, address) - 1]


def benches(written: str):
    """The rounds of each bench that were written down: lists of lists of lines."""
    for bench in written.split("end\n")[:-1]:
        _, *rounds = bench.split("round\n")
        yield [each.splitlines() for each in rounds]


@dataclass
class Trace:
    """One round: of those that were written down the shortest."""

    functions: Functions
    # By address.
    counts: Counter = field(default_factory=Counter)
    by_class: Counter = field(default_factory=Counter)

    @classmethod
    def of(cls, rounds: list[list[str]], functions: Functions) -> "Trace":
        counted = [cls.count(each, functions) for each in rounds]
        return min(counted, key=cls.total, default=cls(functions))

    @classmethod
    def count(cls, lines: list[str], functions: Functions) -> "Trace":
        trace = cls(functions)
        for line in lines:
            address, kind, count = line.split()
            trace.counts[int(address, 16)] += int(count)
            if kind != "-":
                trace.by_class[CLASSES[kind]] += int(count)
        return trace

    def total(self) -> int:
        return self.counts.total()

    def by(self, name) -> Counter:
        """Instructions by what a function calls their addresses."""
        found = Counter()
        for address, count in self.counts.items():
            found[name(address)] += count
        return found

    def zeroing(self) -> int:
        return sum(count for name, count in self.by(self.functions.at).items() if ZEROING.match(name))


def sources(trace: Trace, module: Path, lines: bool) -> dict[int, str]:
    """Of instructions of v3vee.ko the function of the source that each is of, also where that is inlined; with `lines` its line as well."""
    listing = subprocess.run(["objdump", "-t", module], capture_output=True, text=True, check=True).stdout
    own = {row[-1]: int(row[0], 16) for row in map(str.split, listing.splitlines()) if len(row) > 4 and ".text" in row}
    at = {}
    for address in (each for each in trace.counts if each >= KERNEL_BEGIN):
        begin, name = trace.functions.row_at(address)
        symbol, _, of = name.partition(" ")
        if of == "[v3vee]" and symbol in own:
            at[address] = own[symbol] + address - begin
    command = ["addr2line", "-j", ".text", "-f", "-s", "-e", module]
    said = subprocess.run(command, input="\n".join(map(hex, at.values())), capture_output=True, text=True, check=True).stdout.splitlines()
    names = readable(said[::2])
    return {address: f"{name}  {where.partition(' ')[0]}" if lines else name for address, name, where in zip(at, names, said[1::2])}


def readable(names: list[str]) -> list[str]:
    """Rust's names of functions without their types' parameters."""
    done = subprocess.run(["c++filt", "--format=rust"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [shortened(name) for name in done.stdout.splitlines()]


def shortened(name: str) -> str:
    before = None
    while name != before:
        # What stands in brackets behind a name, from the inside out.
        before, name = name, re.sub(r"(?<=[\w>])(::)?<[^<>]*>", "", name)
    name = re.sub(r"\[[0-9a-f]{16}\]", "", name)
    name = re.sub(r"<?(\S+) as \S+>", r"\1", name)
    return re.sub(r"[<>]", "", name).replace("palacios_core::", "")
