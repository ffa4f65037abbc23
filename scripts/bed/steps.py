# SPDX-License-Identifier: MIT OR Apache-2.0
"""Long steps: they say what they do and how long that takes, show that they are alive, and say what failed.

A step that ends within two seconds is silent. All is plain lines, the same on a terminal and in a log.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .cache import Failure

QUIET_S = 2
HEARTBEAT_S = 20
TAIL_LINES = 40


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def run(title: str, command: list, log: Path, hint: str = "", takes: str = "", **kwargs) -> None:
    """Runs `command` with its output in `log`; on failure shows the log's end and raises with the hint.

    `takes` says how long it takes: "about 2 minutes"."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    # What a step prints goes to a log, whatever the caller's environment says of colours.
    env = {**kwargs.pop("env", os.environ), "CARGO_TERM_COLOR": "never"}
    with open(log, "wb") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, env=env, **kwargs)
        try:
            said = wait(process, start, log, title, takes)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode != 0:
        tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        print("\n".join("    " + line for line in tail), file=sys.stderr)
        raise Failure(f"{title}: failed with status {process.returncode}. The whole log: {log}\n{hint}".rstrip())
    if said:
        say(f"{title}: done in {time.monotonic() - start:.0f} s")


def wait(process: subprocess.Popen, start: float, log: Path, title: str, takes: str) -> bool:
    """Waits for the end of a step; returns whether the step was announced, because it took long."""
    if ends(process, QUIET_S):
        return False
    say(f"{title}, {takes} …" if takes else f"{title} …")
    while not ends(process, HEARTBEAT_S):
        # With its name, as another step may run beside it.
        words = ": ".join(filter(None, (title, last_line(log))))
        print(f"    {time.monotonic() - start:4.0f} s  {words}"[:120], file=sys.stderr, flush=True)
    return True


def ends(process: subprocess.Popen, within_s: float) -> bool:
    try:
        process.wait(timeout=within_s)
        return True
    except subprocess.TimeoutExpired:
        return False


def last_line(log: Path) -> str:
    """The last words in a log. A bar of progress has several in one line, one behind the other."""
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return words[-1].strip() if words else ""


def status_of(program: str, work: Callable[[], int]) -> int:
    """The exit status of a program that does `work`; its failure is said."""
    try:
        return work()
    except Failure as failure:
        print(f"{program}: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
