# SPDX-License-Identifier: MIT OR Apache-2.0
"""A test of shared boots: each test is judged by itself, and one that spoils the host, ends it or hangs hides no other."""

import tempfile
from pathlib import Path

from bed.session import SPLAT

from .boots import BedTest, Boot
from .jobs import JOBS
from .results import Results

# In this order; the status of each.
SCRIPTS = {
    "good": ("echo ok good", 0),
    "fails": ("echo not ok fails; exit 3", 3),
    "leaves": ("v3 run --kernel nothing; [ -e /sys/module/v3vee ] && ls v3vee.ko skips", 0),
    "warns": ("echo ok warns; echo 'WARNING: CPU: 0 PID: 1 at somewhere' >/dev/kmsg", SPLAT),
    "follows": ("! dmesg | grep somewhere", 0),
    "crashes": ("echo ok crashes; echo c >/proc/sysrq-trigger; sleep 1000", SPLAT),
    "lives": ("echo ok lives", 0),
    "hangs": ("echo ok hangs; sleep 1000", None),
    "last": ("echo ok last", 0),
}
# More than any of them takes, but for the one that hangs.
ALLOWED_S, HANGS_S = 120, 5


def run(results: Results) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tests = [written(Path(folder), name, script) for name, (script, _) in SCRIPTS.items()]
        outputs = JOBS.submit(Boot(tests, "testbed-sharing").run).result()
    results.check("all tests of a shared boot are reported, in their order", [test.name for test, _ in outputs] == list(SCRIPTS))
    for test, its in outputs:
        status = SCRIPTS[test.name][1]
        good = its.late if status is None else its.status == status and not its.late
        own_words = "ok" not in SCRIPTS[test.name][0] or f"ok {test.name}" in its.text
        others = [name for name in SCRIPTS if name != test.name and f"ok {name}" in its.text]
        results.check(f"a test in a shared boot: {test.name}", good and own_words and not others, its.seconds)
        if not (good and own_words and not others):
            print(f"      saw: {its}")


def written(folder: Path, name: str, script: str) -> BedTest:
    path = folder / f"{name}.sh"
    path.write_text(f"{script}\n")
    return BedTest(path, "svm", "stock", [], [], True, HANGS_S if name == "hangs" else ALLOWED_S)
