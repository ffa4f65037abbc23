# SPDX-License-Identifier: MIT OR Apache-2.0
"""The emulated host: QEMU's command line and process."""

import ctypes
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Boot faster: no probing and calibrating of what an emulator has anyway. `panic=-1` and -no-reboot end a dead host at once.
BOOT_OPTIONS = [
    "console=ttyS0,115200", "quiet", "panic=-1", "rdinit=/init", "8250.nr_uarts=4", "mitigations=off", "tsc=reliable",
    "no_timer_check", "cryptomgr.notests", "audit=0", "rcupdate.rcu_expedited=1", "random.trust_cpu=on",
]


@dataclass
class Shape:
    """What the emulated host is made of."""

    cpus: int = 2
    memory_mib: int = 2048
    icount: bool = False
    gdb_port: int | None = None
    use_cpu_0: bool = False

    def aside(self) -> int:
        """How many CPUs run no guest. QEMU 11 clears a flag of its first CPU whenever another CPU restores floating-point state,
        and does so without a lock: the first CPU now and then loses a change of GIF or of nested paging at that moment. So
        where there are others, it gets nothing to do."""
        return 0 if self.icount or self.cpus == 1 or self.use_cpu_0 else 1


class Machine:
    """A running emulated host, and the near ends of its serial ports."""

    PORTS = ("kernel", "command", "control", "monitor")

    def __init__(self, root: Path, image: Path, initramfs: bytes, shape: Shape) -> None:
        self.ports: dict[str, socket.socket] = {}
        far_ends = {}
        for name in self.PORTS:
            self.ports[name], far_ends[name] = socket.socketpair()
        archive = os.memfd_create("initramfs")
        with open(archive, "wb", closefd=False) as file:
            file.write(initramfs)
        command = qemu(root) + machine(shape) + boot(image, f"/proc/self/fd/{archive}", shape)
        for name, end in far_ends.items():
            command += ["-chardev", f"socket,id={name},fd={end.fileno()}"]
        for name in self.PORTS[:3]:
            command += ["-serial", f"chardev:{name}"]
        command += ["-monitor", "chardev:monitor"]
        handed = [archive, *(end.fileno() for end in far_ends.values())]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=handed, start_new_session=True,
                                        preexec_fn=die_with_parent)
        for end in far_ends.values():
            end.close()
        os.close(archive)

    def monitor(self, line: str) -> None:
        self.ports["monitor"].sendall(line.encode() + b"\n")

    def ended(self) -> str:
        """How the emulator ended: a host that resets or switches itself off gives 0."""
        try:
            status = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "QEMU still runs"
        return f"QEMU: signal {-status}" if status < 0 else f"QEMU: status {status}"

    def stop(self) -> None:
        """Takes the power away."""
        self.process.kill()
        self.process.wait()
        for port in self.ports.values():
            port.close()


def die_with_parent() -> None:
    """In the new process: however we end, no emulated host stays behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def qemu(root: Path) -> list[str]:
    """The root's QEMU with the root's libraries: it needs no privilege, and nothing of this machine."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = [root / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", libraries, root / "usr/bin/qemu-system-x86_64"]
    return [str(part) for part in loader] + ["-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")]


def machine(shape: Shape) -> list[str]:
    options = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-cpu", "max"]
    options += ["-machine", "q35,hpet=off,sata=off,smbus=off", "-m", str(shape.memory_mib)]
    if shape.icount:
        options += ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]
    else:
        options += ["-accel", "tcg,thread=multi", "-smp", str(shape.cpus + shape.aside())]
    if shape.gdb_port is not None:
        options += ["-gdb", f"tcp:127.0.0.1:{shape.gdb_port}"]
    return options


def boot(image: Path, initramfs: str, shape: Shape) -> list[str]:
    line = BOOT_OPTIONS + (["nokaslr"] if shape.gdb_port is not None else []) + (["isolcpus=0"] if shape.aside() else [])
    return ["-kernel", str(image), "-initrd", initramfs, "-append", " ".join(line)]
