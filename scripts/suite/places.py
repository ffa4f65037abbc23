# SPDX-License-Identifier: MIT OR Apache-2.0
"""Places, where commands run: as many at a time as there are CPUs, in all stages together. Who came first gets the next one."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# Two at least, as an emulated machine that waits keeps no CPU busy.
COUNT = max(2, len(os.sched_getaffinity(0)))

# Each stage is a process of its own, so these are shared memory. Whoever comes takes a number; a number has its turn when all
# those but COUNT before it have left.
_FORK = multiprocessing.get_context("fork")
_CHANGED = _FORK.Condition()
_CAME, _LEFT = _FORK.Value("L", 0, lock=False), _FORK.Value("L", 0, lock=False)


def in_place(work: Callable, *args, **kwargs):
    """Does the work when it has a place."""
    with _CHANGED:
        number = _CAME.value
        _CAME.value += 1
        _CHANGED.wait_for(lambda: number < _LEFT.value + COUNT)
    try:
        return work(*args, **kwargs)
    finally:
        with _CHANGED:
            _LEFT.value += 1
            _CHANGED.notify_all()


class Places(ThreadPoolExecutor):
    """Calls side by side, each in a place."""

    def submit(self, work: Callable, /, *args, **kwargs):
        return super().submit(in_place, work, *args, **kwargs)


PLACES = Places(max_workers=COUNT)
