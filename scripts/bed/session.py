# SPDX-License-Identifier: MIT OR Apache-2.0
"""One run: follows the emulated host from its start to the command's exit status, and judges what the kernel said."""

import fcntl
import math
import os
import select
import sys
import termios
import time
import tty
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

from . import splats, steps
from .initramfs import Job
from .machine import Machine

# Statuses of failures that are not the command's; no program ends with these by itself.
SPLAT, TIMEOUT, BROKEN = 200, 201, 202
ESCAPE = b"\x01"  # Ctrl-A, then x
LAST_WORDS_S = 5.0


@dataclass
class KernelLog:
    """The kernel's lines; those after the mark `begin` count."""

    token: str
    copy: BinaryIO | None = None
    # What the kernel is yet to say.
    expected: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    first_splat: int | None = None
    begun: bool = False
    ended: bool = False
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        if self.copy:
            self.copy.write(data)
            self.copy.flush()
        *whole, self._rest = (self._rest + data).split(b"\n")
        for raw in whole:
            self._line(raw.decode(errors="replace").rstrip("\r"))

    def _line(self, line: str) -> None:
        self.lines.append(line)
        self.begun |= f"{self.token} begin" in line
        self.ended |= f"{self.token} end" in line
        awaited = next((text for text in self.expected if text in line), None) if self.begun else None
        if awaited is not None:
            self.expected.remove(awaited)
        elif self.begun and self.first_splat is None and splats.is_splat(line):
            self.first_splat = len(self.lines) - 1

    def last(self) -> str:
        return self.lines[-1] if self.lines else ""

    def report(self) -> list[str]:
        return self.lines[self.first_splat:][: splats.SHOWN_LINES]


@dataclass
class Words:
    """What a user is told beside the command's output."""

    # Before the command starts.
    before: list[str] = field(default_factory=list)
    # Whether to show, while the command is silent, that it is waited for; on a terminal up to its first output, as a user waits himself then.
    of_silence: bool = False


