# SPDX-License-Identifier: MIT OR Apache-2.0
"""bzimage.py FLAT ENTRY FILE: makes a Linux bzImage of a flat kernel for 1 MiB, with a 32-bit entry point (hexadecimal).

It speaks protocol 2.05, which came with Linux 2.6.20, and its last paragraph is not full.
"""

import struct
import sys
from pathlib import Path

SETUP_SECTORS = 1
PARAGRAPH = 16

flat, entry, file = sys.argv[1:]
code = Path(flat).read_bytes()
while len(code) % PARAGRAPH != 7:
    code += b"\0"

setup = bytearray(512 * (1 + SETUP_SECTORS))
for offset, form, value in [
    (0x1f1, "B", SETUP_SECTORS),
    (0x1f4, "<I", -(-len(code) // PARAGRAPH)),  # syssize, rounded up
    (0x1fe, "<H", 0xaa55),
    (0x200, "<H", 0x66eb),  # a jump over the header
    (0x202, "4s", b"HdrS"),
    (0x206, "<H", 0x0205),
    (0x211, "B", 1),  # loaded at 1 MiB
    (0x214, "<I", int(entry, 16)),
    (0x22c, "<I", 0x37ff_ffff),  # the last address of an initrd
]:
    struct.pack_into(form, setup, offset, value)
Path(file).write_bytes(setup + code)
