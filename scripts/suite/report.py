# SPDX-License-Identifier: MIT OR Apache-2.0
"""What is said at the end: where the time went, which tests took longest, what failed."""

from .commands import LOGS
from .results import Results, Test

SLOWEST = 10
NAMES = LOGS / "names"


def table(stages: list[Results], wall_s: float) -> str:
    rows = [(stage.stage, stage.wall_s, stage.cpu_s, len(stage.tests)) for stage in stages]
    rows.append(("all", wall_s, sum(stage.cpu_s for stage in stages), sum(len(stage.tests) for stage in stages)))
    lines = [f"{'stage':12} {'wall s':>7} {'CPU s':>7} {'tests':>6}"]
    return "\n".join([*lines, *(f"{name:12} {wall:7.0f} {cpu:7.0f} {tests:6}" for name, wall, cpu, tests in rows)])


def slowest(stages: list[Results]) -> str:
    tests = sorted((test for stage in stages for test in stage.tests), key=lambda test: -test.seconds)
    return "\n".join(["the slowest tests:", *(f"{test.seconds:6.0f} s  {test.name}" for test in tests[:SLOWEST])])


def keep(stages: list[Results]) -> None:
    """Writes each test of these stages into the list, and leaves there what other stages found when they last ran."""
    ran = {stage.stage for stage in stages}
    others = [line for line in read().splitlines() if line.split("\t")[2].split(":")[0] not in ran]
    ours = [entry(test) for stage in stages for test in stage.tests]
    NAMES.parent.mkdir(parents=True, exist_ok=True)
    NAMES.write_text("".join(f"{line}\n" for line in sorted(others + ours, key=lambda line: line.split("\t")[2])))


def entry(test: Test) -> str:
    return f"{test.outcome}\t{test.seconds:.1f}\t{test.name}"


def read() -> str:
    return NAMES.read_text() if NAMES.exists() else ""
