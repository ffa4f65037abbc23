# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tests of interruptions: a runner that a signal ends, sent to it alone, leaves no process behind."""

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
# A hang is a failure.
HANGS_S = 300
# What is interrupted, how it was started, and by which signal.
IN_BACKGROUND = ("env", "--ignore-signal=INT")
CASES = [("the runner", RUNNER, (), signal.SIGINT), ("the runner", RUNNER, (), signal.SIGTERM), ("the runner", RUNNER, IN_BACKGROUND, signal.SIGTERM),
         ("slow", SLOW, (), signal.SIGINT), ("slow", SLOW, IN_BACKGROUND, signal.SIGTERM)]


def run(results: Results) -> None:
    outcomes = JOBS.map(lambda number: interrupted(number, *CASES[number][1:]), range(len(CASES)))
    for (name, _, started, which), (good, seen) in zip(CASES, outcomes):
        where = " in the background" if started else ""
        results.check(f"{name}{where} leaves nothing behind: {which.name}", good)
        if not good:
            print(f"      saw: {seen}")


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
        left = [(pid, state) for pid, _, state in offspring.table() if pid in numbers and state != "Z"]
        for pid, _ in left:
            os.kill(pid, signal.SIGKILL)
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
