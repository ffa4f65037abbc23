# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs commands: keeps what they print, and knows when each line came."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bed import steps
from bed.cache import TOP

# The long forms of tests: `make soak` sets it.
SOAK = bool(os.environ.get("V3VEE_SOAK"))
BUILD = TOP / "build"
LOGS = BUILD / ("soak" if SOAK else "test")
# Colours, and moves of a cursor.
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")


@dataclass
class Line:
    at_s: float  # since the command began
    text: str


@dataclass
class Output:
    """What a command printed, and how it ended."""

    status: int = 0
    lines: list[Line] = field(default_factory=list)
    seconds: float = 0.0
    # It was ended, as it took longer than it may.
    late: bool = False

    @property
    def text(self) -> str:
        return "".join(f"{line.text}\n" for line in self.lines)

    def last(self) -> str:
        return self.lines[-1].text.strip() if self.lines else ""

    def show_end(self, lines: int = 40) -> None:
        """Shows its last lines to people."""
        print("\n".join(f"      {line.text}" for line in self.lines[-lines:]), file=sys.stderr)


def run(log: str, *command: object, title: str = "", cwd: Path = TOP, env: dict | None = None,
        allowed_s: Callable[[str], float | None] = lambda _: None) -> Output:
    """Runs a command, and shows it as a step. What it prints is kept in LOG.log too. `allowed_s` says how many seconds the command has
    after a line of its output; None: as many as before."""
    LOGS.mkdir(parents=True, exist_ok=True)
    output, begin = Output(), time.monotonic()
    with open(LOGS / f"{log}.log", "w") as file, steps.Shown(title or log, last=output.last) as step:
        process = subprocess.Popen([str(word) for word in command], cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, env={**os.environ, "CARGO_TERM_COLOR": "never", **(env or {})})
        limit = Limit(process)
        for raw in process.stdout:
            line = Line(time.monotonic() - begin, ESCAPES.sub("", raw.decode(errors="replace").replace("\r", "")).rstrip("\n"))
            output.lines.append(line)
            file.write(f"{line.text}\n")
            file.flush()
            limit.set(allowed_s(line.text))
        output.status = process.wait()
        output.late = limit.end()
        step.end(good=output.status == 0)
    output.seconds = time.monotonic() - begin
    return output


class Limit:
    """Ends a process when its time is up."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process, self.timer, self.hit = process, None, False

    def set(self, seconds: float | None) -> None:
        if seconds is not None:
            self.end()
            self.timer = threading.Timer(seconds, self._up)
            self.timer.start()

    def end(self) -> bool:
        """No limit any more; whether it was reached."""
        if self.timer:
            self.timer.cancel()
        return self.hit

    def _up(self) -> None:
        self.hit = True
        self.process.kill()
