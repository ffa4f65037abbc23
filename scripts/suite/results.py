# SPDX-License-Identifier: MIT OR Apache-2.0
"""Counting tests, and reading what test programs say of themselves."""

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from bed.cache import TOP

from .commands import Line

SKIPS = TOP / "scripts" / "skips"
# How many tests a program of `cargo test` runs at a time.
CARGO_THREADS = len(os.sched_getaffinity(0))


def allowed_skips() -> set[str]:
    lines = (line.split("#")[0].strip() for line in SKIPS.read_text().splitlines())
    return {line for line in lines if line}


@dataclass
class Test:
    name: str
    outcome: str  # passed, failed or skipped
    seconds: float


@dataclass
class Results:
    """What a stage found, and what it took."""

    stage: str
    tests: list[Test] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def ok(self, name: str, seconds: float = 0.0) -> None:
        self.tests.append(Test(f"{self.stage}: {name}", "passed", seconds))

    def fail(self, name: str, seconds: float = 0.0) -> None:
        self.tests.append(Test(f"{self.stage}: {name}", "failed", seconds))
        print(f"    FAILED {self.stage}: {name}", file=sys.stderr, flush=True)

    def skip(self, name: str, seconds: float = 0.0) -> None:
        self.tests.append(Test(f"{self.stage}: {name}", "skipped", seconds))

    def check(self, name: str, good: bool, seconds: float = 0.0) -> None:
        (self.ok if good else self.fail)(name, seconds)

    def names(self, outcome: str) -> list[str]:
        return [test.name for test in self.tests if test.outcome == outcome]

    def line(self) -> str:
        return ", ".join(f"{len(self.names(outcome))} {outcome}" for outcome in ("passed", "failed", "skipped"))

    def judge_skips(self, allowed: set[str]) -> None:
        for test in self.tests:
            if test.outcome == "skipped" and test.name not in allowed:
                test.name += " (skipped, and not in scripts/skips)"
                test.outcome = "failed"

    def read_cargo(self, lines: Iterable[Line], elsewhere: tuple[str, ...] = (), suffix: str = "", threads: int = CARGO_THREADS,
                   begin_s: float = 0.0) -> int:
        """The lines of `cargo test`; returns how many tests there were. Programs in `elsewhere` are left out: another stage runs their
        ignored tests."""
        before, program, ended = len(self.tests), "", {}
        for line in lines:
            running = re.match(r"\s+(?:Running (?:unittests )?(\S+)|Doc-tests (\S+))", line.text)
            if running:
                self._take_cargo(program, begin_s, ended, suffix, threads)
                program, begin_s, ended = (running[1] or running[2]).removeprefix("tests/").removesuffix(".rs"), line.at_s, {}
            match = re.match(r"test (.+?)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", line.text)
            if match and program not in elsewhere:
                ended[match[1]] = (match[2], line.at_s)
        self._take_cargo(program, begin_s, ended, suffix, threads)
        return len(self.tests) - before

    def _take_cargo(self, program: str, begin_s: float, ended: dict[str, tuple[str, float]], suffix: str, threads: int) -> None:
        """A program's tests. It begins them in the order of their names, the next one whenever one ends."""
        begins_s = [begin_s] * threads + sorted(at_s for _, at_s in ended.values())
        for name, its_begin_s in zip(sorted(ended), begins_s):
            outcome, at_s = ended[name]
            {"ok": self.ok, "FAILED": self.fail, "ignored": self.skip}[outcome](f"{program} {name}{suffix}".strip(), max(0.0, at_s - its_begin_s))

    def read_tap(self, lines: Iterable[Line], suffix: str = "", begin_s: float = 0.0) -> int:
        """Lines `ok NAME`, `not ok NAME` (or BROKEN, FAILED) and `skip NAME`; returns how many there were. A test began where the one
        before it ended."""
        before = len(self.tests)
        for line in lines:
            match = re.match(r"(ok|not ok|BROKEN|FAILED|skip)\s+(.+)", line.text)
            if match:
                note = {"ok": self.ok, "skip": self.skip}.get(match[1], self.fail)
                note(match[2].strip() + suffix, line.at_s - begin_s)
                begin_s = line.at_s
        return len(self.tests) - before
