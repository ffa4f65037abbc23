# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tests of scripts/check-layers: it must see what is wrong in a small tree, and nothing in a good one."""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bed.cache import TOP

from .results import Results

# Names are relative to host_linux; one that begins with / is relative to the tree. Each file imports the next one down.
ALLOWED, BOOK = "/scripts/layers.allowed", "/Documentation/internals.md"
GOOD = {
    "main.rs": "mod base;\nmod middle;\nmod top;\n",
    "top.rs": "use crate::middle::{self, Middle};\nfn go() { middle::go(Middle); }\n",
    "middle.rs": "use super::base::Base;\npub struct Middle;\npub fn go(_: Middle) -> Base { Base }\n",
    "base.rs": "pub struct Base;\n",
    "/palacios_core/src/lib.rs": "",
    "/host_lwk/src/main.rs": "",
    "/userspace_ctl/src/main.rs": "",
    ALLOWED: "# Nothing.\n",
}
LAYERS = "upper   main top\n        middle\nlower   base\n"
ONE_LAYER = "all  main top middle base\n"
BASE = GOOD["base.rs"]
# The same names, but nothing is imported.
MIDDLE = "pub struct Middle;\npub fn go(_: Middle) {}\n"


def book(layers: str) -> str:
    blocks = {"host_linux": layers, "palacios_core/src": "all lib\n", "host_lwk/src": "all main\n"}
    return "".join(f"```text\nlayers of {folder}, from the top down\n{lines}```\n" for folder, lines in blocks.items())


def long_function(lines: int) -> str:
    """With a signature of three lines."""
    return "fn long(\n    a: [u8; 3],\n) {\n" + "    a();\n" * (lines - 4) + "}\n"


@dataclass
class Case:
    name: str
    # What differs from the good tree; None: the file is not there.
    changes: dict[str, str | None]
    # What the check says, in this order.
    said: tuple[str, ...] = ()
    layers: str = LAYERS


def circles() -> list[Case]:
    return [
        Case("a circle of two", {"base.rs": "use crate::middle::Middle;\n" + BASE},
             ("a circle: base.rs → middle.rs → base.rs", "    host_linux/base.rs:1 imports middle.rs", "    host_linux/middle.rs:1 imports base.rs"),
             ONE_LAYER),
        Case("a circle of three, by a path in the code",
             {"base.rs": BASE + "fn up() {\n    crate::top::go();\n}\n", "top.rs": "use crate::middle::Middle;\npub fn go() {}\n"},
             ("a circle: base.rs → top.rs → middle.rs → base.rs", "base.rs:3 imports top.rs"), ONE_LAYER),
        Case("a circle of parent and child",
             {"base.rs": "mod child;\npub struct Base(child::Child);\n", "base/child.rs": "use super::Base;\npub struct Child;\n"},
             ("a circle: base.rs → base/child.rs → base.rs", "base.rs:2 imports", "base/child.rs:1 imports")),
        Case("a parent that only declares its child and re-exports of it",
             {"base.rs": "mod child;\npub use child::Child;\npub struct Base;\n", "base/child.rs": "use super::Base;\npub struct Child(Base);\n"}),
        Case("a parent that uses what it re-exports",
             {"base.rs": "mod child;\npub use child::Child;\npub struct Base(Child);\n", "base/child.rs": "use super::Base;\npub struct Child;\n"},
             ("a circle: base.rs → base/child.rs → base.rs",)),
        Case("a circle of children, by way of their parent",
             {"base.rs": None, "base/mod.rs": "mod a;\nmod b;\npub use a::A;\npub use b::{B as Base};\n",
              "base/a.rs": "use super::Base;\npub struct A(Base);\n", "base/b.rs": "use crate::base::A;\npub struct B;\n"},
             ("a circle: base/a.rs → base/b.rs → base/a.rs",)),
    ]


def upward_imports() -> list[Case]:
    def upward(name: str, line: int, **files: str) -> Case:
        """base.rs imports middle.rs, which imports nothing."""
        said = f"host_linux/base.rs:{line} imports host_linux/middle.rs, of the layer `upper` above its own, `lower`"
        return Case(name, {"middle.rs": MIDDLE, **{f"{file}.rs": text for file, text in files.items()}}, (said,))

    return [
        upward("an upward import", 1, base="use crate::middle::Middle;\n" + BASE),
        upward("an upward import in a nested use", 4, base="use crate::{\n    middle::{\n        self,\n        Middle as Other,\n    },\n};\n" + BASE),
        upward("an upward import of everything", 1, base="use super::middle::*;\n" + BASE),
        upward("an upward import of a re-export", 1, base="use crate::Middle;\n" + BASE, main=GOOD["main.rs"] + "pub use middle::Middle;\n"),
        upward("an upward import by a module's name", 2, base="use crate::middle;\nfn up() { f(0..middle::END); }\n" + BASE,
               middle="pub const END: u8 = 1;\n" + MIDDLE),
        upward("an upward import from a module between braces", 4, base=BASE + "\nmod inner {\n    use super::super::middle::Middle;\n}\n"),
        upward("an upward use of an exported macro", 1, base="fn f() { crate::say!(); }\n" + BASE,
               middle="#[macro_export]\nmacro_rules! say { () => {} }\n" + MIDDLE),
        upward("an upward import behind test code", 4, base="pub struct Base {\n    #[cfg(test)]\n    count: [u8; 2],\n    up: crate::middle::Middle,\n}\n"),
    ]


