# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs stages side by side, each in a process of its own: `scripts/test` and `scripts/soak`."""

import argparse
import multiprocessing
import resource
import subprocess
import sys
import time
from multiprocessing.connection import Connection, wait

from bed import offspring, steps
from bed.cache import Failure

from . import jobs, report
from .results import Results, allowed_skips
from .stages import Stage

FORK = multiprocessing.get_context("fork")


def run_stage(stage: Stage, number: int, wire: Connection) -> None:
    """In a process of its own, so that its children's time can be told from that of others."""
    offspring.unguarded()
    jobs.begin_stage(number)
    steps.say(f"{stage.name}: {stage.help}")
    start, results = time.monotonic(), Results(stage.name)
    try:
        stage.run(results)
        if not results.tests:
            results.fail("ran no test")
    except (Failure, OSError, subprocess.SubprocessError) as failure:
        results.fail(str(failure))
    results.judge_skips(allowed_skips())
    results.wall_s = time.monotonic() - start
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    results.cpu_s = sum(usage.ru_utime + usage.ru_stime for usage in spent)
    wire.send(results)
    steps.say(f"{stage.name}: {results.line()} in {results.wall_s:.0f} s")


def start(stage: Stage, number: int) -> Connection:
    ours, theirs = FORK.Pipe(duplex=False)
    FORK.Process(target=run_stage, args=(stage, number, theirs)).start()
    theirs.close()
    return ours


def result_of(stage: Stage, wire: Connection) -> Results:
    try:
        return wire.recv()
    except EOFError:
        return failed(stage, "its process died")


def failed(stage: Stage, why: str) -> Results:
    results = Results(stage.name)
    results.fail(why)
    return results


def run_stages(chosen: list[Stage]) -> list[Results]:
    """Each as soon as those have ended whose work it needs."""
    names, made = {stage.name for stage in chosen}, {stage.name for stage in chosen if stage.implied}
    waiting, running, ended = list(chosen), {}, {}
    while waiting or running:
        for stage in [stage for stage in waiting if not (names & set(stage.after)) - set(ended)]:
            waiting.remove(stage)
            lacks = [name for name in stage.after if name in made and ended[name].names("failed")]
            if lacks:
                ended[stage.name] = failed(stage, f"needs what {' and '.join(lacks)} could not make")
            else:
                running[start(stage, chosen.index(stage))] = stage
        for wire in wait(list(running)):
            stage = running.pop(wire)
            ended[stage.name] = result_of(stage, wire)
    return [ended[stage.name] for stage in chosen]


def with_implied(chosen: list[Stage], all_stages: list[Stage]) -> list[Stage]:
    """These stages, and before them those without which they cannot run."""
    names = {stage.name for stage in chosen}
    while True:
        more = {name for stage in all_stages if stage.name in names for name in stage.after if name not in names}
        more &= {stage.name for stage in all_stages if stage.implied}
        if not more:
            return [stage for stage in all_stages if stage.name in names]
        names |= more


def arguments(prog: str, about: str, all_stages: list[Stage]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="one of: " + " ".join(stage.name for stage in all_stages))
    parser.add_argument("--list", action="store_true", help="only list the stages")
    parser.add_argument("--names", action="store_true", help="only print each test of the last run: outcome, seconds and name, between tabs")
    args = parser.parse_args()
    unknown = set(args.stages) - {stage.name for stage in all_stages}
    if unknown:
        parser.error(f"no stage is named {' or '.join(sorted(unknown))}; `scripts/{prog} --list` lists them")
    return args


def main(prog: str, about: str, all_stages: list[Stage]) -> int:
    args = arguments(prog, about, all_stages)
    if args.list:
        print("\n".join(f"{stage.name:12} {stage.help}" for stage in all_stages))
        return 0
    if args.names:
        print(report.read(), end="")
        return 0
    return offspring.guarded(lambda: judge(args, all_stages))


def judge(args: argparse.Namespace, all_stages: list[Stage]) -> int:
    """Runs the stages; the status of the whole."""
    start = time.monotonic()
    chosen = [stage for stage in all_stages if not args.stages or stage.name in args.stages]
    stages = run_stages(with_implied(chosen, all_stages))
    report.keep(stages)
    print(report.table(stages, time.monotonic() - start), report.slowest(stages), sep="\n\n", flush=True)
    total = Results("all", [test for stage in stages for test in stage.tests])
    for name in total.names("failed"):
        print(f"FAILED {name}", file=sys.stderr)
    sys.stderr.flush()
    print(total.line(), flush=True)
    return 1 if total.names("failed") or not total.names("passed") else 0
