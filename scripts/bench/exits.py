# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs the benches of guests/tmk on an emulated host, and reads what they say: exits.sh runs there."""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bed import ready, session, steps
from bed.cache import TOP, Failure

from . import trace

HERE = Path(__file__).parent
LOGS = TOP / "build/logs"
QEMU = TOP / "build/guests/disk/qemu.cpio"
# Under a clock that counts instructions the emulator now and then hangs when a guest is given an interrupt.
TRIES = 4
SILENCE_S = 90
LINE = re.compile(r"^bench (\w+) (\d+) (\d+)\r?$", re.MULTILINE)
PART = re.compile(r"^== (.*?)\r?$", re.MULTILINE)


@dataclass
class Ran:
    """One run of the benches: instructions of a round by bench, and what a tracer saw of it."""

    figures: dict[str, float] = field(default_factory=dict)
    traces: dict[str, trace.Trace] = field(default_factory=dict)


def figures_of(said: str) -> dict[str, float]:
    """Instructions of a round of each bench, the empty loop's subtracted."""
    rounds = {name: int(ticks) / int(count) for name, count, ticks in LINE.findall(said)}
    empty = rounds.get("empty", 0)
    return {name: each - empty for name, each in rounds.items() if name != "empty"}


def parts_of(output: str) -> dict[str, str]:
    _, *rest = PART.split(output)
    return dict(zip(rest[::2], rest[1::2]))


def run(machine: str, benches: str = "all", kvm: bool = False, traced: bool = False, append: tuple[str, ...] = ()) -> dict[str, Ran]:
    """The runs by their names in exits.sh. With `traced` each has the traces of its benches."""
    names = benches if benches == "all" else f"empty,{benches}"
    words = [names, *(["kvm"] if kvm else []), *(["symbols"] if traced else [])]
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "trace"
        options = ["--no-module", "--timeout", "1500", "--silence", str(SILENCE_S), *([] if machine != "svm" else ["--icount"])]
        options += ["--plugin", f"{trace.plugin()},out={to},first=40,count=8"] if traced else []
        options += [word for each in append for word in ("--append", each)]
        for file in (ready.TMK, HERE / "exits.sh", *([QEMU, HERE / "qemu-kvm.sh"] if kvm else [])):
            options += ["--add", str(file)]
        output = testbed([*options, "--machine", machine], ["sh", "./exits.sh", *words], " ".join([machine, *append, *words]), TRIES)
        ran = {name: Ran(figures_of(said)) for name, said in parts_of(output).items() if not name.startswith("symbols") and name != "end"}
        if not ran or not all(each.figures for each in ran.values()):
            raise Failure(f"the benches did not run on {machine}; {LOGS}/bench.log has all that they said")
        if traced:
            add_traces(ran, output, to.read_text())
    return ran


def run_disk(kind: str) -> tuple[str, trace.Trace]:
    """What the guest says of transfers of a kind, and the trace of a batch of them."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "trace"
        options = ["--icount", "--timeout", "900", "--silence", str(SILENCE_S), "--plugin", f"{trace.plugin()},out={to},first=1,count=3"]
        for file in (ready.BUILD / "tools/disk_cost", ready.LINUX / "initramfs", ready.LINUX / "vmlinuz", QEMU.parent / "modules-7.cpio",
                     HERE / "disk-cost-guest.sh", HERE / "disk-cost.sh"):
            options += ["--add", str(file)]
        output = testbed(options, ["sh", "./disk-cost.sh", kind], f"a disk, {kind}", TRIES)
        said = re.findall(rf"^{kind}: \d+", output, re.MULTILINE)
        functions = trace.Functions(trace.unpacked(parts_of(output)["symbols of v3vee"]))
        return "\n".join(said), trace.Trace.of(next(trace.benches(to.read_text()), []), functions)


def testbed(options: list[str], command: list[str], what: str, tries: int) -> str:
    """What the command says on an emulated host. One that hangs is given another."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / "bench.log").open("w") as log, steps.Shown(f"measuring: {what}", "a minute or more", lambda: ""):
        bed = [sys.executable, "-B", TOP / "scripts/testbed", "run", *options, "--", *command]
        status = subprocess.run(bed, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status == session.TIMEOUT and tries > 1:
        return testbed(options, command, what, tries - 1)
    output = (LOGS / "bench.log").read_text(errors="replace")
    if status != 0:
        raise Failure(f"the emulated host ended with status {status}; its last words:\n" + "\n".join(output.splitlines()[-8:]))
    return output


def add_traces(ran: dict[str, Ran], output: str, written: str) -> None:
    """Traces come in the order in which the benches ran."""
    parts = parts_of(output)
    functions = trace.Functions(trace.unpacked(parts["symbols of v3vee"]))
    of_kvm = functions.with_modules(trace.unpacked(parts["symbols of kvm"])) if "symbols of kvm" in parts else functions
    benches = iter(trace.benches(written))
    for name, each in ran.items():
        at = of_kvm if name.startswith("kvm") else functions
        for bench in LINE.findall(parts[name]):
            each.traces[bench[0]] = trace.Trace.of(next(benches, []), at)
