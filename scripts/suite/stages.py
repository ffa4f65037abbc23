# SPDX-License-Identifier: MIT OR Apache-2.0
"""What `make test` and `make soak` do."""

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bed.cache import TOP
from bed.steps import Shown

from . import docstest, interruptions, layerstest, oracle, selftest, sharing
from .boots import KERNELS, boots, has_long_form
from .commands import BUILD, LOGS, SOAK, Output, run
from .jobs import JOBS, as_job
from .results import Results


@dataclass
class Stage:
    name: str
    help: str
    run: Callable[[Results], None]
    # The stages whose work it needs.
    after: tuple[str, ...] = ()
    # It also runs when only a stage that needs it was asked for; if it fails, that one cannot run.
    implied: bool = False


def judge(results: Results, name: str, output: Output) -> bool:
    """A command's status as one test; its last lines are shown when it fails."""
    results.check(name, output.status == 0, output.seconds)
    if output.status != 0:
        output.show_end(30)
    return output.status == 0


def check(results: Results, name: str, *command: object, **kwargs) -> bool:
    """Runs one command as one test."""
    log = f"{results.stage}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
    return judge(results, name, as_job(run, log, *command, title=f"{results.stage}: {name}", **kwargs))


def root(results: Results) -> None:
    check(results, "host root and guest kernels", "scripts/bootstrap", "root", "guests")


def debug(results: Results) -> None:
    check(results, "debug kernel", "scripts/bootstrap", "debug")


def style(results: Results) -> None:
    check(results, "cargo fmt", "cargo", "fmt", "--all", "--check")
    loose = [*TOP.glob("host_linux/main.rs"), *TOP.glob("rust/kernel_alloc/lib.rs"), *TOP.glob("rust/num_traits/lib.rs"),
             *TOP.glob("guests/linux/*.rs"), *TOP.glob("guests/examples/*/rust/main.rs")]
    check(results, "rustfmt of the module and the guests", "rustfmt", "--check", "--edition=2021", *loose)
    check(results, "clippy", "cargo", "clippy", "--workspace", "--all-targets", "--", "-Dwarnings")
    tmk = ("--manifest-path", TOP / "guests/tmk/Cargo.toml")
    check(results, "cargo fmt of the test kernels", "cargo", "fmt", "--check", *tmk)
    check(results, "clippy of the test kernels", "cargo", "clippy", "--locked", *tmk, "--", "-Dwarnings")
    for main in TOP.glob("guests/examples/*/rust/main.rs"):
        check(results, f"clippy of the example {main.parents[1].name}", "clippy-driver", "--edition=2021", "-Cpanic=abort", "-Dwarnings",
              "--emit=metadata", "-o", LOGS / "example.rmeta", main)
    check(results, "rustfmt of the lightweight kernel", "cargo", "fmt", "--check", "--manifest-path", TOP / "host_lwk/Cargo.toml")
    check(results, "clippy of the lightweight kernel", "cargo", "clippy", "--locked", f"--target-dir={BUILD}/lwk/clippy",
          "--manifest-path", TOP / "host_lwk/Cargo.toml", "--", "-Dwarnings")
    check(results, "every source file names its licence", TOP / "scripts/check-licences")
    check(results, "each file imports what is below it", TOP / "scripts/check-layers")
    with Shown("style: tests of check-layers"):
        layerstest.run(results)
    documented(results, "the workspace", "--workspace")
    documented(results, "the core, private items too", "--package=palacios_core", "--document-private-items")
    documented(results, "the test kernels", *tmk)
    documented(results, "the lightweight kernel", f"--target-dir={BUILD}/lwk/clippy", "--manifest-path", TOP / "host_lwk/Cargo.toml")
    check(results, "the book shows tested code", "scripts/docs-check", "--quick")
    with Shown("style: tests of docs-check"):
        docstest.run(results)


def documented(results: Results, name: str, *what: object) -> None:
    """Every public item has words, and their links lead somewhere."""
    check(results, f"cargo doc of {name}", "cargo", "doc", "--locked", "--no-deps", *what, env={"RUSTDOCFLAGS": "-Dwarnings"})


def cargo(results: Results) -> None:
    """Built first, so that what a test takes is its own."""
    words = ("cargo", "test", "--workspace")
    if not check(results, "tests are built", *words, "--no-run"):
        return
    output = as_job(run, "cargo", *words, "--no-fail-fast")
    results.read_cargo(output.lines, elsewhere=("module",))
    if output.status != 0:
        output.show_end()
        if not results.names("failed"):
            results.fail("cargo test")


def targets(results: Results) -> None:
    """The core alone, with the kernel's compiler: where no host is, and where no hardware is."""
    base = ("cargo", "build", "--locked", "--offline", "--config", 'source.crates-io.replace-with="v"', "--config",
            f'source.v.directory="{BUILD}/vendor"', "--package=palacios_core", f"--target-dir={BUILD}/target-root")
    sysroot = BUILD / "bare-sysroot"
    if not check(results, "third-party sources", "scripts/build-module", "--prepare"):
        return
    if check(results, "core and alloc for x86_64-unknown-none", "scripts/in-root", "scripts/bare-sysroot", sysroot):
        check(results, "palacios_core for x86_64-unknown-none", "scripts/in-root", "env", f"RUSTFLAGS=--sysroot={sysroot}", *base,
              "--target=x86_64-unknown-none")
    check(results, "palacios_core for wasm32 without hardware", "scripts/in-root", *base, "--target=wasm32-unknown-unknown",
          "--no-default-features")


def tools(results: Results) -> None:
    check(results, "v3, static", "scripts/build-tools", "--tests")
    if (BUILD / "tools/v3").exists():
        output = run("tools-static", "file", "--brief", "--dereference", BUILD / "tools/v3")
        results.check("v3 needs no library", output.status == 0 and "static" in output.text)


