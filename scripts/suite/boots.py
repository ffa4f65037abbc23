# SPDX-License-Identifier: MIT OR Apache-2.0
"""tests/bed/*: scripts that run inside emulated hosts, several in one boot where they want the same host.

A test's header says what it wants: `# bed: OPTIONS` of scripts/testbed; `# bed WHERE,WHERE: OPTIONS` only there, where WHERE is a machine,
or `test` or `soak`, which are the two programs that run it. `--machines` and `--kernel` name the hosts.
"""

import re
import secrets
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from bed import splats
from bed.cache import TOP
from bed.session import BROKEN, SPLAT

from .commands import LOGS, SOAK, Line, Output, run
from .results import Results, allowed_skips

KERNELS = ("stock", "debug")
# What a test may take unless it says so. One that may take longer than the second has a boot of its own.
USUAL_S, SHORT_S = 300, 600
# It ends the host, or watches how it goes on.
OWN_BOOT = ("--goes-down", "--with-kernel", "--icount")
DRIVER = Path(__file__).parent / "boot.sh"
# What tests share: `. ./common.sh`.
COMMON = TOP / "tests/bed/common.sh"


@dataclass
class BedTest:
    """One test on one kind of emulated host."""

    path: Path
    machine: str
    kernel: str
    # Of its boot; what it adds to the boot's files; whether v3vee.ko is to be there.
    options: list[str]
    add: list[str]
    module: bool
    timeout_s: float

    @property
    def name(self) -> str:
        return self.path.stem

    def where(self) -> str:
        return f" [{self.kernel}]" if self.machine == "svm" else f" [{self.machine} {self.kernel}]"

    def alone(self) -> bool:
        return self.timeout_s > SHORT_S or any(option in self.options for option in OWN_BOOT)

    def skips(self) -> Path:
        """A file for the test: the names of tests that are not for this machine, one a line."""
        path = LOGS / f"bed-{self.name}-{self.machine}-{self.kernel}.skips"
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [name.removeprefix("bed: ").removesuffix(self.where()) for name in allowed_skips() if name.endswith(self.where())]
        path.write_text("".join(f"{name}\n" for name in sorted(names)))
        return path

    def judge(self, results: Results, output: Output) -> None:
        name, before, failed = f"{self.name}{self.where()}", len(results.tests), len(results.names("failed"))
        begin_s = output.lines[0].at_s if output.lines else 0.0
        count = results.read_tap(output.lines, self.where(), begin_s)
        if re.search(r"^running \d+ tests", output.text, re.MULTILINE):
            count += results.read_cargo(output.lines, suffix=self.where(), threads=1, begin_s=begin_s)
        if output.status != 0:
            results.fail(f"{name}: {'no end within its time' if output.late else f'status {output.status}'}", output.seconds)
        elif count == 0:
            results.ok(name, output.seconds)
        if len(results.names("failed")) > failed:
            output.show_end()
        print(f"    bed {name}: {len(results.tests) - before} tests in {output.seconds:.0f} s", flush=True)


def tests_of(path: Path) -> list[BedTest]:
    """On each machine it names, and there on each kernel or the one it names; Bochs is slow, and runs the stock one."""
    machines = taken(options(path, ""), "--machines") or ["svm"]
    tests = []
    for machine in machines[-1].split(","):
        words = options(path, machine)
        taken(words, "--machines")
        kernels = taken(words, "--kernel") or (KERNELS if machine == "svm" else KERNELS[:1])
        add, timeout_s = taken(words, "--add"), float((taken(words, "--timeout") or [USUAL_S])[-1])
        module = "--no-module" not in words
        words = [word for word in words if word != "--no-module"]
        tests += [BedTest(path, machine, kernel, words, add, module, timeout_s) for kernel in kernels]
    return tests


def options(path: Path, machine: str) -> list[str]:
    here = {machine, "soak" if SOAK else "test"}
    lines = re.findall(r"^# bed(?: (\S+))?: (.*)$", path.read_text(), re.MULTILINE)
    return shlex.split(" ".join(words for where, words in lines if not where or here & set(where.split(","))))


def taken(words: list[str], option: str) -> list[str]:
    """The option's values, which are taken out of the words."""
    values = []
    while option in words:
        at = words.index(option)
        values.append(words[at + 1])
        del words[at:at + 2]
    return values


def has_long_form(path: Path) -> bool:
    return re.search(r"V3VEE_SOAK|^(if )?soak\b|^# bed (soak|test)\b", path.read_text(), re.MULTILINE) is not None


