# SPDX-License-Identifier: MIT OR Apache-2.0
"""Limits how many commands run at a time, in all stages together, to the number of CPUs. An earlier stage of the list goes first."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# Two at least, as an emulated machine that waits keeps no CPU busy.
COUNT = max(2, len(os.sched_getaffinity(0)))

# Each stage is a process of its own, so these are shared memory: how many jobs of each stage wait, and how many may still start.
_FORK = multiprocessing.get_context("fork")
_CHANGED = _FORK.Condition()
_WAITING, _FREE = _FORK.Array("L", 64, lock=False), _FORK.Value("L", COUNT, lock=False)
_stage = 0


def begin_stage(number: int) -> None:
    """Says, in a stage's process, that its jobs are those of the stage with this number in the list."""
    global _stage
    _stage = number


def as_job(work: Callable, *args, **kwargs):
    """Does the work when it is its turn."""
    with _CHANGED:
        _WAITING[_stage] += 1
        _CHANGED.wait_for(lambda: _FREE.value and not any(_WAITING[:_stage]))
        _WAITING[_stage] -= 1
        _FREE.value -= 1
        _CHANGED.notify_all()
    try:
        return work(*args, **kwargs)
    finally:
        with _CHANGED:
            _FREE.value += 1
            _CHANGED.notify_all()


class Jobs(ThreadPoolExecutor):
    """Calls that run side by side, each as a job."""

    def submit(self, work: Callable, /, *args, **kwargs):
        return super().submit(as_job, work, *args, **kwargs)


JOBS = Jobs(max_workers=COUNT)
