# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tiny test kernels and the examples on a machine without our VMM: QEMU alone judges whether they themselves are right."""

import re
import subprocess

from bed import hostroot
from bed.cache import TOP
from bed.qemu import qemu

from .results import Results

GUESTS = TOP / "build/guests"
# Each waits for what must come; this much is for a machine under heavy load.
TIMEOUT_S = 300
CPUS = 4


def boot(kernel: str, append: str, *options: str) -> tuple[int, str]:
    """One boot; the exit status as the kernel's port gave it, and what it printed."""
    command = qemu(hostroot.ensure("root"))
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-accel", "tcg", "-m", "256", "-serial", "stdio"]
    command += ["-cpu", "max,svm=off,pmu=off", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    try:
        done = subprocess.run([*command, "-kernel", GUESTS / kernel, "-append", append, *options], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
        return done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        return -1, (late.stdout or b"").decode(errors="replace")


def tmk(append: str, *options: str) -> tuple[int, str]:
    return boot("tmk/tmk", append, *options)


def run(results: Results) -> None:
    run_tmk(results)
    for language, name in (("c", "C"), ("rust", "Rust")):
        kernel, hello = f"hello/hello-{language}", f"Hello from {name}!\n"
        status, text = boot(kernel, "exit=3")
        results.check(f"hello in {name}: its command line, and the exit status that it names", status == 7 and hello in text and "exit=3\n" in text)
        status, text = boot(kernel, "")
        results.check(f"hello in {name}: power-off", status == 0 and hello in text)


def run_tmk(results: Results) -> None:
    _, listed = tmk("test=list")
    wanted = re.findall(r"^test (?:always|several) (\S+)", listed, re.MULTILINE)
    status, text = tmk(f"test=all machine=other cpus={CPUS}", "-smp", str(CPUS))
    results.read_tap(text)
    for name in wanted:
        if not re.search(rf"^(not )?ok {name}\b", text, re.MULTILINE):
            results.fail(f"{name}: no answer")
    results.check("the exit status of success", status == 1 and bool(wanted))
    results.check("the exit status of a failure", tmk("test=nonsense")[0] == 197)
    for reset in ("reset_by_keyboard", "reset_by_chipset"):
        status, text = tmk(f"test={reset}")
        results.check(reset, status == 1 and "after the reset" in text)
    results.check("power_off", tmk("test=power_off slp=0")[0] == 0)
