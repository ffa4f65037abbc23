# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tiny test kernels and the examples on a machine without our VMM: QEMU alone judges whether they themselves are right."""

import re

from bed import hostroot, tmk
from bed.cache import TOP
from bed.qemu import plain_pc

from . import commands
from .commands import Output
from .jobs import JOBS
from .results import Results

GUESTS = TOP / "build/guests"
# Each waits for what must come; this much is for a machine under heavy load.
TIMEOUT_S = 300
CPUS = 4
ALL = f"test=all machine=other cpus={CPUS}"
RESETS = ("reset_by_keyboard", "reset_by_chipset", "reset_by_port_a", "reset_by_triple_fault")
# Only its last word is a good one.
ODD_LINE = "noexit=3 exit= exit=256 exit=5x exit=7"
HELLOS = {"C": "hello/hello-c", "Rust": "hello/hello-rust"}


def boot(kernel: str, append: str) -> Output:
    """One boot; its status is what the kernel wrote to its exit port."""
    command = plain_pc(hostroot.ensure("root"))
    command += ["-smp", str(CPUS)] if f"cpus={CPUS}" in append else []
    log = "oracle-" + re.sub(r"[^a-z0-9_]+", "-", f"{kernel} {append}")
    return commands.run(log, "timeout", TIMEOUT_S, *command, "-kernel", GUESTS / kernel, "-append", append)


def run(results: Results) -> None:
    wishes = [("tmk/tmk", ALL), *(("tmk/tmk", f"test={what}") for what in ("list", "nonsense", *RESETS, "power_off slp=0"))]
    wishes += [(kernel, append) for kernel in HELLOS.values() for append in ("exit=3", "", ODD_LINE)]
    outputs = dict(zip(wishes, JOBS.map(lambda wish: boot(*wish), wishes)))
    judge_tmk(results, {append: its for (kernel, append), its in outputs.items() if kernel == "tmk/tmk"})
    for name, kernel in HELLOS.items():
        hello, asked, plain = f"Hello from {name}!\n", outputs[kernel, "exit=3"], outputs[kernel, ""]
        odd = outputs[kernel, ODD_LINE]
        results.check(f"hello in {name}: its command line, and the exit status that it names",
                      asked.status == 7 and hello in asked.text and "exit=3\n" in asked.text)
        results.check(f"hello in {name}: words that only look like it", odd.status == 15)
        results.check(f"hello in {name}: power-off", plain.status == 0 and hello in plain.text)


def judge_tmk(results: Results, outputs: dict[str, Output]) -> None:
    results.read_tap(outputs[ALL].lines)
    listed = re.findall(r"^test (\S+) (\S+)", outputs["test=list"].text, re.MULTILINE)
    results.check("the tests' sources list them as the kernel does", bool(listed) and listed == tmk.tests())
    wanted = re.findall(r"^test (?:always|device|several) (\S+)", outputs["test=list"].text, re.MULTILINE)
    for name in wanted:
        if not re.search(rf"^(not )?ok {name}\b", outputs[ALL].text, re.MULTILINE):
            results.fail(f"{name}: no answer")
    results.check("the exit status of success", outputs[ALL].status == 1 and bool(wanted))
    results.check("the exit status of a failure", outputs["test=nonsense"].status == 197)
    for reset in RESETS:
        again = outputs[f"test={reset}"]
        results.check(reset, again.status == 1 and "after the reset" in again.text, again.seconds)
    results.check("power_off", outputs["test=power_off slp=0"].status == 0)
