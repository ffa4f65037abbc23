# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where the slow things are kept: outside every checkout, made once, complete or absent."""

import fcntl
import hashlib
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
RECIPES = TOP / "scripts" / "recipes"


class Failure(Exception):
    """Something failed in a way a person can act on: what failed, and what to do."""


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "v3vee"


def recipe_hash(*files: str, extra: str = "") -> str:
    """A short hash of recipe files (names in scripts/recipes), so that a changed recipe makes a new thing."""
    digest = hashlib.sha256(extra.encode())
    for name in files:
        digest.update((RECIPES / name).read_bytes())
    return digest.hexdigest()[:12]


def newest(pattern: str) -> Path | None:
    """The most recently made entry of the cache that matches; None when there is none."""
    found = sorted(cache_dir().glob(pattern), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


@contextmanager
def lock(name: str):
    """Held while one thing is made, so that two checkouts do not make it twice at once."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with open(cache_dir() / f"{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"==> waiting: another process makes the {name}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def made_whole(target: Path):
    """Gives an empty folder to fill, which becomes `target` when all went well and vanishes when not."""
    temporary = target.with_name(f".{target.name}.making")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.utime(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
