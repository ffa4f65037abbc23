# SPDX-License-Identifier: MIT OR Apache-2.0
"""The emulated hosts: what they have in common, and which there are."""

import ctypes
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .cache import Failure

# Boot faster: no probing and calibrating of what an emulator has anyway. `panic=-1` ends a dead host at once.
BOOT_OPTIONS = [
    "console=ttyS0,115200", "quiet", "panic=-1", "rdinit=/init", "8250.nr_uarts=4", "mitigations=off", "tsc=reliable",
    "no_timer_check", "cryptomgr.notests", "audit=0", "rcupdate.rcu_expedited=1", "random.trust_cpu=on",
]
# --machine → the emulator, and its processor.
KINDS = {"svm": ("qemu", "max"), "svm-bochs": ("bochs", "ryzen"), "vtx": ("bochs", "corei7_sandy_bridge_2600k")}
IN_WORDS = {"svm": "AMD SVM in QEMU", "svm-bochs": "AMD SVM in Bochs", "vtx": "Intel VT-x in Bochs"}


def usual_cpus(kind: str) -> int:
    """How many CPUs a host of this kind has unless told otherwise: in Bochs one, as two lose a guest's RIP."""
    return 1 if KINDS[kind][0] == "bochs" else 2


@dataclass
class Shape:
    """What the emulated host is made of."""

    kind: str = "svm"
    cpus: int = 2
    memory_mib: int = 2048
    icount: bool = False
    plugin: str | None = None  # of QEMU's, with its arguments
    append: list[str] = field(default_factory=list)  # to the kernel's command line
    gdb_port: int | None = None
    use_cpu_0: bool = False
    model: str | None = None  # another processor than the machine's own
    terminal: bool = False
    emulator_log: BinaryIO | None = None

    @property
    def emulator(self) -> str:
        return KINDS[self.kind][0]

    def in_words(self) -> str:
        """What it is, and how long its boot takes."""
        return f"{IN_WORDS[self.kind]}, about {5 if self.emulator == 'qemu' else 15} seconds"

    @property
    def cpu(self) -> str:
        return self.model or KINDS[self.kind][1]


class Machine:
    """A running emulated host, and the near ends of its wires: `kernel`, `command` and `control` are serial ports."""

    SERIAL = ("kernel", "command", "control")
    NAME = ""

    def __init__(self, command: list[str], handed: list[int], output: int | None = None, env: dict[str, str] | None = None) -> None:
        self.ports: dict = {}
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=handed,
                                        start_new_session=True, preexec_fn=die_with_parent, env=env)

    def monitor(self, line: str) -> None:
        raise Failure(f"{self.NAME} takes no commands while it runs")

    def heard(self, data: bytes) -> None:
        """What came on a wire that is the emulator's own."""

    def ended(self) -> str:
        """How the emulator ended."""
        try:
            status = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return f"{self.NAME} still runs"
        return f"{self.NAME}: signal {-status}" if status < 0 else f"{self.NAME}: status {status}"

    def power_off(self) -> None:
        """What is on the wires can still be read, up to their ends."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.power_off()
        for port in self.ports.values():
            port.close()


def start(root: Path, image: Path, initramfs: bytes | None, shape: Shape) -> Machine:
    """Starts a Linux kernel with an initramfs; or, without one, from `image`, a disk."""
    # Here, as both build on this file.
    from .bochs import Bochs
    from .qemu import Qemu

    return {"qemu": Qemu, "bochs": Bochs}[shape.emulator](root, image, initramfs, shape)


def die_with_parent() -> None:
    """In the new process: however we end, no emulated host stays behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def rooted(root: Path, program: str) -> list[str]:
    """A program of the root with the root's libraries: it needs no privilege, and nothing of this machine."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    paths = f"{libraries}:{libraries}/pulseaudio"
    return [str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", paths, str(root / "usr/bin" / program)]


def in_memory(name: str, data: bytes) -> int:
    """A file without a place; its name for a process that inherits it is /proc/self/fd/NUMBER."""
    number = os.memfd_create(name)
    with open(number, "wb", closefd=False) as file:
        file.write(data)
    return number
