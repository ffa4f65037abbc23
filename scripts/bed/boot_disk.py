# SPDX-License-Identifier: MIT OR Apache-2.0
"""A disk that starts a Linux kernel in an emulator that can load none: boot.S, then what it reads to memory.

The kernel is taken out of its bzImage and lies there unpacked, as unpacking takes an emulator seconds.
"""

import lzma
import struct
import subprocess
import tempfile
from pathlib import Path

from .cache import Failure
from .machine import rooted

SECTOR = 512
# A whole cylinder, so that the disk's geometry needs no thought.
CYLINDER = 16 * 63 * SECTOR
MOST_SECTORS = 256

# As in boot.S.
TABLE_SECTORS = 64
BOOT_PARAMS = 0x10000
COMMAND_LINE = 0x11000

# Offsets in the boot parameters: Documentation/arch/x86/boot.rst and zero-page.rst of the kernel.
SETUP_SECTS, HEADER, JUMP, LOADER, RAMDISK, CMD_LINE_PTR, PAYLOAD, INIT_SIZE = 0x1f1, 0x1f1, 0x201, 0x210, 0x218, 0x228, 0x248, 0x260


def disk(root: Path, image: Path, initramfs: bytes, command_line: str) -> bytes:
    bzimage = image.read_bytes()
    entry, parts = segments(unpacked(root, bzimage))
    init_size = struct.unpack_from("<I", bzimage, INIT_SIZE)[0]
    ramdisk = aligned(parts[0][0] + init_size, 1 << 21)
    parameters = boot_params(bzimage, ramdisk, len(initramfs))
    parts = [(BOOT_PARAMS, parameters), (COMMAND_LINE, command_line.encode() + b"\0"), *parts, (ramdisk, initramfs)]
    table, data = b"", []
    for address, part in parts:
        part += bytes(-len(part) % SECTOR)
        data.append(part)
        for at in range(0, len(part), MOST_SECTORS * SECTOR):
            table += struct.pack("<II", address + at, min(MOST_SECTORS, (len(part) - at) // SECTOR))
    table += struct.pack("<II", entry, 0)
    if len(table) > TABLE_SECTORS * SECTOR:
        raise Failure(f"kernel and files are too large for this machine's boot disk, {sum(map(len, data)) >> 20} MiB: bring fewer files")
    return whole_cylinders(b"".join([boot_sector(root), table.ljust(TABLE_SECTORS * SECTOR, b"\0"), *data]))


def whole_cylinders(data: bytes) -> bytes:
    return data + bytes(-len(data) % CYLINDER)


def aligned(number: int, to: int) -> int:
    return -(-number // to) * to


def boot_sector(root: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        obj, flat = Path(folder) / "boot.o", Path(folder) / "boot"
        subprocess.run([*rooted(root, "x86_64-linux-gnu-as"), "-o", obj, Path(__file__).parent / "boot.S"], check=True)
        subprocess.run([*rooted(root, "x86_64-linux-gnu-ld"), "-m", "elf_x86_64", "-Ttext=0x7c00", "--oformat=binary", "-o", flat, obj], check=True)
        return flat.read_bytes()


def boot_params(bzimage: bytes, ramdisk: int, ramdisk_size: int) -> bytes:
    """The zero page: the header of the bzImage, and what a boot loader says. boot.S adds the memory map."""
    page = bytearray(4096)
    end = JUMP + 1 + bzimage[JUMP]
    page[HEADER:end] = bzimage[HEADER:end]
    page[LOADER] = 0xff  # no loader with a number of its own
    struct.pack_into("<II", page, RAMDISK, ramdisk, ramdisk_size)
    struct.pack_into("<I", page, CMD_LINE_PTR, COMMAND_LINE)
    return bytes(page)


def unpacked(root: Path, bzimage: bytes) -> bytes:
    """The kernel, an ELF file, that a bzImage carries."""
    setup = (bzimage[SETUP_SECTS] or 4) + 1
    offset, length = struct.unpack_from("<II", bzimage, PAYLOAD)
    payload = bzimage[setup * SECTOR + offset:][:length]
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # Four bytes of length come after it, which zstd would take for a fault.
        return subprocess.run([*rooted(root, "zstd"), "-dc"], input=payload[:-4], capture_output=True, check=True).stdout
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)
    raise Failure("the kernel is packed in a way that the boot disk does not know: zstd and xz are known")


def segments(elf: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """The entry of an ELF file, and (address, bytes) of what is to be in memory."""
    entry, table = struct.unpack_from("<QQ", elf, 24)
    size, count = struct.unpack_from("<HH", elf, 54)
    parts = []
    for at in range(table, table + size * count, size):
        kind, _, offset, _, physical, in_file, _, _ = struct.unpack_from("<IIQQQQQQ", elf, at)
        if kind == 1 and in_file:
            parts.append((physical, elf[offset:offset + in_file]))
    return entry, sorted(parts)
