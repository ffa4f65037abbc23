# SPDX-License-Identifier: MIT OR Apache-2.0
"""The lightweight kernel in an emulator: its ISO image, and one run of it."""

import math
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from . import hostroot, steps
from .cache import TOP, Failure
from .debugger import Debugger
from .machine import Shape, start
from .session import BROKEN, ESCAPE, SPLAT, TIMEOUT, complain, raw_terminal

KERNEL = TOP / "build/lwk/lwk.elf"
# What GRUB has to have in it; all else makes it slower to load.
GRUB_MODULES = "multiboot2 normal biosdisk iso9660"
# The kernel's own words begin so.
LOG = "lwk: "


@dataclass
class Boot:
    """What is started: guest.img files with their cores, and what else stands on the command line."""

    images: list[tuple[Path, str]] = field(default_factory=list)
    append: str = ""

    def names(self) -> list[str]:
        """Of the modules: the files' own, or with a number before it if that is there already."""
        names: list[str] = []
        for image, _ in self.images:
            names.append(image.name if image.name not in names else f"{len(names)}-{image.name}")
        return names

    def command_line(self) -> str:
        wishes = [f"vm={name}" + (f" cores={cores}" if cores else "") for name, (_, cores) in zip(self.names(), self.images)]
        return " ".join([*wishes, *self.append.split()])

    def write_iso(self, out: Path) -> None:
        """An image that GRUB starts from, on a BIOS: of a CD, a disk or a USB stick."""
        if not KERNEL.exists():
            raise Failure(f"{KERNEL} is not there: run scripts/build-lwk")
        with tempfile.TemporaryDirectory(dir=TOP / "build") as folder:
            top = Path(folder) / "iso"
            (top / "boot/grub").mkdir(parents=True)
            shutil.copy(KERNEL, top / "boot/lwk.elf")
            lines = ["set timeout=0", f"multiboot2 /boot/lwk.elf {self.command_line()}"]
            for name, (image, _) in zip(self.names(), self.images):
                shutil.copy(image, top / "boot" / name)
                lines.append(f"module2 /boot/{name} {name}")
            (top / "boot/grub/grub.cfg").write_text("\n".join([*lines, "boot", ""]))
            command = [TOP / "scripts/in-root", "grub-mkrescue", "--directory=/usr/lib/grub/i386-pc", f"--install-modules={GRUB_MODULES}",
                       "--fonts=", "--locales=", "--themes=", f"--output={folder}/lwk.iso", top]
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Failure(f"grub-mkrescue failed:\n{done.stderr}")
            shutil.move(Path(folder) / "lwk.iso", out)


class Run:
    """One run, from the start to the power-off. `answers`: when a text is seen, these bytes are typed, or a text goes to the emulator's
    monitor; one after the other. `announce`: says that the kernel boots; and then, without a terminal, that all are silent."""

    def __init__(self, boot: Boot, shape: Shape, answers: list[tuple[str, bytes | str]] = (), announce: bool = False) -> None:
        self.boot, self.shape, self.answers, self.announce = boot, shape, list(answers), announce
        # A terminal in raw mode begins no line by itself.
        self.booting = steps.Shown("booting the lightweight kernel", shape.in_words(), end="\r\n" if shape.terminal else "\n")
        # When something was heard last, and when it is shown that nothing is.
        self.heard_s, self.shown_s = 0.0, math.inf
        # What each serial port said since the last answer.
        self.said: dict[str, str] = {}
        self._rest: dict[int, bytes] = {}
        self._escape = False

    def follow(self, timeout_s: float | None, show: bool = True, gdb: Debugger | None = None) -> int:
        root = hostroot.ensure("root")
        booting = self.booting if self.announce and not gdb else nullcontext()
        with tempfile.TemporaryDirectory(dir=TOP / "build") as folder, booting:
            iso = Path(folder) / "lwk.iso"
            self.boot.write_iso(iso)
            machine = start(root, iso, None, self.shape)
            if gdb:
                gdb.invite("the machine stands still before its first instruction", [f"file {KERNEL}", gdb.attach()])
            try:
                with raw_terminal(self.shape.terminal):
                    return self._follow(machine, time.monotonic() + timeout_s if timeout_s else None, show)
            finally:
                # Where the kernel said nothing.
                self.booting.end(good=False)
                for port, rest in list(self._rest.items()):
                    self._show(port, b"\n" if rest else b"")
                machine.stop()

    def _follow(self, machine, deadline: float | None, show: bool) -> int:
        wires = {port: name for name, port in machine.ports.items()}
        while any(name in machine.SERIAL for name in wires.values()):
            now_s, end_s = time.monotonic(), math.inf if deadline is None else deadline
            if now_s >= end_s:
                complain("lwk: the kernel did not switch off in time; --timeout SECONDS sets another limit")
                return TIMEOUT
            if now_s >= self.shown_s:
                steps.waits(now_s - self.heard_s)
                self.shown_s = now_s + steps.HEARTBEAT_S
            wait = None if min(end_s, self.shown_s) == math.inf else min(end_s, self.shown_s) - now_s
            sources = [*wires, *([sys.stdin.buffer.raw] if self.shape.terminal else [])]
            for source in select.select(sources, [], [], wait)[0]:
                if source not in wires:
                    if not self._typed(machine, os.read(source.fileno(), 4096)):
                        return 0
                    continue
                data = source.read(65536) if wires[source] == "emulator" else source.recv(65536)
                if not data:
                    del wires[source]
                elif wires[source] in machine.SERIAL:
                    self._heard(machine, wires[source], data, show)
                else:
                    machine.heard(data)
            if f"{LOG}panic" in self.text() and not self._settles(wires):
                return SPLAT
        ended = machine.ended()
        if "power" not in ended.lower() and "status 0" not in ended:
            complain(f"lwk: {ended}")
            return BROKEN
        return 0

    def _settles(self, wires: dict) -> bool:
        """After a panic: whether more comes."""
        return bool(select.select(list(wires), [], [], 1)[0])

    def text(self, port: str = "kernel") -> str:
        return self.said.get(port, "")

    def _heard(self, machine, name: str, data: bytes, show: bool) -> None:
        self.booting.end()
        self.heard_s = time.monotonic()
        if self.announce and not self.shape.terminal:
            self.shown_s = self.heard_s + steps.HEARTBEAT_S
        text = data.decode(errors="replace")
        self.said[name] = self.text(name) + text
        if show:
            self._show(machine.SERIAL.index(name), data)
        while self.answers and self.answers[0][0] in self.text():
            mark, answer = self.answers.pop(0)
            # What was said before is answered.
            self.said["kernel"] = ""
            if isinstance(answer, str):
                machine.monitor(answer)
            else:
                machine.ports["kernel"].sendall(answer)

    def _show(self, port: int, data: bytes) -> None:
        """The first port as it comes on a terminal; else line by line, those of others with the port's number before them."""
        lines = [data] if self.shape.terminal and port == 0 else (self._rest.pop(port, b"") + data).splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n") and not (self.shape.terminal and port == 0):
            self._rest[port] = lines.pop()
        for line in lines:
            sys.stdout.buffer.write(line if port == 0 else f"[{port + 1}] ".encode() + line)
        sys.stdout.buffer.flush()

    def _typed(self, machine, data: bytes) -> bool:
        """A key; false when it is the escape, by which the user leaves."""
        if not data or (self._escape and data[:1] == b"x") or ESCAPE + b"x" in data:
            return False
        if self._escape or data != ESCAPE:
            machine.ports["kernel"].sendall(data)
        self._escape = data == ESCAPE and not self._escape
        return True
