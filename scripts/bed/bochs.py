# SPDX-License-Identifier: MIT OR Apache-2.0
"""Bochs: Intel processors with VT-x, and AMD's with SVM, nested paging and nRIP. Its configuration and process."""

import os
import re
import select
import socket
import time
from pathlib import Path

from .boot_disk import disk, whole_cylinders
from .cache import Failure
from .machine import BOOT_OPTIONS, Machine, Shape, in_memory, rooted

# Instructions in a second of the emulated clock. Bochs does about twice as many: with a terminal its clock is the wall's.
IPS = 50_000_000
IPS_WITH_TERMINAL = 100_000_000
MOST_CPUS = 2
MOST_MEMORY_MIB = 2048
START_S = 60
SHOWN_LINES = 20
# What Bochs says when the host is down: a power-off and a triple fault end it, and a reset would start the host again.
DOWN = re.compile(r">>PANIC<<\s*(.*)|(Reset\(\w+\)) called")


class Bochs(Machine):
    NAME = "Bochs"

    def __init__(self, root: Path, image: Path, initramfs: bytes | None, shape: Shape) -> None:
        if shape.cpus > MOST_CPUS:
            raise Failure(f"the machine {shape.kind} has at most {MOST_CPUS} CPUs")
        if shape.memory_mib > MOST_MEMORY_MIB:
            raise Failure(f"the machine {shape.kind} has at most {MOST_MEMORY_MIB} MiB of memory")
        self.log = shape.emulator_log
        self.words: list[str] = []
        self.reason = ""
        self._rest = b""
        self._resets = 0
        contents = in_memory("disk", whole_cylinders(image.read_bytes()) if initramfs is None
                             else disk(root, image, initramfs, " ".join(BOOT_OPTIONS + boot_options(shape) + shape.append)))
        log, log_far = os.pipe()
        listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in self.SERIAL}
        ports = [listener.getsockname()[1] for listener in listeners.values()]
        lines = configuration(root, shape, f"/proc/self/fd/{contents}", f"/proc/self/fd/{log_far}", ports)
        # Debian's is built with its debugger, which waits for a command to begin.
        files = [in_memory("bochsrc", lines.encode()), in_memory("commands", b"continue\n")]
        command = [*rooted(root, "bochs-bin"), "-q", "-f", f"/proc/self/fd/{files[0]}", "-rc", f"/proc/self/fd/{files[1]}"]
        super().__init__(command, [contents, log_far, *files], output=log_far, env=environment(root))
        for number in (contents, log_far, *files):
            os.close(number)
        self.ports["emulator"] = os.fdopen(log, "rb", buffering=0)
        try:
            for name, listener in listeners.items():
                self.ports[name] = self._accepted(listener)
        except BaseException:
            self.stop()
            raise

    def _accepted(self, listener: socket.socket) -> socket.socket:
        """The connection of a serial port, unless Bochs ends before."""
        log = self.ports["emulator"]
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            ready = select.select([listener, log], [], [], 1)[0]
            if listener in ready:
                with listener:
                    return listener.accept()[0]
            if log in ready:
                data = log.read(65536)
                if not data:
                    break
                self.heard(data)
        raise Failure("Bochs does not start. Its last words:\n" + "\n".join(self.words))

    def heard(self, data: bytes) -> None:
        if self.log:
            self.log.write(data)
            self.log.flush()
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [line.decode(errors="replace") for line in whole]
        self.words = (self.words + lines)[-SHOWN_LINES:]
        for found in filter(None, map(DOWN.search, lines)):
            self._resets += found[2] is not None
            # The first reset is the start.
            if found[1] or self._resets > 1:
                self.reason = self.reason or found[1] or found[2]
                self.process.kill()

    def ended(self) -> str:
        return f"{self.NAME}: {self.reason}" if self.reason else super().ended()


def ips(shape: Shape) -> int:
    return IPS_WITH_TERMINAL if shape.terminal else IPS


def boot_options(shape: Shape) -> list[str]:
    """The clocks that there are, so that none has to be measured."""
    return ["hpet=disable", f"lpj={ips(shape) // 250}", f"tsc_early_khz={ips(shape) // 1000}"]


def environment(root: Path) -> dict[str, str]:
    # Bochs shows the screen on a terminal of its own, which nobody reads: when that is full, Bochs stands still. A cursor that blinks fills it within
    # hours of emulated time, and a VT100 has none that could be switched off and on.
    return {"PATH": "/usr/bin:/bin", "TERM": "vt100", "TERMINFO": f"{root}/usr/share/terminfo", "BXSHARE": f"{root}/usr/share/bochs",
            "LTDL_LIBRARY_PATH": f"{root}/usr/lib/x86_64-linux-gnu/bochs/plugins"}


def configuration(root: Path, shape: Shape, image: str, log: str, ports: list[int]) -> str:
    share = root / "usr/share/bochs"
    lines = ["plugin_ctrl: unmapped=1, biosdev=1, serial=1, speaker=0, gameport=0, parallel=0, usb_uhci=0", "display_library: term",
             f"cpu: model={shape.cpu}, count={shape.cpus}, ips={ips(shape)}, reset_on_triple_fault=0, ignore_bad_msrs=1",
             f"memory: guest={shape.memory_mib}, host={shape.memory_mib}",
             f"romimage: file={share}/BIOS-bochs-latest, options=fastboot", f"vgaromimage: file={share}/VGABIOS-lgpl-latest",
             "boot: disk", "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14", f"ata0-master: type=disk, mode=flat, path={image}",
             # Idle time passes at once, unless somebody looks on.
             f"clock: sync={'slowdown' if shape.terminal else 'none'}, time0=utc", f"log: {log}", "panic: action=fatal"]
    if shape.emulator_log is None:
        # Each line costs time, and a kernel that asks for a register that is not there causes one.
        lines += ["info: action=ignore, pc_system=report", "error: action=ignore"]
    lines += [f"com{number}: enabled=1, mode=socket-client, dev=127.0.0.1:{port}" for number, port in enumerate(ports, 1)]
    return "\n".join(lines) + "\n"
