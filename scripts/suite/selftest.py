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
import sys
import tempfile
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bed.cache import TOP
from bed.steps import Shown

from .jobs import JOBS
from .results import Results

SPLAT, TIMEOUT, BROKEN = 200, 201, 202
TESTBED = [str(TOP / "scripts/testbed"), "run"]


def bed(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([*TESTBED, *words], stdin=subprocess.DEVNULL, capture_output=True, cwd=TOP, check=False)


def run(results: Results) -> None:
    tests = (statuses, words_as_they_are, output_is_not_changed, files, splats, before_insmod, timeout, host_goes_down, expected_end, debug_kernel,
             instruction_clock, two_at_once, terminal, a_users_bed, a_users_guest, kernel_and_its_status, files_of_one_name, names_that_are_wrong,
             guest_without_end, no_guest_at_all, debugger, bochs_output_and_status, bochs_sees_what_goes_wrong, bootstrap_is_quick, bootstrap_keeps_apt_to_itself,
             long_steps_speak, lines_are_not_mixed, a_long_boot_speaks)
    for test, (good, seen, seconds) in zip(tests, JOBS.map(timed, tests)):
        results.check(test.__name__.replace("_", " "), good, seconds)
        if not good:
            print(f"      saw: {seen}")


def timed(test) -> tuple:
    """What the test says, and the seconds it took."""
    start = time.monotonic()
    with Shown(f"testbed: {test.__name__.replace('_', ' ')}"):
        return *test(), time.monotonic() - start


def statuses():
    done = bed("--", "lsmod | grep -q v3vee && exit 7")
    return done.returncode == 7, done


def words_as_they_are():
    done = bed("--no-module", "--", "printf", "%s|", "a b", "$HOME", "it's", "*")
    return (done.returncode, done.stdout) == (0, b"a b|$HOME|it's|*|"), done


def output_is_not_changed():
    """Many lines, and every byte value."""
    done = bed("--no-module", "--", lines_and_bytes(20000))
    return done.stdout == lines_of(20000), (done.returncode, len(done.stdout), done.stdout[-300:])


def lines_and_bytes(lines: int) -> str:
    return f"seq {lines}; i=0; while [ $i -lt 256 ]; do printf \"\\\\$(printf %o $i)\"; i=$((i+1)); done"


def lines_of(lines: int) -> bytes:
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
    # Each key only when what it is for is there: an answer of `cat` shows that it is.
    keys = ((b"# ", b"stty size; cat\r"), (b"33 111", b"here\r"), (b"here\r\nhere", b"\x03"), (b"# ", b"exit 5\r"))
    status, seen = typed([*TESTBED, "--no-module", "--", "sh"], keys)
    return status == 5, seen


def a_users_bed():
    """`make bed` says where one is, has a guest to run, and how to leave; leaving is no failure."""
    keys = ((b"To leave: exit", b""), (b"host:~# ", b"cat selftest.py | wc -l\r"), (b"\r\n%d\r\n" % len(Path(__file__).read_bytes().splitlines()), b""),
            (b"host:~# ", b"v3 run --kernel tmk --append test=cpuid_signature\r"), (b"1 passed", b""), (b"host:~# ", b"ls -l guest.img; exit 3\r"))
    status, seen = typed([str(TOP / "scripts/run-bed"), "--add", __file__], keys)
    escaped, more = typed([str(TOP / "scripts/run-bed")], ((b"host:~# ", b"poweroff\r"),))
    return status == 0 and b" guest.img\r\n" in seen and escaped == 0 and b"the emulated host is gone" in seen and b"host is gone" in more, seen + more


def a_users_guest():
    """`make run` with a terminal is the guest's shell."""
    status, seen = typed([str(TOP / "scripts/run")], ((b"Ctrl-] q stops the guest", b""), (b"~ # ", b"echo a$((40 + 2))b; poweroff\r")))
    return status == 0 and b"a42b" in seen and b"the guest switched itself off" in seen, seen


def user_run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([TOP / "scripts/run", *words], stdin=subprocess.DEVNULL, capture_output=True, cwd=TOP, check=False)


def kernel_and_its_status():
    """The status is the guest's, and is said in words; a file that an option names is brought along."""
    done = user_run("--image", "build/guests/tmk/tmk", "--", "--module", f"{__file__}=words", "--append", "test=cpuid_signature")
    output = b"exit status 1: the guest ended itself by writing 0 to the test-exit port"
    return done.returncode == 1 and b"ok cpuid_signature" in done.stdout and output in done.stderr, done


def files_of_one_name():
    """Each gets there."""
    with tempfile.TemporaryDirectory() as folder:
        modules = [Path(folder) / name / "tmk" for name in "ab"]
        for module in modules:
            module.parent.mkdir()
            module.write_text("words")
        options = [word for module in modules for word in ("--module", f"{module}=words")]
        done = user_run("--image", "build/guests/tmk/tmk", "--", *options, "--append", "test=cpuid_signature")
    return b"--module 1-tmk=words --module 2-tmk=words" in done.stdout and b"ok cpuid_signature" in done.stdout, done


def names_that_are_wrong():
    """`make tmk` and `make bed` refuse at once what is not there; a list of tests needs nothing but their sources."""
    def user(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([TOP / "scripts" / words[0], *words[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=TOP, check=False)

    wrong = {("tmk", "cpuid_signatur"): "tmk: no test is named cpuid_signatur; is it cpuid_signature? `make tmk TEST=list` lists all\n",
             ("tmk", "cpuid_signature,zzz"): "tmk: no test is named zzz. `make tmk TEST=list` lists all\n",
             ("tmk", "cpuid_signature zzz a=1"): "tmk: no test is named zzz. `make tmk TEST=list` lists all\n",
             ("tmk", "cpuid_signature,all"): "tmk: all stands for many tests: no other name goes with it\n",
             ("tmk", "several"): "tmk: several needs several virtual CPUs: add CPUS=2 or more\n",
             ("tmk", "cpuid_signature", "--cpus", "65"): "v3: --cpus: a machine has 1 to 64 virtual CPUs\n",
             ("test", "styl", "cargo"): "test: error: no stage is named styl; `scripts/test --list` lists them\n",
             ("run-bed", "--add", "nowhere"): "run-bed: nowhere: there is no such file to add\n"}
    listed, runs = user("tmk", "list"), {words: user(*words) for words in wrong}
    good = all(run.returncode != 0 and run.stderr.endswith(wrong[words]) and "boot" not in run.stderr for words, run in runs.items())
    return good and "test ours cpuid_signature\n" in listed.stdout and listed.stderr == "", (listed, runs)


def guest_without_end():
    """It is stopped for its silence, or when its time is up. How long it may be silent was said before. The silence of the host's command ends a
    run, too."""
    with tempfile.TemporaryDirectory() as folder:
        definition = Path(folder) / "spin.toml"
        definition.write_text(f"memory = '64M'\nkernel = '{TOP}/build/guests/tmk/tmk'\ncmdline = 'test=spin_without_interrupts'\n")
        runs = [user_run("--image", str(definition), *words) for words in (("--", "--silence", "3"), ("--limit", "3"))]
    good = all(run.returncode == 124 and b"spinning" in run.stdout and b"and the guest was stopped" in run.stderr for run in runs)
    host = bed("--no-module", "--silence", "20", "--", "echo here; sleep 1000")
    return good and host.returncode == TIMEOUT and b"silent for 20 s" in host.stderr, (runs, host)


def no_guest_at_all():
    """A file of which no guest can be made and a wrong option are named before anything boots, and before a guest is made for them."""
    with tempfile.TemporaryDirectory() as folder:
        definition = Path(folder) / "wrong.toml"
        definition.write_text("memory = '64M'\nkernel = 'nokernel'\n")
        no_kernel = user_run("--image", str(definition))
    told = no_kernel.returncode == 1 and no_kernel.stderr.decode().startswith(f"run: no guest can be made of {definition}:\nv3: {definition}:2: kernel: ")
    tmk = ("--image", "build/guests/tmk/tmk", "--")
    wrong = {("--image", "nowhere"): (1, b"nowhere: there is no such file"),
             ("--image", "README.md"): (1, b"README.md, taken for a guest.toml, as it is a text"),
             ("--image", "build/tools/v3"): (126, b"it is an ELF file without a Multiboot header"),
             (*tmk, "--initrd", "nowhere"): (125, b"nowhere: no such file"),
             ("--", "--initrd", "nowhere"): (125, b"nowhere: no such file"),
             ("--", "--mem", "64"): (126, b"and a kernel needs more to run"),
             ("--", "--help"): (0, b""),
             (*tmk, "--cpus", "65"): (126, b"--cpus: a machine has 1 to 64"),
             ("--limit", "soon"): (1, b"LIMIT=soon: it is a number of seconds"),
             ("--limit", "5", "--", "--timeout", "5"): (1, b"LIMIT=5 and --timeout in ARGS"),
             (*tmk, "--speed", "9"): (125, b"unexpected argument '--speed'")}
    runs = {words: user_run(*words) for words in wrong}
    bochs_run = user_run("--gdb", "--machine", "vtx")
    good = all(run.returncode == wrong[words][0] and wrong[words][1] in run.stderr and b"booting" not in run.stderr
               and b"exit status" not in run.stderr for words, run in runs.items())
    good &= told and b"--cpus <N>" in runs["--", "--help"].stdout
    return good and bochs_run.returncode == 1 and b"Take the machine svm" in bochs_run.stderr, (runs, no_kernel, bochs_run)


def typed(command: list[str], keys: tuple) -> tuple[int | None, bytes]:
    """Runs a command on a terminal; types each of the keys when the text before it was seen. Its status, and all that was seen."""
    pid, keyboard = pty.fork()
    if pid == 0:
        os.chdir(TOP)
        os.execv(command[0], command)
    fcntl.ioctl(keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    # All that was seen, and where in it nothing was looked for yet.
    seen, at = b"", 0
    for text, answer in keys:
        seen = expect(keyboard, text, seen, at)
        if text not in seen[at:]:
            break
        at = seen.index(text, at) + len(text)
        os.write(keyboard, answer)
    seen = expect(keyboard, b"no more than this", seen, at)
    if not ended(pid):
        os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen


def ended(pid: int) -> bool:
    """Whether a child has ended or does so within a minute; its status can still be had."""
    for _ in range(600):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        time.sleep(0.1)
    return False


def expect(keyboard: int, text: bytes, seen: bytes, at: int) -> bytes:
    """All that was seen, when `text` has come behind `at`; a minute of silence or the end of the other side end the wait."""
    while text not in seen[at:] and select.select([keyboard], [], [], 60)[0]:
        try:
            seen += os.read(keyboard, 4096)
        except OSError:
            break
    return seen


def debugger():
    """`make bed GDB=1` waits. The line it prints, pasted as it is, finds a function of the core when a guest runs, and who called it:
    the module, and the host's kernel by name."""
    command = ["make", "bed", "GDB=1", "CMD=v3 run --kernel tmk --append test=cpuid_signature | grep ok"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TOP)
    try:
        said = []
        while not (said and said[-1].startswith(str(TOP / "scripts/in-root"))):
            said.append(process.stderr.readline())
            if not said[-1]:
                return False, "".join(said)
        line = said[-1]
        script = " -batch -ex 'rbreak Vcpu.*::dispatch' -ex continue -ex backtrace -ex delete -ex detach </dev/null"
        gdb = subprocess.run(line.strip() + script, shell=True, capture_output=True, text=True, timeout=120, check=False)
        frames = re.findall(r"^#\d+ +(?:0x\w+ in )?(.*?) ?\(", gdb.stdout, re.MULTILINE)
        named = frames[-3:] == ["kthread", "ret_from_fork", "ret_from_fork_asm"] and any("thread_main" in frame for frame in frames)
        return named and "::dispatch<" in frames[0] and process.wait(60) == 0 and "ok cpuid_signature" in process.stdout.read(), gdb
    finally:
        process.kill()


def bochs(*words: str) -> subprocess.CompletedProcess:
    return bed("--machine", "vtx", "--cpus", "1", "--no-module", *words)


def bochs_output_and_status():
    done = bochs("--", lines_and_bytes(5000) + "; exit 7")
    return (done.returncode, done.stdout) == (7, lines_of(5000)), (done.returncode, len(done.stdout), done.stderr)


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


def bootstrap_keeps_apt_to_itself():
    """A package that is missing is installed; what apt prints goes to a log, and is shown if it fails."""
    quiet, loud = (with_apt(ending) for ending in ("exit 0", "exit 100"))
    noise = b"(Reading database ..."
    good = quiet.returncode == 0 and b"==> installing packages, about a minute: acpica-tools" in quiet.stderr and noise not in quiet.stderr
    return good and loud.returncode == 1 and noise in loud.stderr and b"the whole log: " in loud.stderr, (quiet, loud)


def with_apt(ending: str) -> subprocess.CompletedProcess:
    """scripts/bootstrap where one program is missing and apt-get ends so."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("apt-get", "sudo"):
            program = Path(folder) / name
            program.write_text(f'#!/bin/bash\necho "(Reading database ... 5%" "$@"\n{ending}\n' if name == "apt-get" else '#!/bin/bash\n"$@"\n')
            program.chmod(0o755)
        for program in (path for place in os.get_exec_path() for path in Path(place).glob("*")):
            link = Path(folder) / program.name
            if program.name != "iasl" and not link.exists() and not link.is_symlink():
                link.symlink_to(program)
        env = {**os.environ, "PATH": folder, "XDG_CACHE_HOME": folder}
        return subprocess.run([TOP / "scripts/bootstrap", "packages"], env=env, capture_output=True, check=False)


def long_steps_speak():
    """A short step is silent, a long one says what it does and how long, one that fails shows the end of its log."""
    with tempfile.TemporaryDirectory() as folder:
        def step(*command: str) -> str:
            words = [TOP / "scripts/step", f"{folder}/log", "building it", "about a second", *command]
            return subprocess.run(words, capture_output=True, text=True, check=False).stderr

        short, long, failed = step("echo", "noise"), step("sh", "-c", "echo noise; sleep 3"), step("sh", "-c", "echo why; exit 3")
    # On a slow machine it says more than once that it is alive.
    spoken = re.fullmatch(r"==> building it, about a second …\n( +\d+ s  building it.*\n)*==> building it: done in \d+ s\n", long)
    return short == "" and spoken is not None and "    why\n" in failed and "failed with status 3. The whole log: " in failed, (short, long, failed)


def lines_are_not_mixed():
    """Of steps side by side, in threads that take turns all the time."""
    program = """
import sys, threading
sys.setswitchinterval(1e-6)
from bed import steps
speakers = [threading.Thread(target=lambda: [steps.say("building it, about a minute …") for _ in range(2000)]) for _ in range(2)]
for act in (threading.Thread.start, threading.Thread.join):
    for speaker in speakers:
        act(speaker)
"""
    done = subprocess.run([sys.executable, "-B", "-c", program], capture_output=True, text=True, cwd=TOP / "scripts", check=False)
    return done.stderr == "==> building it, about a minute …\n" * 4000, (done.returncode, done.stderr[:500])


def a_long_boot_speaks():
    """If asked to, and so does a command that is silent. Every boot is a long one where nothing may be silent, and each of its signs of life
    comes at once."""
    impatient = "from bed import steps; steps.QUIET_S = 0; steps.HEARTBEAT_S = 0.1"
    program = f"import runpy, sys; sys.path.insert(0, 'scripts'); {impatient}; runpy.run_path('scripts/testbed', run_name='__main__')"
    words = ("run", "--no-module", "--say", "begins", "--", "sleep 2; echo here")
    spoken, silent = (subprocess.run([sys.executable, "-B", "-c", program, *words[:1], *option, *words[1:]], stdin=subprocess.DEVNULL,
                                     capture_output=True, text=True, cwd=TOP, check=False) for option in (["--announce"], []))
    said = re.fullmatch(r"==> booting the emulated host, AMD SVM in QEMU, about 5 seconds …\n"
                        r"( +\d+ s  booting the emulated host.*\n)+==> booting the emulated host: done in \d+ s\n"
                        r"( +\d+ s  waiting for output\n)+", spoken.stderr)
    return said is not None and spoken.stdout == "begins\nhere\n" and silent.stderr == "", (spoken, silent)
