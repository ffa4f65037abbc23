# SPDX-License-Identifier: MIT OR Apache-2.0
"""Limits how many commands run at a time, in all stages together, to the number of CPUs. Who asks first is next."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# Two at least, as an emulated machine that waits keeps no CPU busy.
COUNT = max(2, len(os.sched_getaffinity(0)))

# Each stage is a process of its own, so these are shared memory. Each job takes a number, in the order in which they ask. It may
# run when fewer than COUNT of the jobs before it have not ended.
_FORK = multiprocessing.get_context("fork")
_CHANGED = _FORK.Condition()
_TAKEN, _ENDED = _FORK.Value("L", 0, lock=False), _FORK.Value("L", 0, lock=False)


def as_job(work: Callable, *args, **kwargs):
    """Does the work when it is its turn."""
    with _CHANGED:
        number = _TAKEN.value
        _TAKEN.value += 1
        _CHANGED.wait_for(lambda: number < _ENDED.value + COUNT)
    try:
        return work(*args, **kwargs)
    finally:
        with _CHANGED:
            _ENDED.value += 1
            _CHANGED.notify_all()


class Jobs(ThreadPoolExecutor):
    """Calls that run side by side, each as a job."""

    def submit(self, work: Callable, /, *args, **kwargs):
        return super().submit(as_job, work, *args, **kwargs)


JOBS = Jobs(max_workers=COUNT)
