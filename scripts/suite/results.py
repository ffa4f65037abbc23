# SPDX-License-Identifier: MIT OR Apache-2.0
"""Counting tests, and reading what test programs say of themselves."""

import re
import sys
from dataclasses import dataclass, field

from bed.cache import TOP

SKIPS = TOP / "scripts" / "skips"


def allowed_skips() -> set[str]:
    lines = (line.split("#")[0].strip() for line in SKIPS.read_text().splitlines())
    return {line for line in lines if line}


@dataclass
class Results:
    """Names of tests by outcome."""

    stage: str
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def ok(self, name: str) -> None:
        self.passed.append(f"{self.stage}: {name}")

    def fail(self, name: str) -> None:
        self.failed.append(f"{self.stage}: {name}")
        print(f"    FAILED {self.stage}: {name}", file=sys.stderr, flush=True)

    def skip(self, name: str) -> None:
        self.skipped.append(f"{self.stage}: {name}")

    def check(self, name: str, good: bool) -> None:
        if good:
            self.ok(name)
        else:
            self.fail(name)

    def count(self) -> int:
        return len(self.passed) + len(self.failed) + len(self.skipped)

    def line(self) -> str:
        return f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"

    def add(self, other: "Results") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def judge_skips(self, allowed: set[str]) -> None:
        for name in [name for name in self.skipped if name not in allowed]:
            self.skipped.remove(name)
            self.failed.append(f"{name} (skipped, and not in scripts/skips)")

    def read_cargo(self, text: str, elsewhere: tuple[str, ...] = (), suffix: str = "") -> None:
        """The lines of `cargo test`. Programs in `elsewhere` are left out: another stage runs their ignored tests."""
        program = ""
        for line in text.splitlines():
            running = re.match(r"\s+(?:Running (?:unittests )?(\S+)|Doc-tests (\S+))", line)
            if running:
                program = (running[1] or running[2]).removeprefix("tests/").removesuffix(".rs")
            match = re.match(r"test (.+?)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", line)
            if match and program not in elsewhere:
                name = f"{program} {match[1]}{suffix}".strip()
                {"ok": self.ok, "FAILED": self.fail, "ignored": self.skip}[match[2]](name)

    def read_tap(self, text: str, suffix: str = "") -> int:
        """Lines `ok NAME`, `not ok NAME` (or BROKEN, FAILED) and `skip NAME` at the start of a line; returns how many there were."""
        before = self.count()
        for line in text.replace("\r", "").splitlines():
            match = re.match(r"(ok|not ok|BROKEN|FAILED|skip)\s+(.+)", line)
            if match:
                {"ok": self.ok, "not ok": self.fail, "BROKEN": self.fail, "FAILED": self.fail, "skip": self.skip}[match[1]](match[2].strip() + suffix)
        return self.count() - before
