# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the builds of guests share, guests/*/build: their files appear whole, and only when they are to be made anew."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from .cache import TOP, Failure

OUT = TOP / "build" / "guests"


def newer(made: Path, *sources: Path) -> bool:
    return made.exists() and all(made.stat().st_mtime >= source.stat().st_mtime for source in sources)


def write(made: Path, data: bytes) -> None:
    temporary = made.with_name(f".{made.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.rename(made)


def link(made: Path, target: Path) -> None:
    temporary = made.with_name(f".{made.name}.{os.getpid()}")
    temporary.symlink_to(target)
    temporary.rename(made)


def status_of(name: str, build: Callable[[Path], None]) -> int:
    """The exit status of guests/NAME/build, which fills build/guests/NAME."""
    out = OUT / name
    out.mkdir(parents=True, exist_ok=True)
    try:
        build(out)
    except Failure as failure:
        print(f"guests/{name}/build: {failure}", file=sys.stderr)
        return 1
    return 0
