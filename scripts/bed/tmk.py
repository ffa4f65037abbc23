# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tests of guests/tmk by name, as their sources list them: to know them takes no build and no boot."""

import difflib
import re

from .cache import TOP, Failure

SOURCES = TOP / "guests/tmk/src/tests"
# Not names of tests, but of many.
GROUPS = ("all", "several")


def tests() -> list[tuple[str, str]]:
    """When each is run, and its name, in the kernel's order; the kernel prints the same for `test=list`."""
    rooms = re.findall(r"^    (\w+)::TESTS,$", (SOURCES / "mod.rs").read_text(), re.MULTILINE)
    return [test for room in rooms for test in listed((SOURCES / f"{room}.rs").read_text())]


def listed(source: str) -> list[tuple[str, str]]:
    """What `tests!` says in one source: names, and behind each semicolon a kind with its names."""
    parts = re.search(r"^tests!\((.*?)\);", source, re.MULTILINE | re.DOTALL)[1].split(";")
    kinds = [part.rpartition(":") for part in parts]
    return [(kind.strip().replace("_", "-") or "always", name) for kind, _, names in kinds for name in re.findall(r"\w+", names)]


def refuse_unknown(wanted: str) -> None:
    """Refuses what is neither a group nor names of tests, with commas between them."""
    known = [name for _, name in tests()]
    for name in wanted.split(",") if wanted not in GROUPS else ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise Failure(f"no test is named {name or 'nothing'}{f'; is it {near[0]}?' if near else '.'} `make tmk TEST=list` lists all")
