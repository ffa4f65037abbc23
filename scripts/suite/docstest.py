# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tests of scripts/docs-check: it must see that a page shows code which is not in the sources."""

import subprocess
import tempfile
from pathlib import Path

from bed.cache import TOP

from .results import Results

SOURCE = """\
    // ANCHOR: outer
    fn shown() {
        // ANCHOR: inner
        tested();
        // ANCHOR_END: inner
    }
    // ANCHOR_END: outer
"""
OUTER = "fn shown() {\n    tested();\n}\n"


def run(results: Results) -> None:
    with tempfile.TemporaryDirectory(dir=TOP / "build") as folder:
        (Path(folder) / "code.rs").write_text(SOURCE)
        code = f"{Path(folder).relative_to(TOP)}/code.rs"
        for name, block, good in (
            ("code as it stands in the sources passes", f"rust {code}#outer\n{OUTER}", True),
            ("a region within a region passes", f"rust {code}#inner\ntested();\n", True),
            ("a word that differs fails", f"rust {code}#outer\n{OUTER.replace('tested', 'better')}", False),
            ("a line that is left out fails", f"rust {code}#outer\nfn shown() {{\n}}\n", False),
            ("a region that is not there fails", f"rust {code}#nowhere\n{OUTER}", False),
            ("a file that is not there fails", f"rust nowhere.rs#outer\n{OUTER}", False),
            ("code that is in no source fails", f"rust\n{OUTER}", False),
        ):
            results.check(f"docs-check: {name}", passes(Path(folder) / "page.md", f"```{block}```\n") == good)
        for name, text, good in (
            ("names that are in the sources pass", "`Memory::fault` in `memory/gate.rs`, `FrameWord`, `take_dirty`", True),
            ("a method that is not there fails", "`Memory::" + "no" + "_such_method`", False),
            ("a type that is not there fails", "`NoSuch" + "Thing`", False),
            ("a source file that is not there fails", "`memory/no_such_" + "file.rs`", False),
        ):
            results.check(f"docs-check: {name}", passes(Path(folder) / "page.md", f"{text}\n") == good)


def passes(page: Path, text: str) -> bool:
    page.write_text(text)
    done = subprocess.run([TOP / "scripts/docs-check", "--quick", page], stdout=subprocess.DEVNULL, check=False)
    return done.returncode == 0
