// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that work while timers interrupt them. Their work is to write to the debug port; their handlers count the ticks
//! in the word at [`TICKS`].

/// Where they count ticks.
pub const TICKS: u64 = 0x7000;

guest! {
    /// Writes `p0` bytes beside the local APIC's timer, whose LVT entry is `p1` and whose count is `p2`. The handler arms it
    /// anew by the count if `p3` is 1, by a TSC deadline that is past if it is 2, and writes `p4` bytes itself when it has
    /// ended the interrupt. Status 0.
    pub fn works_beside_apic_timer =
    "gate 0x40, tick_ra"
    "lapic_write 0x3e0, 0xb"
    "mov eax, [0x100024]"
    "lapic_write 0x320, eax"
    "call arm_ra"
    "work"
    "tick_ra:"
    "inc dword ptr [0x7000]"
    "cmp dword ptr [0x10002c], 0"
    "je 3f"
    "call arm_ra"
    "3: lapic_write 0xb0, 0"
    "mov esi, [0x100030]"
    "4: cmp esi, 0"
    "je 5f"
    "out 0xe9, al"
    "dec esi"
    "jmp 4b"
    "5: iretd"
    "arm_ra:"
    "mov eax, [0x100028]"
    "lapic_write 0x380, eax"
    "cmp dword ptr [0x10002c], 2"
    "jne 6f"
    "mov eax, 1"
    "xor edx, edx"
    "mov ecx, 0x6e0"
    "wrmsr"
    "6: ret"
}

guest! {
    /// Writes `p0` bytes beside counter 0 of the 8254, whose count is `p1`, which interrupts by the PIC pair if `p2` is 0,
    /// else by the I/O APIC. Status 0.
    pub fn works_beside_8254 =
    "gate 0x30, tick_rb"
    // The PIC pair: vectors from 0x30 on, input 0 alone.
    "mov al, 0x11"
    "out 0x20, al"
    "mov al, 0x30"
    "out 0x21, al"
    "mov al, 4"
    "out 0x21, al"
    "mov al, 1"
    "out 0x21, al"
    "mov al, 0xfe"
    "cmp dword ptr [0x100028], 0"
    "je 2f"
    "mov al, 0xff"
    // The I/O APIC's input 2.
    "mov dword ptr [0xfec00000], 0x14"
    "mov dword ptr [0xfec00010], 0x30"
    "2: out 0x21, al"
    "mov al, 0x34"
    "out 0x43, al"
    "mov eax, [0x100024]"
    "out 0x40, al"
    "mov al, ah"
    "out 0x40, al"
    "work"
    "tick_rb:"
    "inc dword ptr [0x7000]"
    "cmp dword ptr [0x100028], 0"
    "jne 4f"
    "mov al, 0x20"
    "out 0x20, al"
    "iretd"
    "4: lapic_write 0xb0, 0"
    "iretd"
}

guest! {
    /// Writes `p0` bytes beside the real-time clock, whose register A is `p1`. Its handler reads a register beside that of
    /// the flags, as Linux' does. Status 0.
    pub fn works_beside_real_time_clock =
    "gate 0x48, tick_rc"
    // The I/O APIC's input 8.
    "mov dword ptr [0xfec00000], 0x20"
    "mov dword ptr [0xfec00010], 0x48"
    "mov al, 0xa"
    "out 0x70, al"
    "mov eax, [0x100024]"
    "out 0x71, al"
    "mov al, 0xb"
    "out 0x70, al"
    "mov al, 0x42"
    "out 0x71, al"
    "mov al, 0xc"
    "out 0x70, al"
    "in al, 0x71"
    "work"
    "tick_rc:"
    "inc dword ptr [0x7000]"
    "mov al, 0xc"
    "out 0x70, al"
    "in al, 0x71"
    "mov al, 0xb"
    "out 0x70, al"
    "in al, 0x71"
    "lapic_write 0xb0, 0"
    "iretd"
}

