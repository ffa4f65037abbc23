# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a program has started, down to the last process: when the program is interrupted, none of it stays behind."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

# A terminal's Ctrl-C reaches all processes at once, and they clean up: so long they have for it. Then they are asked to end, and
# what does not end when asked is killed. A process of another user can be neither, and is not waited for without end.
CLEAN_UP_S = 3
ASKED_S = 10
KILLED_S = 60
# A signal came: no thread is to start anything more.
ENDING = threading.Event()


class Interrupted(BaseException):
    """A signal asked this program to end."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which


def guarded(work: Callable[[], int]) -> int:
    """Does `work` and returns its status. SIGINT and SIGTERM end it with all that it started; the status is then 128 and the signal's number.

    So does a SIGINT to a program in the background, which a shell starts with that signal ignored: whoever sends it one means it."""
    adopt_orphans()
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, interrupt)
    try:
        return work()
    except Interrupted as interrupted:
        end_all(interrupted.which)
        return 128 + interrupted.which


def interrupt(which: int, _) -> None:
    ENDING.set()
    # The end of all that was started is not interrupted itself.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(which)


def unguarded() -> None:
    """In a child made by fork: it ends at once, and leaves the rest to its parent."""
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, signal.SIG_DFL)


def adopt_orphans() -> None:
    """A process whose parent ends becomes a child of this one, so that it can be found."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def end_all(which: int) -> None:
    phases = [(None, CLEAN_UP_S)] if which == signal.SIGINT else []
    for how, patience_s in [*phases, (signal.SIGTERM, ASKED_S), (signal.SIGKILL, KILLED_S)]:
        if gone(how, patience_s):
            return


def gone(how: int | None, patience_s: float) -> bool:
    """Sends each process the signal, also those that come meanwhile. Whether all were gone in time."""
    told: set[int] = set()
    end_s = time.monotonic() + patience_s
    while True:
        left = living()
        if how is not None:
            for pid in left - told:
                tell(pid, how)
        told |= left
        if not left or time.monotonic() > end_s:
            return not left
        time.sleep(0.02)


def tell(pid: int, how: int) -> None:
    """One that is stopped goes on, as it would not end."""
    for each in (how, signal.SIGCONT):
        try:
            os.kill(pid, each)
        except (ProcessLookupError, PermissionError):
            pass


def living(ancestor: int | None = None) -> set[int]:
    """All processes that this one, or another one, started, and those started by them. One that has ended is none, even if it is not reaped yet."""
    children: dict[int, list[int]] = {}
    for pid, parent, state in table():
        if state != "Z":
            children.setdefault(parent, []).append(pid)
    found, new = set(), [ancestor or os.getpid()]
    while new:
        new = [child for pid in new for child in children.get(pid, [])]
        found.update(new)
    return found


def table() -> list[tuple[int, int, str]]:
    """All processes of this machine: number, parent, state."""
    rows = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name before may have anything in it.
            state, parent, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        rows.append((int(path.parent.name), int(parent), state))
    return rows
