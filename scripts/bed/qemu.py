# SPDX-License-Identifier: MIT OR Apache-2.0
"""QEMU: an AMD processor with SVM. Its command line and process."""

import os
import socket
from pathlib import Path

from .machine import BOOT_OPTIONS, Machine, Shape, in_memory, rooted

# Loops of a delay, enough for 5 GHz, so that no CPU has to measure its own. Too many are only slow, and no driver here waits so.
LOOPS = "lpj=20000000"


class Qemu(Machine):
    NAME = "QEMU"

    def __init__(self, root: Path, image: Path, initramfs: bytes | None, shape: Shape) -> None:
        near, far = {}, {}
        for name in (*self.SERIAL, "monitor"):
            near[name], far[name] = socket.socketpair()
        archive = in_memory("initramfs", initramfs or b"")
        command = qemu(root) + machine(shape) + (disk(image, shape) if initramfs is None else boot(image, f"/proc/self/fd/{archive}", shape))
        for name, end in far.items():
            command += ["-chardev", f"socket,id={name},fd={end.fileno()}"]
        for name in self.SERIAL:
            command += ["-serial", f"chardev:{name}"]
        command += ["-monitor", "chardev:monitor"]
        super().__init__(command, [archive, *(end.fileno() for end in far.values())])
        self.ports = near
        for end in far.values():
            end.close()
        os.close(archive)

    def monitor(self, line: str) -> None:
        self.ports["monitor"].sendall(line.encode() + b"\n")


def aside(shape: Shape) -> int:
    """How many CPUs run no guest. QEMU 11 clears a flag of its first CPU whenever another CPU restores floating-point state,
    and does so without a lock: the first CPU now and then loses a change of GIF or of nested paging at that moment. So
    where there are others, it gets nothing to do."""
    return 0 if shape.icount or shape.cpus == 1 or shape.use_cpu_0 else 1


def qemu(root: Path) -> list[str]:
    return [*rooted(root, "qemu-system-x86_64"), "-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")]


def plain_pc(root: Path) -> list[str]:
    """A PC for a test kernel, without our VMM: QEMU's status is twice what the kernel wrote to its exit port, and 1."""
    return [*qemu(root), "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-accel", "tcg", "-m", "256",
            "-cpu", "max,svm=off,pmu=off", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device", "pc-testdev"]


def machine(shape: Shape) -> list[str]:
    # A host that resets or switches itself off ends QEMU, with status 0.
    options = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-cpu", shape.cpu]
    options += ["-machine", "q35,hpet=off,sata=off,smbus=off", "-m", str(shape.memory_mib)]
    if shape.icount:
        options += ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]
    else:
        options += ["-accel", "tcg,thread=multi", "-smp", str(shape.cpus + aside(shape))]
    if shape.plugin:
        options += ["-plugin", f"file={shape.plugin}"]
    if shape.gdb_port is not None:
        options += ["-gdb", f"tcp:127.0.0.1:{shape.gdb_port}"]
    return options


def boot(image: Path, initramfs: str, shape: Shape) -> list[str]:
    line = BOOT_OPTIONS + [LOOPS] + (["nokaslr"] if shape.gdb_port is not None else []) + (["isolcpus=0"] if aside(shape) else []) + shape.append
    return ["-kernel", str(image), "-initrd", initramfs, "-append", " ".join(line)]


def disk(image: Path, shape: Shape) -> list[str]:
    # For a debugger nothing has run yet: it lets the machine go.
    return ["-drive", f"file={image},if=virtio,format=raw,readonly=on", *(["-S"] if shape.gdb_port is not None else [])]