class Session:
    def __init__(self, machine: Machine, job: Job, log: KernelLog, boot: steps.Shown, on_sections, goes_down: bool = False,
                 words: Words | None = None) -> None:
        self.machine, self.job, self.log, self.boot, self.on_sections, self.goes_down = machine, job, log, boot, on_sections, goes_down
        self.words = words or Words()
        self.status: int | None = None
        self.failure = ""
        # Whether the command was started, and whether the user left it by the escape.
        self.started = self.left = False
        self._control = b""
        self._escape = False
        # When the command, or the first process about it, was heard last; and when its silence is shown next.
        self.heard_s, self.shown_s = 0.0, math.inf
        # Holds the terminal's raw mode while the command runs. Before, Ctrl-C ends everything, and lines are lines.
        self._terminal = ExitStack()
        # The wires to the host that are not closed yet.
        self._open = {port: name for name, port in machine.ports.items()}

    def follow(self, timeout_s: float | None, silence_s: float | None = None) -> int:
        """Runs to the end; returns the status for the caller's shell. Reasons go to standard error. A limit of 0 or None is none."""
        begin_s = self.heard_s = time.monotonic()
        with self._terminal:
            while self._open and self.status is None and not self.failure and not self.left:
                limits = [(math.inf, "")]
                if timeout_s:
                    limits.append((begin_s + timeout_s, f"the command did not end within {timeout_s:.0f} s; --timeout SECONDS sets another limit"))
                if silence_s:
                    limits.append((self.heard_s + silence_s, f"the command was silent for {silence_s:.0f} s; --silence SECONDS sets another limit"))
                now_s, (end_s, reason) = time.monotonic(), min(limits)
                if now_s >= end_s:
                    return self._verdict(reason, TIMEOUT)
                if now_s >= self.shown_s:
                    self._show_silence(now_s)
                wait = min(end_s, self.shown_s) - now_s
                self._step(None if wait == math.inf else wait)
            if self.failure:
                return self._verdict(self.failure, BROKEN)
            self._hear_the_rest()
        status = self._verdict(*self._end())
        if self.job.terminal is not None:
            steps.say("the emulated host is gone")
        return status

    def _show_silence(self, now_s: float) -> None:
        # A terminal in raw mode begins no line by itself.
        steps.waits(now_s - self.heard_s, "\r\n" if self.job.terminal else "\n")
        self.shown_s = now_s + steps.HEARTBEAT_S

    def _hear_the_rest(self) -> None:
        """There are several wires: what was sent on the others before the end arrives too."""
        last = time.monotonic() + LAST_WORDS_S
        while self._open and not self.log.ended and not self.left and time.monotonic() < last:
            self._step(last - time.monotonic())
        if self.status is not None or self.left:
            self.machine.power_off()
        while self._step(1) and self._open:
            pass

    def _end(self) -> tuple[str, int]:
        """Why the run is a failure, if it is, and its status."""
        down = self.status is None
        if down and self.started and self.job.terminal is not None:
            # Its user left by the escape, or switched the host off.
            return "", 0
        if down and not self.goes_down:
            return f"the emulated host went down before the command ended ({self.machine.ended()})", BROKEN
        if self.goes_down and not down:
            return "the emulated host did not go down", BROKEN
        if self.log.expected:
            return f"the kernel did not say: {'; '.join(self.log.expected)}", BROKEN
        return "", self.status or 0

    def _step(self, wait: float | None) -> bool:
        """Waits for something to happen and handles it; false when nothing came in time."""
        sources: list = list(self._open)
        if self.job.terminal is not None and self.started and self.status is None and not self.left:
            sources.append(sys.stdin.buffer.raw)
        ready, _, _ = select.select(sources, [], [], wait) if sources else ([], [], [])
        for source in ready:
            if source not in self._open:
                self._typed(os.read(source.fileno(), 4096))
            elif data := received(source):
                self._heard(self._open[source], data)
            else:
                del self._open[source]
        return bool(ready)

    def _heard(self, name: str, data: bytes) -> None:
        if name in ("command", "control"):
            self.heard_s = time.monotonic()
        if name == "command" and self.shown_s < math.inf:
            self.shown_s = math.inf if self.job.terminal else self.heard_s + steps.HEARTBEAT_S
        if name == "kernel":
            self.log.feed(data)
        elif name == "command":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif name == "control":
            *lines, self._control = (self._control + data).split(b"\n")
            for line in lines:
                self._told(line.decode(errors="replace").strip())
        else:
            self.machine.heard(data)

    def _told(self, line: str) -> None:
        token, _, message = line.partition(" ")
        word, _, rest = message.partition(" ")
        if token != self.job.token:
            return
        if word == "exit":
            self.status = int(rest)
        elif word == "insmod":
            self.failure = "insmod v3vee.ko failed; the kernel's last words:\n" + "\n".join(self.log.lines[-12:])
        elif word == "run":
            self.started = True
            self.boot.end()
            for line in self.words.before:
                print(line, flush=True)
            if self.words.of_silence:
                self.shown_s = self.heard_s + steps.HEARTBEAT_S
            self._terminal.enter_context(raw_terminal(self.job.terminal is not None))
        elif word == "sections":
            self.boot.end()
            self.on_sections(self.machine, dict(pair.split("=") for pair in rest.split()))

    def _typed(self, data: bytes) -> None:
        if not data or (self._escape and data[:1] == b"x") or ESCAPE + b"x" in data:
            self.left = True
            return
        if self._escape or data != ESCAPE:
            self.machine.ports["command"].sendall(data)
        self._escape = data == ESCAPE and not self._escape

    def _verdict(self, reason: str, status: int) -> int:
        self.boot.end(good=False)
        if self.log.first_splat is not None:
            complain("the kernel reported a fault:")
            print("\n".join("  " + line for line in self.log.report()), file=sys.stderr)
            return SPLAT
        if reason:
            complain(reason)
            if not self.log.begun or status == TIMEOUT:
                print("\n".join("  " + line for line in self.log.lines[-25:]), file=sys.stderr)
        return status


def received(source) -> bytes:
    """What a wire has; nothing when its far end is gone."""
    try:
        return os.read(source.fileno(), 65536)
    except ConnectionResetError:
        return b""


def complain(text: str) -> None:
    print(f"testbed: {text}", file=sys.stderr, flush=True)


@contextmanager
def raw_terminal(wanted: bool):
    """Every key goes to the emulated host as it is typed."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    flags = fcntl.fcntl(sys.stdin, fcntl.F_GETFL)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        fcntl.fcntl(sys.stdin, fcntl.F_SETFL, flags)
