// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests for what is where in memory, and what of it was written.

use crate::guest;

/// Where the host says what is so just now: bit 0: it changes; bit 1: it is at the second address. All ones end the guest.
pub const PHASE: u64 = 0x7010;
/// How often the guest has looked.
pub const LOOKS: u64 = 0x7014;
/// Where each vCPU of [`writers`] notes which pages it has written, a byte for each; 4 KiB apart.
pub const NOTES: u64 = 0x20_0000;
/// The pages that [`writers`] write.
pub const WRITTEN: u64 = 0x40_0000;

guest! {
    /// Writes to a ROM at 0xf0000 in many ways, whose first word is `p0`, whose second is `p1`, and which has a `ret` at 0x100. Status 0 if it stays
    /// as it is, else the number of what changed it.
    pub fn rom_writer =
    "mov ebx, [0x100020]"
    "mov edi, 0xf0000"
    "mov ecx, 1"
    "cmp [edi], ebx"
    "jne 9f"
    "inc ecx"
    "mov dword ptr [edi], 0x12345678"
    "cmp [edi], ebx"
    "jne 9f"
    "inc ecx"
    "lock inc dword ptr [edi]"
    "cmp [edi], ebx"
    "jne 9f"
    "inc ecx"
    "mov eax, 7"
    "xchg [edi], eax"
    "cmp eax, ebx"
    "jne 9f"
    "cmp [edi], ebx"
    "jne 9f"
    "inc ecx"
    "mov byte ptr [edi + 3], 0"
    "cmp [edi], ebx"
    "jne 9f"
    "inc ecx"
    // A stack in it: what is pushed is lost, and what is popped is the ROM's.
    "mov esp, 0xf0008"
    "push 5"
    "pop eax"
    "mov esp, 0x90000"
    "cmp eax, [0x100024]"
    "jne 9f"
    "inc ecx"
    // Code in it.
    "mov eax, 0xf0100"
    "call eax"
    "exit 0"
    "9: mov eax, ecx"
    "out 0xf4, al"
}

guest! {
    /// Reads through a ROM at 0xf0000 whose first word is `p0`, and writes 0x55 behind it; then prints a byte, waits for the word at 0x7004, and looks whether
    /// it now reads what it wrote. Status 0.
    pub fn shadowed =
    "mov ebx, [0x100020]"
    "cmp [0xf0000], ebx"
    "jne 9f"
    "mov dword ptr [0xf0000], 0x55"
    "cmp [0xf0000], ebx"
    "jne 9f"
    "out 0xe9, al"
    "2: pause"
    "cmp dword ptr [0x7004], 0"
    "je 2b"
    "cmp dword ptr [0xf0000], 0x55"
    "jne 8f"
    "exit 0"
    "8: exit 2"
    "9: exit 1"
}

guest! {
    /// `p0` vCPUs read a word that is `p1`, and is either at `p2` or at `p3`, where else nothing is, until the host says that it is over. While
    /// [`PHASE`] says where it is, it must be just there. Status 0.
    pub fn movers =
    "trampoline start_mv, 64"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "lapic_write 0x300, 0xc4608"
    "work_mv:"
    "mov esi, [0x100028]"
    "mov edi, [0x10002c]"
    "2: mov ebx, [0x7010]"
    "mov eax, [esi]"
    "mov ecx, [edi]"
    "cmp ebx, [0x7010]"
    "jne 2b"
    "cmp ebx, -1"
    "je 7f"
    "test bl, 1"
    "jnz 2b"
    "lock inc dword ptr [0x7014]"
    "test bl, 2"
    "jz 3f"
    "xchg eax, ecx"
    "3: cmp eax, [0x100024]"
    "jne 8f"
    "cmp ecx, -1"
    "je 2b"
    "exit 1"
    "8: exit 2"
    // All are done.
    "7: lock inc dword ptr [0x7018]"
    "mov eax, [0x7018]"
    "cmp eax, [0x100020]"
    "je 6f"
    "5: cli"
    "hlt"
    "jmp 5b"
    "6: exit 0"
    ".code16"
    "start_mv:"
    "protect start_mv"
    "lapic_read 0x20"
    "shr eax, 24"
    "mov ebp, eax"
    "jmp work_mv"
}

