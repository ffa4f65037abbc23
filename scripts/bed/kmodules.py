# SPDX-License-Identifier: MIT OR Apache-2.0
"""Modules of a stock kernel: which files a few of them need, and copies of these."""

import lzma
import shutil
from pathlib import Path

from .cache import Failure

# What depmod reads beside the modules, where the kernel's package has it.
LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo")


def name_of(path: str) -> str:
    """As the kernel calls it: kernel/drivers/char/hw_random/virtio-rng.ko.xz is virtio_rng."""
    return Path(path).name.split(".")[0].replace("-", "_")


def dependencies(modules: Path) -> dict[str, list[str]]:
    """What modules.dep of a folder lib/modules/RELEASE says: each module's file, and the files it needs."""
    table: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        table[path] = needs.split()
    return table


def files_of(modules: Path, wanted: tuple[str, ...]) -> list[str]:
    """The files of the wanted modules and of all they depend on. One that is built into the kernel has none."""
    needs = dependencies(modules)
    files = {name_of(path): path for path in needs}
    built_in = {name_of(path) for path in (modules / "modules.builtin").read_text().split()}
    names = [name_of(name) for name in wanted]
    missing = [name for name in names if name not in files and name not in built_in]
    if missing:
        raise Failure(f"the kernel {modules.name} has no module {', '.join(missing)}")
    tops = [files[name] for name in names if name in files]
    return sorted({path for top in tops for path in (top, *needs[top])})


def unpacked(file: Path) -> bytes:
    """A module as `insmod` of BusyBox takes it."""
    data = file.read_bytes()
    return lzma.decompress(data) if file.suffix == ".xz" else data


def plain(path: str) -> str:
    """The name of a module's file that is not compressed."""
    return path.removesuffix(".xz")


def copy(modules: Path, wanted: tuple[str, ...], into: Path) -> None:
    """Puts the wanted modules of a folder lib/modules/RELEASE, and all they depend on, into another; not compressed. That one needs depmod, too."""
    for path in files_of(modules, wanted):
        target = into / plain(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(unpacked(modules / path))
    for name in LISTS:
        shutil.copy(modules / name, into / name)
