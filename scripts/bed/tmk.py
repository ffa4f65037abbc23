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


def command_line(wanted: str, cpus: str) -> str:
    """The kernel's command line for what a user wants: names of tests or a group, and VARIABLE=VALUE for those that take one. Refuses what the
    kernel would refuse, or fail for the user's mistake."""
    words = wanted.split()
    names = ",".join(word for word in words if "=" not in word)
    refuse_unknown(names, cpus)
    return " ".join([f"test={names}", f"cpus={cpus}", *(word for word in words if "=" in word)])


def refuse_unknown(names: str, cpus: str) -> None:
    kinds = {name: when for when, name in tests()} | {"several": "several"}
    for name in names.split(",") if names != "all" else ():
        if name in GROUPS and name != names:
            raise Failure(f"{name} stands for many tests: no other name goes with it")
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            raise Failure(f"no test is named {name or 'nothing'}{f'; is it {near[0]}?' if near else '.'} `make tmk TEST=list` lists all")
        if kinds[name] == "several" and cpus == "1":
            raise Failure(f"{name} needs several virtual CPUs: add CPUS=2 or more")
