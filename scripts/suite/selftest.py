# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tests of the test bed: it must pass on what is good, and see what is bad."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bed.cache import TOP

from .places import PLACES
from .results import Results

SPLAT, TIMEOUT, BROKEN = 200, 201, 202
TESTBED = [str(TOP / "scripts/testbed"), "run"]


def bed(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([*TESTBED, *words], stdin=subprocess.DEVNULL, capture_output=True, cwd=TOP, check=False)


def run(results: Results) -> None:
    tests = (statuses, words_as_they_are, output_is_not_changed, files, splats, before_insmod, timeout, host_goes_down, expected_end, debug_kernel,
             instruction_clock, two_at_once, terminal, debugger, bochs_output_and_status, bochs_sees_what_goes_wrong, bootstrap_is_quick)
    for test, (good, seen) in zip(tests, PLACES.map(lambda test: test(), tests)):
        results.check(test.__name__.replace("_", " "), good)
        if not good:
            print(f"      saw: {seen}")


def statuses():
    done = bed("--", "lsmod | grep -q v3vee && exit 7")
    return done.returncode == 7, done


def words_as_they_are():
    done = bed("--no-module", "--", "printf", "%s|", "a b", "$HOME", "it's", "*")
    return (done.returncode, done.stdout) == (0, b"a b|$HOME|it's|*|"), done


def output_is_not_changed():
    """Many lines, and every byte value."""
    done = bed("--no-module", "--", lines_and_bytes(20000))
    return done.stdout == told_by(20000), (done.returncode, len(done.stdout), done.stdout[-300:])


def lines_and_bytes(lines: int) -> str:
    return f"seq {lines}; i=0; while [ $i -lt 256 ]; do printf \"\\\\$(printf %o $i)\"; i=$((i+1)); done"


def told_by(lines: int) -> bytes:
    return "".join(f"{i}\n" for i in range(1, lines + 1)).encode() + bytes(range(256))


def files():
    with tempfile.TemporaryDirectory() as folder:
        plain, program = Path(folder) / "plain", Path(folder) / "program"
        plain.write_bytes(bytes(range(256)) * 100)
        program.write_text("#!/bin/sh\ncat plain; cat /etc/elsewhere >&2; pwd | grep -q root\n")
        program.chmod(0o755)
        done = bed("--no-module", "--add", str(plain), "--add", str(program), "--add", f"{plain}:/etc/elsewhere", "--", "./program")
    return (done.returncode, done.stdout) == (0, bytes(range(256)) * 200), (done.returncode, len(done.stdout))


def splats():
    """A warning fails the run and is shown, though the command says that all is well."""
    done = bed("--no-module", "--", "echo 'WARNING: CPU: 0 PID: 1 at somewhere' >/dev/kmsg; exit 0")
    return done.returncode == SPLAT and b"at somewhere" in done.stderr, done


def before_insmod():
    """What the emulated machine itself is blamed for does not count, nor do the command's own words."""
    done = bed("--no-module", "--", "echo 'BUG: only a word on the terminal'")
    return done.returncode == 0, done


def timeout():
    start = time.monotonic()
    done = bed("--no-module", "--timeout", "20", "--", "sleep 1000")
    return done.returncode == TIMEOUT and time.monotonic() - start < 60, done


def host_goes_down():
    done = bed("--no-module", "--", "echo c >/proc/sysrq-trigger")
    return done.returncode == SPLAT and b"Kernel panic" in done.stderr, done


def expected_end():
    """An end that was asked for is none to complain of; a promise that is not kept is, and another fault than the expected one."""
    crash = ("--no-module", "--goes-down", "--expect", "Kernel panic - not syncing: sysrq triggered crash", "--")
    runs = [bed(*crash, "echo c >/proc/sysrq-trigger"), bed(*crash, "reboot -f"), bed(*crash, "exit 0"),
            bed(*crash, "echo 'WARNING: CPU: 0 PID: 1 at elsewhere' >/dev/kmsg; echo c >/proc/sysrq-trigger")]
    return [done.returncode for done in runs] == [0, BROKEN, BROKEN, SPLAT], runs


def debug_kernel():
    done = bed("--kernel", "debug", "--no-module", "--", "[ -e /proc/lockdep ] && [ -e /sys/kernel/debug/kmemleak ] && modprobe kvm-amd && rmmod kvm-amd")
    return done.returncode == 0, done


def instruction_clock():
    """Under --icount the same work takes the same time, run after run."""
    line = "a=$(cut -d' ' -f1 /proc/uptime); i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; nproc"
    done = bed("--no-module", "--icount", "--", line)
    return (done.returncode, done.stdout) == (0, b"1\n"), done


def two_at_once():
    with ThreadPoolExecutor() as pool:
        pair = list(pool.map(lambda n: bed("--", f"echo {n}; exit {n}"), (3, 4)))
    return [(done.returncode, done.stdout) for done in pair] == [(3, b"3\n"), (4, b"4\n")], pair


def terminal():
    """With a terminal, keys arrive as they are typed, Ctrl-C too, and the window's size is known."""
    pid, keyboard = pty.fork()
    if pid == 0:
        os.execv(TESTBED[0], [*TESTBED, "--no-module", "--", "sh"])
    fcntl.ioctl(keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    seen = b""
    try:
        # Each key only when what it is for is there: an answer of `cat` shows that it is.
        for keys, answer in ((b"", b"# "), (b"stty size; cat\r", b"33 111"), (b"here\r", b"here\r\nhere"), (b"\x03", b"# ")):
            os.write(keyboard, keys)
            seen += expect(keyboard, answer)
        os.write(keyboard, b"exit 5\r")
        seen += expect(keyboard, b"no more than this")
    except OSError:
        pass
    if not ended(pid):
        os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5, seen


def ended(pid: int) -> bool:
    """Whether a child has ended or does so within a minute; its status can still be had."""
    for _ in range(600):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        time.sleep(0.1)
    return False


def expect(keyboard: int, text: bytes) -> bytes:
    """What came up to `text`; a minute of silence ends it."""
    seen = b""
    while text not in seen:
        if not select.select([keyboard], [], [], 60)[0]:
            break
        seen += os.read(keyboard, 4096)
    return seen


def debugger():
    """--gdb waits, and the line it prints finds the module's functions."""
    process = subprocess.Popen([*TESTBED, "--gdb", "--", "exit 3"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=TOP)
    try:
        line = next(line for line in process.stderr if "target remote" in line)
        text = re.search(r"v3vee\.ko (0x[0-9a-f]+)", line)[1]
        script = f" -batch -ex 'info symbol {text}' -ex continue </dev/null"
        gdb = subprocess.run(line.strip() + script, shell=True, capture_output=True, text=True, timeout=120, check=False)
        return process.wait(60) == 3 and "in section .text" in gdb.stdout, gdb
    finally:
        process.kill()


def bochs(*words: str) -> subprocess.CompletedProcess:
    return bed("--machine", "vtx", "--cpus", "1", "--no-module", *words)


def bochs_output_and_status():
    done = bochs("--", lines_and_bytes(5000) + "; exit 7")
    return (done.returncode, done.stdout) == (7, told_by(5000)), (done.returncode, len(done.stdout), done.stderr)


def bochs_sees_what_goes_wrong():
    """A warning, a triple fault, a reset that was expected, the time; and what is not for it."""
    words = [("--", "echo 'WARNING: CPU: 0 PID: 1 at somewhere' >/dev/kmsg"),
             ("--", "echo triple >/sys/kernel/reboot/type; reboot -f"),
             ("--goes-down", "--", "reboot -f"),
             ("--timeout", "3", "--", "true"),
             ("--icount", "--", "true")]
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = list(pool.map(lambda run: bochs(*run), words))
    statuses = [done.returncode for done in runs]
    return statuses == [SPLAT, BROKEN, 0, TIMEOUT, BROKEN] and b"exception with no resolution" in runs[1].stderr, runs


def bootstrap_is_quick():
    start = time.monotonic()
    done = subprocess.run([TOP / "scripts/bootstrap"], capture_output=True, check=False)
    took = time.monotonic() - start
    return done.returncode == 0 and took < 3, (done, took)