@dataclass
class Boot:
    """Tests that run one after the other on one emulated host."""

    tests: list[BedTest]
    log: str
    mark: str = field(default_factory=lambda: f"@@{secrets.token_hex(8)}")

    def run(self) -> list[tuple[BedTest, Output]]:
        if len(self.tests) == 1:
            return [(self.tests[0], self._run_alone(self.tests[0]))]
        output = self._run_shared()
        pieces = self._pieces(output)
        if len(pieces) == len(self.tests):
            return pieces
        # What stands behind a test that spoiled the host, or ended it, gets another.
        return pieces + Boot(self.tests[len(pieces):], f"{self.log}-again").run()

    def _run_alone(self, test: BedTest) -> Output:
        options = [*test.options, "--timeout", f"{test.timeout_s:.0f}", *([] if test.module else ["--no-module"])]
        return self._testbed(options, [f"./{test.path.name}"], lambda _: None, [f"{test.path}", f"{test.skips()}:skips"])

    def _run_shared(self) -> Output:
        files = [f"{DRIVER}"]
        for test in self.tests:
            files += [f"{test.path}", f"{test.skips()}:{test.name}.skips"]
        limits_s = {f"{self.mark} begin {test.name}": test.timeout_s for test in self.tests}
        names = [test.name if test.module else f"{test.name}:no-module" for test in self.tests]
        options = [*self.tests[0].options, "--timeout", "0", "--no-module", "--kernel-log", f"{LOGS / self.log}.kernel"]
        return self._testbed(options, [f"./{DRIVER.name}", self.mark, *names], limits_s.get, files)

    def _testbed(self, options: list[str], command: list[str], allowed_s, files: list[str]) -> Output:
        host = ["--machine", self.tests[0].machine, "--kernel", self.tests[0].kernel]
        files = list(dict.fromkeys([f"{COMMON}", *files, *(file for test in self.tests for file in test.add)]))
        added = [word for file in files for word in ("--add", file)]
        env = ["env", "V3VEE_SOAK=1"] if SOAK else []
        return run(self.log, "scripts/testbed", "run", *host, *options, *added, "--", *env, "sh", *command, allowed_s=allowed_s)

    def _pieces(self, output: Output) -> list[tuple[BedTest, Output]]:
        """What each test printed, up to the first one behind which the host cannot be trusted."""
        spoiled = self._splats()
        pieces = []
        for test in self.tests:
            piece = self._piece(test, output)
            if test.name in spoiled:
                piece.status = SPLAT
                piece.lines += [Line(piece.lines[-1].at_s, text) for text in spoiled[test.name]]
            pieces.append((test, piece))
            if test.name in spoiled or piece.status >= SPLAT or piece.late:
                break
        return pieces

    def _piece(self, test: BedTest, output: Output) -> Output:
        begins = [at for at, line in enumerate(output.lines) if f"{self.mark} begin {test.name}" in line.text]
        if not begins:
            return replace(output, status=output.status or BROKEN, lines=output.lines[-40:] or [Line(0.0, "nothing was heard")])
        lines = output.lines[begins[0]:]
        for at, line in enumerate(lines):
            end = re.search(rf"{self.mark} end {re.escape(test.name)} (\d+)", line.text)
            if end:
                return Output(int(end[1]), lines[:at] + [Line(line.at_s, line.text[:end.start()])], line.at_s - lines[0].at_s)
        return replace(output, status=output.status or BROKEN, lines=lines, seconds=output.seconds - lines[0].at_s)

    def _splats(self) -> dict[str, list[str]]:
        """The test in which the kernel reported a fault first, and what it said."""
        path = LOGS / f"{self.log}.kernel"
        text = path.read_text(errors="replace") if path.exists() else ""
        name, lines = "", [line.rstrip("\r") for line in text.splitlines()]
        for at, line in enumerate(lines):
            begin = re.search(rf"{self.mark} begin (\S+)", line)
            if begin:
                name = begin[1]
            elif name and splats.is_splat(line):
                return {name: lines[at:at + splats.SHOWN_LINES]}
        return {}


def boots() -> list[Boot]:
    """All of them, the longest first, so that no long one is left for the end."""
    paths = [path for path in sorted((TOP / "tests/bed").glob("*.sh")) if path != COMMON and (not SOAK or has_long_form(path))]
    groups: dict[tuple, list[BedTest]] = {}
    for test in (test for path in paths for test in tests_of(path)):
        key = (test.machine, test.kernel, test.name if test.alone() else "", *test.options)
        groups.setdefault(key, []).append(test)
    longest_first = sorted(groups.values(), key=lambda tests: -sum(test.timeout_s for test in tests))
    return [Boot(tests, f"bed-{tests[0].name}{'-and-more' if len(tests) > 1 else ''}-{tests[0].machine}-{tests[0].kernel}")
            for tests in longest_first]