guest! {
    /// Writes `p0` bytes beside timer 0 of the HPET, whose period is `p1` ticks and whose configuration is `p3`. `p2` is the entry
    /// of the I/O APIC's input 20. Status 0.
    pub fn works_beside_hpet =
    "gate 0x48, tick_rg"
    "mov dword ptr [0xfec00000], 0x38"
    "mov eax, [0x100028]"
    "mov [0xfec00010], eax"
    "mov eax, [0x10002c]"
    "mov [0xfed00100], eax"
    "mov eax, [0x100024]"
    "mov [0xfed00108], eax"
    "mov dword ptr [0xfed00010], 1"
    "work"
    "tick_rg:"
    "inc dword ptr [0x7000]"
    "mov dword ptr [0xfed00020], 1"
    "lapic_write 0xb0, 0"
    "iretd"
}

guest! {
    /// As [`works_beside_8254`] by the I/O APIC, but the second vCPU works and is interrupted, while the first halts. It begins
    /// with the word at [`super::GO`], and works when the first tick has come.
    pub fn another_works_beside_8254 =
    "trampoline start_rd, 64"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "2: sti"
    "hlt"
    "jmp 2b"
    "work_rd: cmp dword ptr [0x7004], 0"
    "je work_rd"
    "gate 0x30, tick_rd"
    // The I/O APIC's input 2, to the second.
    "mov dword ptr [0xfec00000], 0x15"
    "mov dword ptr [0xfec00010], 0x1000000"
    "mov dword ptr [0xfec00000], 0x14"
    "mov dword ptr [0xfec00010], 0x30"
    "mov al, 0x34"
    "out 0x43, al"
    "mov eax, [0x100024]"
    "out 0x40, al"
    "mov al, ah"
    "out 0x40, al"
    // Time passes by entries.
    "sti"
    "3: in al, 0x61"
    "cmp dword ptr [0x7000], 0"
    "je 3b"
    "work"
    "tick_rd:"
    "inc dword ptr [0x7000]"
    "lapic_write 0xb0, 0"
    "iretd"
    ".code16"
    "start_rd:"
    "protect start_rd"
    "mov esp, 0x80000"
    "call setup_another_works_beside_8254"
    "jmp work_rd"
}

guest! {
    /// Writes `p0` bytes beside the local APIC's timer, which interrupts every `p1` ticks and whose handler writes `p3` bytes,
    /// and counter 0 of the 8254, whose count is `p2` and which is served first. Status 0.
    pub fn works_beside_two_timers =
    "gate 0x50, device_rf"
    "gate 0x40, tick_rf"
    "lapic_write 0x3e0, 0xb"
    "lapic_write 0x320, 0x20040"
    "mov eax, [0x100024]"
    "lapic_write 0x380, eax"
    "mov dword ptr [0xfec00000], 0x14"
    "mov dword ptr [0xfec00010], 0x50"
    "mov al, 0x34"
    "out 0x43, al"
    "mov eax, [0x100028]"
    "out 0x40, al"
    "mov al, ah"
    "out 0x40, al"
    "work"
    "tick_rf:"
    "mov ecx, [0x10002c]"
    "3: out 0xe9, al"
    "loop 3b"
    "device_rf:"
    "inc dword ptr [0x7000]"
    "lapic_write 0xb0, 0"
    "iretd"
}

guest! {
    /// Writes `p0` bytes, all but one in ten with interrupts off, beside the local APIC's timer, which interrupts every `p1`
    /// ticks, and counter 0 of the 8254, whose count is `p2`, by the I/O APIC. The 8254's ticks are counted in the word behind
    /// that of the others. Status 0.
    pub fn seldom_takes_interrupts =
    "gate 0x30, device_re"
    "gate 0x40, tick_re"
    "lapic_write 0x3e0, 0xb"
    "lapic_write 0x320, 0x20040"
    "mov eax, [0x100024]"
    "lapic_write 0x380, eax"
    "mov dword ptr [0xfec00000], 0x14"
    "mov dword ptr [0xfec00010], 0x30"
    "mov al, 0x34"
    "out 0x43, al"
    "mov eax, [0x100028]"
    "out 0x40, al"
    "mov al, ah"
    "out 0x40, al"
    "mov ebx, [0x100020]"
    "2: cli"
    "mov ecx, 9"
    "3: out 0xe9, al"
    "loop 3b"
    "sti"
    "out 0xe9, al"
    "sub ebx, 10"
    "jnz 2b"
    "exit 0"
    "tick_re:"
    "inc dword ptr [0x7000]"
    "lapic_write 0xb0, 0"
    "iretd"
    "device_re:"
    "inc dword ptr [0x7004]"
    "lapic_write 0xb0, 0"
    "iretd"
}