guest! {
    /// `p0` vCPUs write `p1` words each, to pages from [`WRITTEN`] on, of which the last is number `p2`, all bits below some one. They choose
    /// by a generator of random numbers, write each to a word of its own in the page, and note the page in [`NOTES`]. Status 0.
    pub fn writers =
    "trampoline start_wr, 64"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "lapic_write 0x300, 0xc4608"
    "work_wr:"
    "mov ecx, [0x100024]"
    "mov esi, ebp"
    "shl esi, 12"
    "add esi, 0x200000"
    "lea ebx, [ebp + 12345]"
    // Marsaglia's generator of 32 bits.
    "2: mov eax, ebx"
    "shl eax, 13"
    "xor ebx, eax"
    "mov eax, ebx"
    "shr eax, 17"
    "xor ebx, eax"
    "mov eax, ebx"
    "shl eax, 5"
    "xor ebx, eax"
    "mov edx, ebx"
    "shr edx, 8"
    "and edx, [0x100028]"
    "mov byte ptr [esi + edx], 1"
    "shl edx, 12"
    "mov [edx + 4 * ebp + 0x400000], ecx"
    "dec ecx"
    "jnz 2b"
    "lock inc dword ptr [0x7018]"
    "mov eax, [0x7018]"
    "cmp eax, [0x100020]"
    "je 6f"
    "5: cli"
    "hlt"
    "jmp 5b"
    "6: exit 0"
    ".code16"
    "start_wr:"
    "protect start_wr"
    "lapic_read 0x20"
    "shr eax, 24"
    "mov ebp, eax"
    "jmp work_wr"
}

guest! {
    /// The second vCPU writes to the page at `p0`; the first meanwhile writes to `p1` pages from [`WRITTEN`] on, prints a byte, and waits
    /// for the second. Status 0.
    pub fn one_waits =
    "trampoline start_ow, 64"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "lapic_write 0x300, 0xc4608"
    "3: pause"
    "cmp dword ptr [0x7000], 1"
    "jne 3b"
    "mov edi, 0x400000"
    "mov ecx, [0x100024]"
    "2: mov [edi], ecx"
    "add edi, 0x1000"
    "dec ecx"
    "jnz 2b"
    "out 0xe9, al"
    "4: pause"
    "cmp dword ptr [0x7000], 2"
    "jne 4b"
    "exit 0"
    ".code16"
    "start_ow:"
    "protect start_ow"
    "mov edi, [0x100020]"
    "mov dword ptr [0x7000], 1"
    "mov dword ptr [edi], 7"
    "mov dword ptr [0x7000], 2"
    "5: cli"
    "hlt"
    "jmp 5b"
}

guest! {
    /// Between the marks 1 and 2 it touches `p0` pages from [`WRITTEN`] on for the first time. Status 0.
    pub fn first_touches =
    "mov edi, 0x400000"
    "mov ecx, [0x100020]"
    "prefetchnta [1]"
    "2: mov [edi], edi"
    "add edi, 0x1000"
    "dec ecx"
    "jnz 2b"
    "prefetchnta [2]"
    "exit 0"
}

guest! {
    /// Writes a word to each of `p0` pages from [`WRITTEN`] on, prints a byte, waits for the word at 0x7004, and counts the pages whose word is
    /// 0 then, which it writes again. Their number is printed, in bits of 8 from the lowest on. Status 0.
    pub fn finds_zeroes =
    "mov edi, 0x400000"
    "mov ecx, [0x100020]"
    "2: mov [edi], edi"
    "add edi, 0x1000"
    "dec ecx"
    "jnz 2b"
    "out 0xe9, al"
    "3: pause"
    "cmp dword ptr [0x7004], 0"
    "je 3b"
    "mov edi, 0x400000"
    "mov ecx, [0x100020]"
    "xor ebx, ebx"
    "4: cmp dword ptr [edi], 0"
    "jne 5f"
    "inc ebx"
    "mov [edi], edi"
    "5: add edi, 0x1000"
    "dec ecx"
    "jnz 4b"
    "mov eax, ebx"
    "out 0xe9, al"
    "mov al, ah"
    "out 0xe9, al"
    "exit 0"
}
