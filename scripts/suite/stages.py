# SPDX-License-Identifier: MIT OR Apache-2.0
"""What `make test` does, in order: what needs the least first."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bed.cache import TOP

from . import docstest, oracle, selftest
from .places import PLACES
from .results import Results, allowed_skips

BUILD = TOP / "build"
KERNELS = ("stock", "debug")
# What a stage needs of what scripts/bootstrap makes.
ROOT = ("root", "guests")
DEBUG = (*ROOT, "debug")


@dataclass
class Stage:
    name: str
    help: str
    run: Callable[[Results], None]
    needs: tuple[str, ...] = ()
    # May run beside its neighbours that may too: what it runs, it runs in PLACES.
    beside: bool = False


def output(log: str, *command: object, cwd: Path = TOP, env: dict | None = None) -> tuple[int, str]:
    """Runs a command with its output kept in build/test/LOG.log; returns its status and the output."""
    path = BUILD / "test" / f"{log}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        done = subprocess.run([str(word) for word in command], cwd=cwd, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                              env={**os.environ, **(env or {})}, check=False)
    return done.returncode, path.read_text(errors="replace")


def timed(*args, **kwargs) -> tuple[int, str, float]:
    """As `output`, with the seconds it took."""
    start = time.monotonic()
    return *output(*args, **kwargs), time.monotonic() - start


def show_end(text: str, lines: int = 40) -> None:
    print("\n".join("      " + line for line in text.splitlines()[-lines:]), file=sys.stderr)


def check(results: Results, name: str, *command: object, **kwargs) -> bool:
    """One command as one test; its last lines are shown when it fails."""
    status, text = output(f"{results.stage}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}", *command, **kwargs)
    results.check(name, status == 0)
    if status != 0:
        show_end(text, 30)
    return status == 0


def style(results: Results) -> None:
    check(results, "cargo fmt", "cargo", "fmt", "--all", "--check")
    loose = [*TOP.glob("host_linux/main.rs"), *TOP.glob("rust/kernel_alloc/lib.rs"), *TOP.glob("rust/num_traits/lib.rs"),
             *TOP.glob("guests/linux/*.rs"), *TOP.glob("guests/examples/*/rust/main.rs")]
    check(results, "rustfmt of the module and the guests", "rustfmt", "--check", "--edition=2021", *loose)
    check(results, "clippy", "cargo", "clippy", "--quiet", "--workspace", "--all-targets", "--", "-Dwarnings")
    tmk = ("--manifest-path", TOP / "guests/tmk/Cargo.toml")
    check(results, "cargo fmt of the test kernels", "cargo", "fmt", "--check", *tmk)
    check(results, "clippy of the test kernels", "cargo", "clippy", "--quiet", "--locked", *tmk, "--", "-Dwarnings")
    for main in TOP.glob("guests/examples/*/rust/main.rs"):
        check(results, f"clippy of the example {main.parents[1].name}", "clippy-driver", "--edition=2021", "-Cpanic=abort", "-Dwarnings",
              "--emit=metadata", "-o", BUILD / "test/example.rmeta", main)
    check(results, "rustfmt of the lightweight kernel", "cargo", "fmt", "--check", "--manifest-path", TOP / "host_lwk/Cargo.toml")
    check(results, "clippy of the lightweight kernel", "cargo", "clippy", "--quiet", "--locked", f"--target-dir={BUILD}/lwk/clippy",
          "--manifest-path", TOP / "host_lwk/Cargo.toml", "--", "-Dwarnings")
    check(results, "every source file names its licence", TOP / "scripts/check-licences")
    documented(results, "the workspace", "--workspace")
    documented(results, "the core, private items too", "--package=palacios_core", "--document-private-items")
    documented(results, "the test kernels", *tmk)
    documented(results, "the lightweight kernel", f"--target-dir={BUILD}/lwk/clippy", "--manifest-path", TOP / "host_lwk/Cargo.toml")
    check(results, "the book shows tested code", "scripts/docs-check", "--quick")
    docstest.run(results)


def documented(results: Results, name: str, *what: object) -> None:
    """Every public item has words, and their links lead somewhere."""
    check(results, f"cargo doc of {name}", "cargo", "doc", "--quiet", "--locked", "--no-deps", *what, env={"RUSTDOCFLAGS": "-Dwarnings"})


def cargo(results: Results) -> None:
    status, text = output("cargo", "cargo", "test", "--workspace", "--no-fail-fast")
    results.read_cargo(text, elsewhere=("module",))
    if status != 0:
        show_end(text)
        if not results.failed:
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


def modules(results: Results) -> None:
    for kernel in KERNELS:
        check(results, f"v3vee.ko for the {kernel} kernel", "scripts/build-module", "--kernel", kernel)
    check(results, "panics of the core are explained", "scripts/panics", "--check")


def tools(results: Results) -> None:
    check(results, "v3, static", "scripts/build-tools", "--tests")
    status, text = output("tools-ldd", "file", "--brief", "--dereference", BUILD / "tools/v3") if (BUILD / "tools/v3").exists() else (1, "")
    if status == 0:
        results.check("v3 needs no library", "static" in text)


def guests(results: Results) -> None:
    check(results, "Linux guests", "guests/linux/build")
    for build in sorted(TOP.glob("guests/*/build")):
        if build.parent.name != "linux":
            check(results, f"guests/{build.parent.name}", build)


def bed(results: Results) -> None:
    """tests/bed/*: each runs inside the emulated hosts it names, on every kernel it names."""
    runs = [run for test in sorted((TOP / "tests" / "bed").glob("*.sh")) for run in runs_of(test)]
    for run, told in zip(runs, PLACES.map(BedRun.output, runs)):
        run.judge(results, *told)


def runs_of(test: Path) -> list["BedRun"]:
    """On each machine it names, and there on each kernel or the one it names; Bochs is slow, and runs the stock one."""
    machines = taken(options(test, ""), "--machines") or "svm"
    runs = []
    for machine in machines.split(","):
        words = options(test, machine)
        taken(words, "--machines")
        kernel = taken(words, "--kernel")
        kernels = [kernel] if kernel else KERNELS if machine == "svm" else KERNELS[:1]
        runs += [BedRun(test, machine, kernel, words) for kernel in kernels]
    return runs


def options(test: Path, machine: str) -> list[str]:
    """Lines `# bed: OPTIONS`, and `# bed MACHINE,MACHINE: OPTIONS` for these."""
    lines = re.findall(r"^# bed(?: (\S+))?: (.*)$", test.read_text(), re.MULTILINE)
    return shlex.split(" ".join(words for names, words in lines if not names or machine in names.split(",")))


def taken(words: list[str], option: str) -> str | None:
    """The value of an option, which is taken out of the words."""
    if option not in words:
        return None
    at = words.index(option)
    value = words[at + 1]
    del words[at:at + 2]
    return value


@dataclass
class BedRun:
    """One test on one emulated host with one kernel."""

    test: Path
    machine: str
    kernel: str
    options: list[str]

    def where(self) -> str:
        return f" [{self.kernel}]" if self.machine == "svm" else f" [{self.machine} {self.kernel}]"

    def log(self) -> str:
        return f"bed-{self.test.stem}-{self.machine}-{self.kernel}"

    def skips(self) -> Path:
        """A file for the test: the names of tests that are not for this machine, one a line."""
        path = BUILD / "test" / f"{self.log()}.skips"
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [name.removeprefix("bed: ").removesuffix(self.where()) for name in allowed_skips() if name.endswith(self.where())]
        path.write_text("".join(f"{name}\n" for name in sorted(names)))
        return path

    def output(self) -> tuple[int, str, float]:
        """Its status, its output, and the seconds it took."""
        return timed(self.log(), "scripts/testbed", "run", "--machine", self.machine, "--kernel", self.kernel, *self.options,
                     "--add", self.test, "--add", f"{self.skips()}:skips", "--", "sh", f"./{self.test.name}")

    def judge(self, results: Results, status: int, text: str, seconds: float) -> None:
        name = f"{self.test.stem}{self.where()}"
        before, counted = len(results.failed), results.count()
        told = results.read_tap(text, self.where())
        if re.search(r"^running \d+ tests", text, re.MULTILINE):
            results.read_cargo(text, suffix=self.where())
            told = results.count()
        if status != 0:
            results.fail(f"{name}: status {status}")
            show_end(text)
        elif told == 0:
            results.ok(name)
        elif len(results.failed) > before:
            print(f"      the whole output: build/test/{self.log()}.log", file=sys.stderr)
        print(f"    bed {name}: {results.count() - counted} tests in {seconds:.0f} s", flush=True)


def lwk(results: Results) -> None:
    """tests/lwk/*: each runs here, in a folder of its own, and starts the lightweight kernel in an emulator."""
    if not PLACES.submit(check, results, "the lightweight kernel", "scripts/build-lwk").result():
        return
    status, text = output("lwk-tree", "cargo", "tree", "--quiet", "--locked", "--package=palacios_core", "--edges=normal", "--prefix=none",
                          "--manifest-path", TOP / "host_lwk/Cargo.toml")
    theirs = output("core-tree", "cargo", "tree", "--quiet", "--locked", "--package=palacios_core", "--edges=normal", "--prefix=none")[1]
    names = [sorted({line.split()[0] for line in tree.splitlines() if line}) for tree in (text, theirs)]
    results.check("the core is the same crate, with the same crates beneath it", status == 0 and names[0] == names[1] and len(names[0]) > 4)
    tests = [test for test in sorted((TOP / "tests" / "lwk").glob("*.sh")) if test.stem != "common"]
    for test, told in zip(tests, PLACES.map(run_lwk, tests)):
        judge_lwk(results, test.stem, *told)


def run_lwk(test: Path) -> tuple[int, str, float]:
    """Its status, its output, and the seconds it took."""
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        return timed(f"lwk-{test.stem}", "bash", test, cwd=Path(folder), env={"TOP": str(TOP)})


def judge_lwk(results: Results, name: str, status: int, text: str, seconds: float) -> None:
    before, failed = results.count(), len(results.failed)
    if not results.read_tap(text) or status != 0:
        results.fail(f"{name}: status {status}")
    if len(results.failed) > failed:
        show_end(text)
    print(f"    lwk {name}: {results.count() - before} tests in {seconds:.0f} s", flush=True)


def fuzz(results: Results) -> None:
    """Each fuzz target for a few seconds; `make fuzz` runs them for long."""
    status, text = output("fuzz-list", "cargo", "+nightly", "fuzz", "list", cwd=TOP / "palacios_core")
    if status != 0:
        results.skip("fuzz targets")
        return
    for target in text.split():
        check(results, target, "scripts/fuzz", "10", target)


def docs(results: Results) -> None:
    status, text = PLACES.submit(output, "docs", "scripts/docs-check").result()
    if not results.read_tap(text) or (status != 0 and not results.failed):
        results.fail("scripts/docs-check")


ALL = [
    Stage("style", "formatting, lints, licences", style),
    Stage("cargo", "unit, property and conformance tests of the core and the tools", cargo),
    Stage("tools", "the v3 command", tools),
    Stage("fuzz", "the fuzz targets, shortly", fuzz),
    Stage("targets", "the core alone, for a bare target and for wasm32", targets, ROOT),
    Stage("guests", "the guests", guests, ROOT),
    Stage("oracle", "the test kernels, judged by a machine without our VMM", oracle.run, ROOT),
    Stage("modules", "v3vee.ko, with no warning from objtool or modpost", modules, DEBUG),
    Stage("docs", "every shell block of the documentation", docs, ROOT, beside=True),
    Stage("lwk", "the lightweight kernel, and the guests on it", lwk, ROOT, beside=True),
    Stage("testbed", "the test bed tells good from bad", selftest.run, DEBUG, beside=True),
    Stage("bed", "tests inside the emulated hosts, on the stock and the debug kernel", bed, DEBUG, beside=True),
]
