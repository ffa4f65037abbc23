# SPDX-License-Identifier: MIT OR Apache-2.0
"""Writes initramfs archives (the kernel's `newc` cpio) without touching the disk, so that no root is needed."""

import stat
from pathlib import Path


class Cpio:
    """An archive in memory. Folders on the way to a file are made by themselves."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def folder(self, name: str) -> None:
        if name and name not in self._names:
            self.folder(name.rpartition("/")[0])
            self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self.folder(name.rpartition("/")[0])
        self._entry(name, stat.S_IFREG | mode, data)

    def copy(self, name: str, source: Path) -> None:
        """Adds a file of this machine, executable as it is there."""
        self.file(name, source.read_bytes(), 0o755 if source.stat().st_mode & 0o100 else 0o644)

    def link(self, name: str, target: str) -> None:
        self.folder(name.rpartition("/")[0])
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def node(self, name: str, major: int, minor: int) -> None:
        self.folder(name.rpartition("/")[0])
        self._entry(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def bytes(self) -> bytes:
        trailer = Cpio()
        trailer._entry("TRAILER!!!", 0, b"")
        return b"".join(self._parts + trailer._parts)

    def _entry(self, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._names.add(name)
        encoded = name.encode() + b"\0"
        # magic, then: inode, mode, uid, gid, links, mtime, size, device (2), the node's device (2), name's size, checksum
        fields = (len(self._names), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [pad(header + encoded), pad(data)]


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
