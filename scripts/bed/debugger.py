# SPDX-License-Identifier: MIT OR Apache-2.0
"""gdb for one run of an emulated machine: QEMU waits for it at a port, and it reads its first commands from a file."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import steps
from .cache import TOP, Failure
from .machine import KINDS

FOLDER = TOP / "build" / "gdb"


@dataclass
class Debugger:
    port: int
    commands: Path

    def attach(self) -> str:
        """gdb's command that connects it with QEMU."""
        return f"target remote 127.0.0.1:{self.port}"

    def invite(self, state: str, commands: list[str]) -> None:
        """Says that the machine waits, and how to start gdb. That is a line of its own, to be copied."""
        self.commands.write_text("".join(f"{command}\n" for command in ["set confirm off", *commands]))
        steps.say(f"{state}, and waits for gdb. In another terminal:\n{TOP}/scripts/in-root gdb -x {self.commands}")
        steps.say("there, set breakpoints and type `continue`. `rbreak Vcpu.*::dispatch` stops at each exit of a guest; `detach` lets all go on")


def refuse_if_not_qemu(kind: str) -> None:
    if KINDS[kind][0] != "qemu":
        raise Failure(f"gdb needs QEMU, and the machine {kind} runs in Bochs. Take the machine svm: leave MACHINE= or --machine out")


@contextmanager
def debugger() -> Iterator[Debugger]:
    """For one run. Its file goes with it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    commands = FOLDER / f"port-{port}.gdb"
    try:
        yield Debugger(port, commands)
    finally:
        commands.unlink(missing_ok=True)
