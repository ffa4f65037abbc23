# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tests of interruptions: a program that a signal ends, sent to it alone, leaves no process behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bed import offspring
from bed.cache import TOP

from .jobs import JOBS
from .results import Results

# What a test may start, each of which could outlive it: one in another session, one that is stopped, one that does not end when
# asked. Each writes its number when it is so far.
SCRIPT = """\
#!/bin/sh
cd "$(dirname "$0")"
setsid sh -c 'echo $$ >session; exec sleep 1000' &
sh -c 'echo $$ >stopped; kill -STOP $$; exec sleep 1000' &
sh -c 'trap "" TERM; echo $$ >deaf; exec sleep 1000' &
echo $$ >itself
wait
"""
NAMES = ("session", "stopped", "deaf", "itself")
RUNNER = """\
from suite import runner, stages
work = lambda results: stages.check(results, "sleeps", script)
sys.argv = ["runner"]
sys.exit(runner.main("runner", "", [stages.Stage(f"interrupted-{number}", "sleeps", work)]))
"""
SLOW = """\
import importlib.machinery, importlib.util
loader = importlib.machinery.SourceFileLoader("slow", "scripts/slow")
slow = sys.modules["slow"] = importlib.util.module_from_spec(importlib.util.spec_from_loader("slow", loader))
loader.exec_module(slow)
slow.programs = lambda: [slow.Program(f"interrupted-{number}", script, None, {})]
sys.argv = ["slow", "--runs", "1"]
sys.exit(slow.main())
"""
# What `make run` and its like do before they boot: builds side by side, of which none begins any more. Only to find the root is left out.
BUILDS = """\
from bed import ready, steps
ready.hostroot.ensure = lambda what: what
queues = [[ready.Build([script], "building", "long"), ready.Build(["scripts/no-such"])], [ready.Build(["/bin/sleep", "1000"])]]
sys.exit(steps.status_of("builds", lambda: ready.build(*queues)))
"""
# A hang is a failure.
HANGS_S = 300
# What is interrupted, how it was started, and by which signal.
IN_BACKGROUND = ("env", "--ignore-signal=INT")
CASES = [("the runner", RUNNER, (), signal.SIGINT), ("the runner", RUNNER, (), signal.SIGTERM), ("the runner", RUNNER, IN_BACKGROUND, signal.SIGTERM),
         ("the runner", RUNNER, IN_BACKGROUND, signal.SIGINT), ("slow", SLOW, (), signal.SIGINT), ("slow", SLOW, IN_BACKGROUND, signal.SIGTERM),
         ("slow", SLOW, IN_BACKGROUND, signal.SIGINT), ("a program that builds", BUILDS, (), signal.SIGTERM),
         ("a program that builds", BUILDS, IN_BACKGROUND, signal.SIGINT)]


def run(results: Results) -> None:
    outcomes = JOBS.map(lambda number: interrupted(number, *CASES[number][1:]), range(len(CASES)))
    for (name, _, started, which), (good, seen) in zip(CASES, outcomes):
        where = " in the background" if started else ""
        results.check(f"{name}{where} leaves nothing behind: {which.name}", good)
        if not good:
            print(f"      saw: {seen}")
    for which in (signal.SIGINT, signal.SIGTERM):
        good, seen = JOBS.submit(booted_and_interrupted, which).result()
        results.check(f"make bed leaves nothing behind: {which.name}", good)
        if not good:
            print(f"      saw: {seen}")


def booted_and_interrupted(which: int):
    """Interrupts a program that has booted a host, when a command runs there."""
    process = subprocess.Popen([TOP / "scripts/run-bed", "echo here; sleep 1000"], cwd=TOP, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    said = process.stdout.readline()
    numbers = offspring.living(process.pid)
    process.send_signal(which)
    rest = process.communicate(timeout=HANGS_S)
    left = left_of(numbers)
    # The test bed and the emulator.
    return (said, process.returncode, left) == ("here\n", 128 + which, []) and len(numbers) >= 2, (said, rest, process.returncode, numbers, left)


def left_of(numbers) -> list[tuple[int, str]]:
    """Which of these processes still live; they are killed."""
    left = [(pid, state) for pid, _, state in offspring.table() if pid in numbers and state != "Z"]
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    return left


def interrupted(number: int, program: str, started: tuple[str, ...], which: int):
    """Interrupts the program when the script that it runs is as far as it goes."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script"
        script.write_text(SCRIPT)
        script.chmod(0o755)
        program = f"import sys\nsys.path.insert(0, {str(TOP / 'scripts')!r})\nnumber, script = {number}, {str(script)!r}\n{program}"
        # In a session of its own, as no signal for others is to reach it.
        process = subprocess.Popen([*started, sys.executable, "-B", "-c", program], cwd=TOP, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        numbers = numbers_in(Path(folder), process)
        process.send_signal(which)
        said = process.communicate(timeout=HANGS_S)[0]
        left = left_of(numbers)
    return len(numbers) == len(NAMES) and process.returncode == 128 + which and not left, (process.returncode, numbers, left, said)


def numbers_in(folder: Path, process: subprocess.Popen) -> list[int]:
    """Of all processes that the script starts, when all are there; fewer if the program ended before."""
    end_s = time.monotonic() + HANGS_S
    while True:
        texts = [path.read_text() for name in NAMES if (path := folder / name).exists()]
        numbers = [int(text) for text in texts if text.endswith("\n")]
        if len(numbers) == len(NAMES) or process.poll() is not None or time.monotonic() > end_s:
            return numbers
        time.sleep(0.02)
