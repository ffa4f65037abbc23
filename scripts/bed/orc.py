# SPDX-License-Identifier: MIT OR Apache-2.0
"""How to find the caller of a kernel function: the kernel's own ORC tables, written anew as DWARF's call frame information.

Linux is compiled without DWARF's tables and without frame pointers; it prints backtraces by ORC (arch/x86/include/asm/orc_types.h,
arch/x86/kernel/unwind_orc.c). gdb reads DWARF only (version 5, section 6.4). Both say, for each address in the code, where the
caller's stack pointer is (DWARF: the CFA) and where the caller's registers are saved, counted from there.
"""

import functools
import struct
from bisect import bisect_left, bisect_right

# Registers as DWARF numbers them, and ORC's numbers for those that may point to the stack.
RBX, RBP, RSP, RIP = 3, 6, 7, 16
STACK_POINTERS = {2: 1, 3: RSP, 4: RBP, 5: 5, 6: 10, 7: 13}
PREVIOUS_SP, SP_INDIRECT, BP_INDIRECT = 8, 9, 10

# ORC's kinds of rows: a function that was called; an interrupted one, of which the stack has all registers (struct pt_regs), or
# only what the processor put there.
CALL, REGISTERS, INTERRUPT = 2, 3, 4
SAVED = {REGISTERS: {RBP: 32, RBX: 40, RIP: 128, RSP: 152}, INTERRUPT: {RIP: 0, RSP: 24}}

# DWARF: instructions for the table, and operators of expressions.
ADVANCE_4, UNDEFINED, DEF_CFA, DEF_CFA_EXPRESSION, OFFSET_SIGNED, RESTORE = 0x04, 0x07, 0x0c, 0x0f, 0x11, 0xc0
OP_DEREF, OP_PLUS_UNSIGNED, OP_REGISTER = 0x06, 0x23, 0x70
DATA_ALIGN = -8


def rows(ip_address: int, ips: bytes, entries: bytes) -> list[tuple[int, bytes]]:
    """(first address, ORC entry), in order. The table of addresses lies at `ip_address` and counts from itself."""
    offsets = struct.unpack(f"<{len(ips) // 4}i", ips)
    addresses = (ip_address + 4 * at + offset for at, offset in enumerate(offsets))
    return [(address, entries[6 * at:6 * at + 6]) for at, address in enumerate(addresses)]


def frame_table(table: list[tuple[int, bytes]], functions: list[tuple[int, int]]) -> bytes:
    """The section .debug_frame for functions, given as (first address, address behind the last)."""
    # What two kinds of functions begin with. gdb distrusts a caller whose stack lies below, but where the stack is changed ("S").
    common, of_changing = common_part(b""), common_part(b"S")
    parts, addresses = [common, of_changing], [address for address, _ in table]
    for begin, end in functions:
        # The row that holds at the first instruction may begin before it.
        of_function = table[max(bisect_right(addresses, begin) - 1, 0):bisect_left(addresses, end)]
        begins_with = len(common) if any(changes_stack(entry) for _, entry in of_function) else 0
        if of_function:
            parts.append(padded(struct.pack("<IQQ", begins_with, begin, end - begin) + instructions(begin, of_function)))
    return b"".join(parts)


def common_part(augmentation: bytes) -> bytes:
    start = bytes([DEF_CFA]) + unsigned(RSP) + unsigned(8) + saved(RIP, -8)
    return padded(struct.pack("<IB", 0xffffffff, 1) + augmentation + b"\0" + unsigned(1) + signed(DATA_ALIGN) + bytes([RIP]) + start)


def instructions(begin: int, of_function: list[tuple[int, bytes]]) -> bytes:
    text, at = b"", begin
    for address, entry in of_function:
        if address > at:
            text += struct.pack("<BI", ADVANCE_4, address - at)
            at = address
        text += rules(entry)
    return text


def changes_stack(entry: bytes) -> bool:
    return entry[4] & 15 in (SP_INDIRECT, BP_INDIRECT)


@functools.cache
def rules(entry: bytes) -> bytes:
    """DWARF's instructions for one ORC entry; what they leave out is as at the function's first instruction."""
    sp_offset, bp_offset, bits = struct.unpack("<hhH", entry)
    sp_register, bp_register, kind = bits & 15, bits >> 4 & 15, bits >> 8 & 7
    frame = frame_address(sp_register, sp_offset)
    if frame is None or kind not in (CALL, REGISTERS, INTERRUPT):
        return bytes([UNDEFINED]) + unsigned(RIP)
    places = SAVED.get(kind) or ({RBP: bp_offset} if bp_register == PREVIOUS_SP else {})
    restored = bytes(RESTORE | register for register in (RBX, RBP, RSP, RIP))
    return restored + frame + b"".join(saved(register, offset) for register, offset in places.items())


def frame_address(register: int, offset: int) -> bytes | None:
    """The instruction that says where the caller's stack begins; None if ORC does not."""
    if register in STACK_POINTERS and offset >= 0:
        return bytes([DEF_CFA]) + unsigned(STACK_POINTERS[register]) + unsigned(offset)
    if register in STACK_POINTERS:
        return expression(bytes([OP_REGISTER + STACK_POINTERS[register]]) + signed(offset))
    if register == BP_INDIRECT:
        return expression(bytes([OP_REGISTER + RBP]) + signed(offset) + bytes([OP_DEREF]))
    if register == SP_INDIRECT and offset >= 0:
        return expression(bytes([OP_REGISTER + RSP]) + signed(0) + bytes([OP_DEREF, OP_PLUS_UNSIGNED]) + unsigned(offset))
    return None


def expression(operators: bytes) -> bytes:
    return bytes([DEF_CFA_EXPRESSION]) + unsigned(len(operators)) + operators


def saved(register: int, offset: int) -> bytes:
    """The register is on the stack, so many bytes from the frame's address."""
    return bytes([OFFSET_SIGNED]) + unsigned(register) + signed(offset // DATA_ALIGN)


def padded(entry: bytes) -> bytes:
    """An entry with its length before it, made whole by instructions that do nothing."""
    entry += bytes(-(len(entry) + 4) % 8)
    return struct.pack("<I", len(entry)) + entry


def unsigned(number: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first."""
    return bytes([number]) if number < 0x80 else bytes([number & 0x7f | 0x80]) + unsigned(number >> 7)


def signed(number: int) -> bytes:
    return bytes([number & 0x7f]) if -0x40 <= number < 0x40 else bytes([number & 0x7f | 0x80]) + signed(number >> 7)
