# SPDX-License-Identifier: MIT OR Apache-2.0
"""What `make run`, `make bed`, `make tmk` and `make run-lwk` build before they boot: in silence if there is nothing to do."""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from . import hostroot, offspring, steps
from .cache import TOP, Failure
from .debugger import refuse_if_not_qemu
from .machine import KINDS

BUILD = TOP / "build"
LINUX = BUILD / "guests/linux"
TMK = BUILD / "guests/tmk/tmk"
LOOK_EVERY_S = 0.2
PROFILES = ("release", "dev", "debug")
# For a guest that is only looked at. The self-tests of its ciphers would be a fifth of its boot in an emulator, and what it misses in
# our small machine (PCI, machine checks) is no news.
QUICK_BOOT = "cryptomgr.notests loglevel=3"


def parser(program: str, purpose: str) -> argparse.ArgumentParser:
    """With the options that all have which boot a machine for a user."""
    made = argparse.ArgumentParser(prog=program, description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--machine", choices=KINDS, default="svm", help="the hardware, as for scripts/testbed")
    made.add_argument("--gdb", action="store_true", help="stop the machine before a guest starts, and print how to start gdb")
    return made


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    if args.gdb:
        refuse_if_not_qemu(args.machine)
    return args


@dataclass
class Build:
    """A program that builds something. With a title it is shown as a step; without one it says itself what it does."""

    command: list[str]
    title: str = ""
    takes: str = ""

    def run(self) -> None:
        if offspring.ENDING.is_set():
            raise Failure("interrupted")
        command = [str(TOP / self.command[0]), *self.command[1:]]
        if self.title:
            steps.run(self.title, command, BUILD / "logs" / f"{Path(command[0]).name}.log", takes=self.takes)
        elif subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
            raise Failure(f"{self.command[0]} failed, as said above")


def module(kernel: str, profile: str) -> Build:
    return Build(["scripts/build-module", "--kernel", kernel, "--profile", profile], "building v3vee.ko", "about a minute")


TOOLS = Build(["scripts/build-tools"], "building the v3 command", "about a minute, the first time")
LINUX_GUEST = Build(["guests/linux/build"])
TEST_KERNELS = Build(["guests/tmk/build"])
LIGHTWEIGHT_KERNEL = Build(["scripts/build-lwk"])


def build(*queues: list[Build]) -> None:
    """Each queue one after the other, the queues side by side."""
    # Found once, for all that run inside it.
    os.environ.setdefault("V3VEE_ROOT", str(hostroot.ensure("root")))
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(lambda queue: [build.run() for build in queue], queue) for queue in queues]
        try:
            # Not without end: Python handles a signal only when the wait returns, and this one may begin just behind a signal.
            while wait(running, timeout=LOOK_EVERY_S).not_done:
                pass
            for queue in running:
                queue.result()
        except offspring.Interrupted as interrupted:
            # For these the threads wait, and for the threads the pool.
            offspring.end_all(interrupted.which)
            raise


def image(definition: str, out: Path, named: str) -> None:
    """Makes a guest.img of the text of a guest.toml; `named` is what the user calls it."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", dir=BUILD) as file:
        file.write(definition)
        file.flush()
        image_of(Path(file.name), out, named)


def image_of(definition: Path, out: Path, named: str) -> None:
    done = subprocess.run([BUILD / "tools/v3", "build", definition, "-o", out], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"{named}:\n{done.stderr}".rstrip())


def linux_image(out: Path, append: str = "") -> str:
    """Makes the guest.img of a stock Linux, and returns a word that its guest will say, by which its boot is known.

    `append` goes to its command line; guests/linux/init knows `v3.script=`."""
    token = secrets.token_hex(8)
    image(f'''name = "guest"
memory = "512M"
kernel = "{LINUX}/vmlinuz"
initrd = "{LINUX}/initramfs"
cmdline = "console=ttyS0 quiet v3.token={token} {append}"
''', out, "the Linux guest")
    return token


def first_image(out: Path, attended: bool) -> None:
    """The guest.img that a newcomer meets. If nobody attends, it switches itself off when it has said who it is."""
    linux_image(out, QUICK_BOOT if attended else f"{QUICK_BOOT} v3.script=poweroff")


def check(words: list[str]) -> int:
    """Has `v3 run` refuse here, before anything long, what it would refuse on the emulated host. Returns its status."""
    return subprocess.run([BUILD / "tools/v3", "run", "--check", *words], check=False).returncode


def boot(script: str, options: list[str], *words: str) -> int:
    """Runs scripts/testbed or scripts/lwk, and returns its status."""
    # Unlike subprocess.run this leaves it alive when a signal comes: it has a terminal to restore before it ends.
    return subprocess.Popen([sys.executable, "-B", TOP / "scripts" / script, "run", *options, *words]).wait()


def first_words(machine: str) -> str:
    """How long a guest's silence lasts there."""
    return f"a Linux needs about {5 if KINDS[machine][0] == 'qemu' else 40} seconds to its first words"


def is_attended() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