def guests(results: Results) -> None:
    check(results, "Linux guests", "guests/linux/build")
    for build in sorted(TOP.glob("guests/*/build")):
        if build.parent.name != "linux":
            check(results, f"guests/{build.parent.name}", build)


def modules(results: Results) -> None:
    built = [JOBS.submit(run, f"modules-{kernel}", "scripts/build-module", "--kernel", kernel) for kernel in KERNELS]
    for kernel, build in zip(KERNELS, built):
        judge(results, f"v3vee.ko for the {kernel} kernel", build.result())
    check(results, "panics of the core are explained", "scripts/panics", "--check")


def testbed(results: Results) -> None:
    selftest.run(results)
    sharing.run(results)
    with Shown("testbed: tests of interruptions"):
        interruptions.run(results)


def bed(results: Results) -> None:
    for pairs in JOBS.map(lambda boot: boot.run(), boots()):
        for test, output in pairs:
            test.judge(results, output)


def lwk(results: Results) -> None:
    """tests/lwk/*: each runs here, in a folder of its own, and starts the lightweight kernel in an emulator."""
    if not check(results, "the lightweight kernel", "scripts/build-lwk"):
        return
    results.check("the core is the same crate, with the same crates beneath it", same_core())
    tests = [test for test in sorted((TOP / "tests" / "lwk").glob("*.sh")) if test.stem != "common"]
    if SOAK:
        tests = [test for test in tests if has_long_form(test)]
    for test, output in zip(tests, JOBS.map(run_lwk, tests)):
        judge_lwk(results, test.stem, output)


def same_core() -> bool:
    tree = ("cargo", "tree", "--quiet", "--locked", "--package=palacios_core", "--edges=normal", "--prefix=none")
    outputs = [run("lwk-tree", *tree, "--manifest-path", TOP / "host_lwk/Cargo.toml"), run("core-tree", *tree)]
    names = [sorted({line.text.split()[0] for line in each.lines if line.text}) for each in outputs]
    return all(each.status == 0 for each in outputs) and names[0] == names[1] and len(names[0]) > 4


def run_lwk(test: Path) -> Output:
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        return run(f"lwk-{test.stem}", "bash", test, cwd=Path(folder), env={"TOP": str(TOP)})


def judge_lwk(results: Results, name: str, output: Output) -> None:
    before, failed = len(results.tests), len(results.names("failed"))
    if not results.read_tap(output.lines) or output.status != 0:
        results.fail(f"{name}: status {output.status}", output.seconds)
    if len(results.names("failed")) > failed:
        output.show_end()
    print(f"    lwk {name}: {len(results.tests) - before} tests in {output.seconds:.0f} s", flush=True)


def docs(results: Results) -> None:
    output = as_job(run, "docs", "scripts/docs-check")
    if not results.read_tap(output.lines) or (output.status != 0 and not results.names("failed")):
        results.fail("scripts/docs-check")


def fuzz(results: Results) -> None:
    """Each target for SOAK_SECONDS under libFuzzer."""
    seconds = os.environ.get("SOAK_SECONDS") or "3600"
    targets = run("fuzz-list", "scripts/fuzz", "--list").text.split()
    for target, output in zip(targets, JOBS.map(lambda target: run(f"fuzz-{target}", "scripts/fuzz", seconds, target), targets)):
        judge(results, target, output)


def slow(results: Results) -> None:
    """Their short forms: slow is long enough."""
    check(results, "cargo tests, slowly", "scripts/slow", env={"V3VEE_SOAK": ""})


ROOT = Stage("root", "the host root, and the guests' kernels", root, implied=True)
DEBUG = Stage("debug", "the debug kernel", debug, after=("root",), implied=True)
TOOLS = Stage("tools", "the v3 command", tools, implied=True)
GUESTS = Stage("guests", "the guests", guests, after=("root",), implied=True)
MODULES = Stage("modules", "v3vee.ko, with no warning from objtool or modpost", modules, after=("root", "debug"), implied=True)
MADE = ("root", "debug", "tools", "guests", "modules")

# In the order in which their commands go first: what others need, then what is one command after the other.
TEST = [
    ROOT,
    DEBUG,
    MODULES,
    TOOLS,
    GUESTS,
    # The next two and the documentation build into the same folder, and use what is there.
    Stage("cargo", "unit, property and conformance tests of the core and the tools; the fuzz targets, shortly", cargo),
    Stage("style", "formatting, lints, licences, layers", style, after=("cargo",)),
    Stage("docs", "every shell block of the documentation", docs, after=(*MADE, "style")),
    Stage("targets", "the core alone, for a bare target and for wasm32", targets, after=("root",)),
    Stage("lwk", "the lightweight kernel, and the guests on it", lwk, after=(*MADE, "targets")),
    Stage("testbed", "the test bed tells good from bad", testbed, after=MADE),
    Stage("oracle", "the test kernels, judged by a machine without our VMM", oracle.run, after=("guests",)),
    Stage("bed", "tests inside the emulated hosts, on the stock and the debug kernel", bed, after=MADE),
]

SOAK_STAGES = [
    ROOT,
    DEBUG,
    MODULES,
    TOOLS,
    GUESTS,
    Stage("fuzz", "the fuzz targets under libFuzzer, for an hour each or for SECONDS=…", fuzz),
    Stage("cargo", "the long forms of cargo tests", cargo),
    Stage("slow", "cargo tests ten times side by side, each on a tenth of a CPU", slow, after=("cargo",)),
    Stage("lwk", "the long forms of the tests of the lightweight kernel", lwk, after=MADE),
    Stage("bed", "the long forms of the tests inside emulated hosts", bed, after=MADE),
]
