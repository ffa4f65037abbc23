# SPDX-License-Identifier: MIT OR Apache-2.0
"""Long steps that show they are alive, and say what failed."""

import subprocess
import sys
import time
from pathlib import Path

from .cache import Failure

HEARTBEAT_S = 20
TAIL_LINES = 25


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def run(title: str, command: list, log: Path, hint: str = "", **kwargs) -> None:
    """Runs `command` with its output in `log`; on failure shows the log's end and raises with the hint."""
    say(f"{title} …")
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, **kwargs)
        try:
            wait_with_heartbeat(process, start, log)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode != 0:
        tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        print("\n".join("    " + line for line in tail), file=sys.stderr)
        raise Failure(f"{title}: failed with status {process.returncode}. The whole log: {log}\n{hint}".rstrip())
    say(f"{title}: done in {time.monotonic() - start:.0f} s")


def wait_with_heartbeat(process: subprocess.Popen, start: float, log: Path) -> None:
    while True:
        try:
            process.wait(timeout=HEARTBEAT_S)
            return
        except subprocess.TimeoutExpired:
            lines = log.read_text(errors="replace").splitlines()
            last = lines[-1].strip()[:90] if lines else ""
            print(f"    {time.monotonic() - start:4.0f} s  {last}", file=sys.stderr, flush=True)