def other_words() -> list[Case]:
    tests = ("#[cfg(test)]\nuse crate::top::go;\n#[cfg(all(test, not(loom)))]\nmod more {\n    use crate::middle::Middle;\n}\n"
             '#[cfg(any(test, feature = "test-support"))]\npub mod fake;\nmod testing;\n#[cfg(test)]\n')
    return [
        Case("a good tree", {}),
        Case("other crates", {"base.rs": "use middle_crate::{top, middle::Middle};\nuse ::middle::Middle;\n" + BASE}),
        Case("comments", {"base.rs": "// use crate::middle::Middle;\n/* crate::middle::go()\n{ */\n" + BASE}),
        Case("strings", {"base.rs": BASE + "fn f<'a>() { g(\"crate::middle::x {\\\"\", '{', b'\\'', r#\"\"{ crate::top::go \"#) }\n"}),
        Case("test code", {"base.rs": BASE + tests + long_function(700)}),
    ]


def the_book() -> list[Case]:
    more = {"main.rs": GOOD["main.rs"] + "mod more;\n"}
    return [
        Case("a file that no layer names", {**more, "more.rs": ""}, ("host_linux/more.rs: no layer",)),
        Case("a folder stands for what is in it", {**more, "more/mod.rs": "mod a;\n", "more/a.rs": ""}, layers=LAYERS + "bottom more\n"),
        Case("a longer name goes before its folder's", {"base.rs": "mod a;\nfn f() { a::f() }\n" + BASE, "base/a.rs": "pub fn f() {}\n"},
             ("base.rs:2 imports host_linux/base/a.rs, of the layer `high`",), layers="high base/a\n" + LAYERS),
        Case("a name without a file", {}, ("internals.md:6: host_linux has no nowhere.rs",), layers=LAYERS + "bottom nowhere\n"),
        Case("a name that stands twice", {}, ("internals.md:6: base is named twice",), layers=LAYERS + "bottom base\n"),
        Case("a book without layers", {BOOK: ""}, tuple(f"no block `layers of {crate}," for crate in ("palacios_core/src", "host_linux", "host_lwk/src"))),
        Case("a crate that is gone", {"/userspace_ctl/src/main.rs": None}, ("userspace_ctl/src: no lib.rs or main.rs",)),
    ]


def lengths() -> list[Case]:
    rest = "// …\n" * 599
    table, tests = "const TABLE: [[u8; 1]; 500] = [\n" + "    [0],\n" * 500 + "];\n", "#[cfg(test)]\nmod tests {\n" + "    // …\n" * 500 + "}\n"
    return [
        Case("80 lines of a function", {"base.rs": BASE + long_function(80)}),
        Case("81 lines of a function", {"base.rs": BASE + long_function(81)}, ("host_linux/base.rs:2: `long` has 81 lines",)),
        Case("600 lines of a file", {"base.rs": BASE + rest}),
        Case("601 lines of a file", {"base.rs": BASE + "\n" + rest}, ("host_linux/base.rs: 601 lines",)),
        Case("a table and tests beside 600 lines", {"base.rs": BASE + table + tests + rest}),
        Case("a table and tests beside 601 lines", {"base.rs": BASE + table + tests + rest + "\n"}, ("host_linux/base.rs: 601 lines",)),
    ]


def exceptions() -> list[Case]:
    upward = {"base.rs": "use crate::middle::Middle;\n" + BASE}
    import_of = "import host_linux/base.rs host_linux/middle.rs  # why\n"
    unneeded = ("import host_linux/middle.rs host_linux/base.rs", "file host_linux/base.rs", "function host_linux/base.rs long", "layers host_linux")
    return [
        Case("an exception for a circle", {**upward, ALLOWED: import_of}, layers=ONE_LAYER),
        Case("an exception for an upward import", {**upward, "middle.rs": MIDDLE, ALLOWED: import_of}),
        Case("exceptions for lengths", {"base.rs": BASE + long_function(601), ALLOWED: "file host_linux/base.rs  # why\nfunction host_linux/base.rs long  # why\n"}),
        Case("exceptions that nothing needs", {ALLOWED: "# Words.\n" + "".join(f"{key}  # why\n" for key in unneeded)},
             tuple(f"layers.allowed:{line}: nothing needs this any more: {key}." for line, key in enumerate(unneeded, 2))),
        Case("an exception without a reason", {ALLOWED: "file host_linux/base.rs\n"}, ("layers.allowed:1: not of the form",)),
    ]


def run(results: Results) -> None:
    for case in [*other_words(), *circles(), *upward_imports(), *the_book(), *lengths(), *exceptions()]:
        good, output = judge(case)
        results.check(f"check-layers: {case.name}", good)
        if not good:
            print(f"      saw: {output}")


def judge(case: Case) -> tuple[bool, str]:
    """Whether the check says what it must, and of nothing else; and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {**GOOD, BOOK: book(case.layers), **case.changes}.items():
            path = Path(f"{folder}{name}" if name.startswith("/") else f"{folder}/host_linux/{name}")
            if text is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        done = subprocess.run([TOP / "scripts/check-layers", folder], capture_output=True, text=True, check=False)
    places = [done.stdout.find(words) for words in case.said]
    faults = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    expected = -1 not in places and places == sorted(places) and len(faults) <= max(1, len(case.said))
    return expected and done.returncode == bool(case.said), done.stdout + done.stderr
