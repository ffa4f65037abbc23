# SPDX-License-Identifier: MIT OR Apache-2.0
"""Long steps: they say what they do and how long that takes, show that they are alive, and say what failed.

A step that ends within two seconds is silent. All is plain lines, the same on a terminal and in a log.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from . import offspring
from .cache import Failure

QUIET_S = 2
HEARTBEAT_S = 20
TAIL_LINES = 40


def tell(text: str, end: str = "\n") -> None:
    """Prints a line by one write, since steps that run side by side print too: `print` writes a line's end apart."""
    sys.stderr.write(text + end)
    sys.stderr.flush()


def say(text: str, end: str = "\n") -> None:
    tell(f"==> {text}", end)


def waits(silent_s: float, end: str = "\n") -> None:
    """Says that a program is alive, and that what it started is silent."""
    tell(f"    {silent_s:4.0f} s  waiting for output", end)


class Shown:
    """While its body runs it says that a step is at work, once it takes long, and at the end that it is done.

    `takes` says how long it takes: "about 2 minutes"; `last` gives the step's last words; `end` ends a line."""

    def __init__(self, title: str, takes: str = "", last: Callable[[], str] = str, end: str = "\n") -> None:
        self.title, self.takes, self.last, self.line_end = title, takes, last, end
        self.said, self.over = False, threading.Event()
        self.teller: threading.Thread | None = None

    def __enter__(self) -> "Shown":
        self.begin_s = time.monotonic()
        self.teller = threading.Thread(target=self._tell, daemon=True)
        self.teller.start()
        return self

    def __exit__(self, failure: type | None, *_) -> None:
        self.end(failure is None)

    def end(self, good: bool = True) -> None:
        """The step is over; nothing more is said of it. Without effect where it never began, or was over before."""
        if self.teller is None or self.over.is_set():
            return
        self.over.set()
        self.teller.join()
        if self.said and good:
            say(f"{self.title}: done in {time.monotonic() - self.begin_s:.0f} s", self.line_end)

    def _tell(self) -> None:
        if self.over.wait(QUIET_S):
            return
        self.said = True
        say(f"{self.title}, {self.takes} …" if self.takes else f"{self.title} …", self.line_end)
        while not self.over.wait(HEARTBEAT_S):
            # With its name, as another step may run beside it.
            words = ": ".join(filter(None, (self.title, self.last())))
            tell(f"    {time.monotonic() - self.begin_s:4.0f} s  {words}"[:120], self.line_end)


def run(title: str, command: list, log: Path, hint: str = "", takes: str = "", **kwargs) -> None:
    """Runs `command` with its output in `log`; on failure shows the log's end and raises with the hint."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # What a step prints goes to a log, whatever the caller's environment says of colours.
    env = {**kwargs.pop("env", os.environ), "CARGO_TERM_COLOR": "never"}
    with Shown(title, takes, lambda: last_line(log)):
        status = status_in(log, [str(part) for part in command], env=env, **kwargs)
        if offspring.ENDING.is_set():
            raise Failure(f"{title}: interrupted")
        if status != 0:
            tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            tell("\n".join(f"    {words}" for words in tail))
            raise Failure(f"{title}: failed with status {status}. The whole log: {log}\n{hint}".rstrip())


def status_in(log: Path, command: list[str], **kwargs) -> int:
    """Runs a command with its output in `log`."""
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **kwargs)
        try:
            return process.wait()
        except offspring.Interrupted as interrupted:
            # Before a caller clears away what it works on.
            offspring.end_all(interrupted.which)
            raise


def last_line(log: Path) -> str:
    """The last words in a log. A bar of progress has several in one line, one behind the other."""
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return words[-1].strip() if words else ""


def status_of(program: str, work: Callable[[], int]) -> int:
    """The exit status of a program that does `work`; its failure is said. A signal ends it with all that it started."""
    try:
        return offspring.guarded(work)
    except Failure as failure:
        tell(f"{program}: {failure}")
        return 1
