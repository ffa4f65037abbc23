// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small guests, assembled into the tests themselves.

pub mod memory;

/// Where their code lies in guest memory.
pub const BASE: u32 = 0x10_0000;
/// How often they write to ports before their lines begin.
pub const SETUP_OUTS: u64 = 2;
/// Where some of them wait for a word of the test's that is not 0.
pub const GO: u64 = 0x7004;
/// Where their parameters lie.
const PARAMETERS: usize = 32;

/// `guest! { pub fn name = "lines"… }`: a Multiboot kernel of 32-bit code, Intel syntax.
///
/// Parameters are the words at `BASE + 32 + 4 * n`. What they all have:
/// - `addr reg, label` loads a label's address, to EAX or ESI;
/// - `lapic_write register, value` and `lapic_read register` (to EAX) reach the local APIC;
/// - an IDT at 0x6000, the local APIC switched on, and its id in EBP, when the lines begin;
/// - `gate vector, label` sets a vector of that IDT;
/// - `trampoline label, words` copies so many words of code to page 8, where other vCPUs can start;
/// - `protect label`, of 16 words, is where they do, at that label: what follows is 32-bit code again, where it was linked;
/// - `exit status` ends the VM.
#[macro_export]
macro_rules! guest {
    ($(#[$doc:meta])* pub fn $name:ident = $($line:literal)*) => {
        core::arch::global_asm!(
            concat!(".pushsection .rodata.guest_", stringify!($name), ", \"a\"\n"),
            concat!(".balign 16\n.global guest_begin_", stringify!($name), "\n"),
            concat!("guest_begin_", stringify!($name), ":\n"),
            ".code32",
            // `mov eax, imm32` or `mov esi, imm32`: Intel syntax knows no differences of labels.
            ".macro addr reg, label",
            ".ifc \\reg, eax\n.byte 0xb8\n.else\n.byte 0xbe\n.endif",
            concat!(".long 0x100000 + \\label - guest_begin_", stringify!($name)),
            ".endm",
            ".macro lapic_write register, value",
            "mov dword ptr [0xfee00000 + \\register], \\value",
            ".endm",
            ".macro lapic_read register",
            "mov eax, [0xfee00000 + \\register]",
            ".endm",
            ".macro gate vector, label",
            "addr eax, \\label",
            "mov [0x6000 + 8 * \\vector], ax",
            "mov [0x6002 + 8 * \\vector], cs",
            "mov word ptr [0x6004 + 8 * \\vector], 0x8e00",
            "shr eax, 16",
            "mov [0x6006 + 8 * \\vector], ax",
            ".endm",
            ".macro trampoline label, words",
            "addr esi, \\label",
            "mov edi, 0x8000",
            "mov ecx, \\words",
            "2: mov eax, [esi]",
            "mov [edi], eax",
            "add esi, 4",
            "add edi, 4",
            "dec ecx",
            "jnz 2b",
            ".endm",
            ".macro protect start",
            "cli",
            "mov ax, cs",
            "mov ds, ax",
            // data32 lgdt [73f - start]
            ".byte 0x66, 0x0f, 0x01, 0x16",
            ".word 73f - \\start",
            "mov eax, cr0",
            "or eax, 1",
            "mov cr0, eax",
            // data32 jmp 8:74f
            ".byte 0x66, 0xea",
            concat!(".long 0x100000 + 74f - guest_begin_", stringify!($name)),
            ".word 8",
            ".balign 8",
            "72: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff",
            "73: .word 23",
            ".long 0x8000 + 72b - \\start",
            ".code32",
            "74: mov eax, 16",
            "mov ds, eax",
            "mov ss, eax",
            "mov es, eax",
            ".endm",
            ".macro exit status",
            "mov eax, \\status",
            "out 0xf4, al",
            ".endm",
            // Writes `p0` bytes with interrupts on, then ends with status 0.
            ".macro work",
            "mov ebx, [0x100020]",
            "sti",
            "75: out 0xe9, al",
            "dec ebx",
            "jnz 75b",
            "exit 0",
            ".endm",
            // The Multiboot header, with addresses (3.1.2, 3.1.3).
            ".long 0x1badb002, 0x10000, -(0x1badb002 + 0x10000)",
            concat!(".long 0x100000, 0x100000, 0x100000 + guest_end_", stringify!($name), " - guest_begin_", stringify!($name), ", 0"),
            concat!(".long 0x100000 + 77f - guest_begin_", stringify!($name)),
            ".long 0, 0, 0, 0, 0, 0, 0, 0",
            concat!("setup_", stringify!($name), ":"),
            "mov word ptr [0x5ff8], 0x7ff",
            "mov dword ptr [0x5ffa], 0x6000",
            "lidt [0x5ff8]",
            "lapic_write 0xf0, 0x1ff",
            "lapic_read 0x20",
            "shr eax, 24",
            "mov ebp, eax",
            // Firmware left the timer running, and the PIC pair open for it.
            "mov al, 0x30",
            "out 0x43, al",
            "mov al, 0xff",
            "out 0x21, al",
            "ret",
            "77: mov esp, 0x90000",
            concat!("call setup_", stringify!($name)),
            $($line,)*
            ".purgem addr\n.purgem lapic_write\n.purgem lapic_read\n.purgem gate\n.purgem trampoline\n.purgem protect\n.purgem exit\n.purgem work",
            ".code64",
            concat!(".global guest_end_", stringify!($name), "\n"),
            concat!("guest_end_", stringify!($name), ":\n.popsection"),
        );
        $(#[$doc])*
        pub fn $name(parameters: &[u32]) -> Vec<u8> {
            extern "C" {
                #[link_name = concat!("guest_begin_", stringify!($name))]
                static BEGIN: u8;
                #[link_name = concat!("guest_end_", stringify!($name))]
                static END: u8;
            }
            let (begin, end) = (&raw const BEGIN, &raw const END);
            // SAFETY: the bytes between two labels of the assembly above.
            let code = unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) };
            $crate::guests::with_parameters(code, parameters)
        }
    };
}

pub mod ticks;

/// A kernel with its parameters filled in.
pub fn with_parameters(code: &[u8], parameters: &[u32]) -> Vec<u8> {
    assert!(parameters.len() <= 8);
    let mut kernel = code.to_vec();
    for (to, parameter) in kernel[PARAMETERS..].chunks_exact_mut(4).zip(parameters) {
        to.copy_from_slice(&parameter.to_le_bytes());
    }
    kernel
}

guest! {
    /// Executes `p0` CPUIDs, then `p1` OUTs to the debug port, and ends with status 0.
    pub fn cpuid_and_out =
    "mov edi, [0x100020]"
    "2: mov eax, 1"
    "xor ecx, ecx"
    "cpuid"
    "dec edi"
    "jnz 2b"
    "mov ecx, [0x100024]"
    "mov al, 0x2e"
    "3: out 0xe9, al"
    "loop 3b"
    "exit 0"
}

/// Where [`probe_registers`] finds what to try: entries of four words. The first is one of the kinds below, and says behind it
/// whether it faulted.
pub const PROBES: u64 = 0x1_0000;
/// RDMSR of the second word, to the third and the fourth.
pub const PROBE_RDMSR: u32 = 0;
/// WRMSR of the second word, from the third and the fourth.
pub const PROBE_WRMSR: u32 = 1;
/// CR4 from the third word, which then holds what is read back; it is 0 again behind it.
pub const PROBE_CR4: u32 = 2;
/// XSETBV of the second word, from the third and the fourth, with CR4 as it is.
pub const PROBE_XSETBV: u32 = 3;
/// The end.
pub const PROBE_END: u32 = 4;
/// The vector of the fault is added, times this.
pub const PROBE_VECTOR: u32 = 0x100;

guest! {
    /// Waits for `GO`, then tries what stands at `PROBES`, one by one, notes what came of it, and ends with status 0.
    pub fn probe_registers =
    "gate 6, undefined_p"
    "gate 13, protection_p"
    "2: pause"
    "cmp dword ptr [0x7004], 0"
    "je 2b"
    "mov ebx, 0x10000"
    "next_p: mov ecx, [ebx + 4]"
    "mov eax, [ebx]"
    "cmp eax, 1"
    "je write_p"
    "jb read_p"
    "cmp eax, 3"
    "je xcr_p"
    "jb cr4_p"
    "exit 0"
    "read_p: addr esi, done_p"
    "rdmsr"
    "mov [ebx + 8], eax"
    "mov [ebx + 12], edx"
    "jmp done_p"
    "write_p: addr esi, done_p"
    "mov eax, [ebx + 8]"
    "mov edx, [ebx + 12]"
    "wrmsr"
    "jmp done_p"
    "xcr_p: addr esi, done_p"
    "mov eax, [ebx + 8]"
    "mov edx, [ebx + 12]"
    "xsetbv"
    "jmp done_p"
    "cr4_p: addr esi, done_p"
    "mov eax, [ebx + 8]"
    "mov cr4, eax"
    "mov eax, cr4"
    "mov [ebx + 8], eax"
    "mov eax, 0"
    "mov cr4, eax"
    "done_p: add ebx, 16"
    "jmp next_p"
    // The handlers go on at ESI.
    "protection_p: add esp, 4"
    "mov eax, 0xd00"
    "jmp fault_p"
    "undefined_p: mov eax, 0x600"
    "fault_p: or [ebx], eax"
    "mov [esp], esi"
    "iretd"
}

guest! {
    /// Has a task gate for #UD. Executes UD2 (`p0` is 0) or `INT 6` (1), or jumps to a task-state segment.
    pub fn switches_tasks =
    "gate 6, nowhere_a"
    "mov byte ptr [0x6035], 0x85"
    "mov word ptr [0x6032], 8"
    "mov dword ptr [0x5008], 0x51000067"
    "mov dword ptr [0x500c], 0x00008900"
    "mov word ptr [0x5ff8], 0xf"
    "mov dword ptr [0x5ffa], 0x5000"
    "lgdt [0x5ff8]"
    "mov eax, [0x100020]"
    "cmp eax, 1"
    "je 2f"
    "ja 3f"
    "ud2"
    "2: int 6"
    "3: .byte 0xea, 0, 0, 0, 0, 8, 0"
    "nowhere_a: exit 1"
}

guest! {
    /// Waits in HLT for `p0` interrupts of the local APIC's timer, which fires every `p1` ticks; ends with status 0.
    pub fn halt_for_ticks =
    "gate 0x40, tick_a"
    "lapic_write 0x3e0, 0xb"
    "lapic_write 0x320, 0x20040"
    "mov eax, [0x100024]"
    "lapic_write 0x380, eax"
    "2: cli"
    "mov eax, [0x7000]"
    "cmp eax, [0x100020]"
    "jae 3f"
    "sti"
    "hlt"
    "jmp 2b"
    "3: exit 0"
    "tick_a:"
    "inc dword ptr [0x7000]"
    "lapic_write 0xb0, 0"
    "iretd"
}

guest! {
    /// Waits for `p0` interrupts, one after another, of the local APIC's timer, armed for `p1` ticks and longer each time,
    /// without ever leaving guest mode by itself; ends with status 0.
    pub fn spin_for_ticks =
    "gate 0x40, tick_b"
    "lapic_write 0x3e0, 0xb"
    "lapic_write 0x320, 0x40"
    "mov esi, [0x100024]"
    "sti"
    "xor ebx, ebx"
    "2: lapic_write 0x380, esi"
    "3: cmp [0x7000], ebx"
    "je 3b"
    "inc ebx"
    "add esi, 7"
    "cmp ebx, [0x100020]"
    "jb 2b"
    "exit 0"
    "tick_b:"
    "inc dword ptr [0x7000]"
    "lapic_write 0xb0, 0"
    "iretd"
}

guest! {
    /// Does everything a running guest does, `p0` times: once to warm up, then between the marks 1 and 2.
    pub fn steady =
    "gate 0x40, tick_c"
    "lapic_write 0x3e0, 0xb"
    "lapic_write 0x320, 0x40"
    "mov esi, 2"
    "2: mov edi, [0x100020]"
    "3: mov eax, 1"
    "xor ecx, ecx"
    "cpuid"
    "mov ecx, 0x1b"
    "rdmsr"
    "mov al, 0x2e"
    "out 0xe9, al"
    "in al, 0x61"
    "lapic_read 0x390"
    "mov ebx, [0x7000]"
    "lapic_write 0x380, 1000"
    "cli"
    "4: cmp [0x7000], ebx"
    "jne 5f"
    "sti"
    "hlt"
    "cli"
    "jmp 4b"
    "5: sti"
    "dec edi"
    "jnz 3b"
    "dec esi"
    "jz 6f"
    "prefetchnta [1]"
    "jmp 2b"
    "6: prefetchnta [2]"
    "exit 0"
    "tick_c:"
    "inc dword ptr [0x7000]"
    "lapic_write 0xb0, 0"
    "iretd"
}

guest! {
    /// `p0` vCPUs add to counters `p1` times, one in each of `p2` pages, `p3` bytes apart. Each also keeps a word of its
    /// own there. Status 0 if all of them add up, 1 if a word was not what its owner had written, 2 if a sum is wrong.
    pub fn workers =
    "trampoline start_d, 64"
    // INIT and two start-up messages at page 8, to all but oneself.
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "lapic_write 0x300, 0xc4608"
    "work_d:"
    "xor ebx, ebx"
    "2: mov edi, 0x200000"
    "mov ecx, [0x100028]"
    "3: lock inc dword ptr [edi]"
    "cmp [edi + 64 + 4 * ebp], ebx"
    "jne 8f"
    "inc dword ptr [edi + 64 + 4 * ebp]"
    "add edi, [0x10002c]"
    "dec ecx"
    "jnz 3b"
    "inc ebx"
    "cmp ebx, [0x100024]"
    "jb 2b"
    "lock inc dword ptr [0x7000]"
    "test ebp, ebp"
    "jz 4f"
    "5: cli"
    "hlt"
    "jmp 5b"
    // The first waits for the others, and looks at the sums.
    "4: pause"
    "mov eax, [0x7000]"
    "cmp eax, [0x100020]"
    "jne 4b"
    "mov edi, 0x200000"
    "mov ecx, [0x100028]"
    "6: mov eax, [edi]"
    "mov ebx, [0x100020]"
    "7: sub eax, [0x100024]"
    "dec ebx"
    "jnz 7b"
    "test eax, eax"
    "jnz 9f"
    "add edi, [0x10002c]"
    "dec ecx"
    "jnz 6b"
    "exit 0"
    "8: exit 1"
    "9: exit 2"
    // Where the others start, copied to page 8.
    ".code16"
    "start_d:"
    "protect start_d"
    "lapic_read 0x20"
    "shr eax, 24"
    "mov ebp, eax"
    "shl eax, 12"
    "lea esp, [eax + 0x80000]"
    "jmp work_d"
}

guest! {
    /// `p0` vCPUs take turns, `p1` in all, one after the other; whose turn it is not spins. Status 0.
    pub fn turns =
    "trampoline start_z, 64"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "lapic_write 0x300, 0xc4608"
    // Whose turn it is, is at 0x7000; how many there were, at 0x7004.
    "take_z: lea ebx, [ebp + 1]"
    "cmp ebx, [0x100020]"
    "jne 3f"
    "xor ebx, ebx"
    "3: pause"
    "cmp [0x7000], ebp"
    "jne 3b"
    "inc dword ptr [0x7004]"
    "mov eax, [0x7004]"
    "cmp eax, [0x100024]"
    "jae 4f"
    "mov [0x7000], ebx"
    "jmp 3b"
    "4: exit 0"
    ".code16"
    "start_z:"
    "protect start_z"
    "lapic_read 0x20"
    "shr eax, 24"
    "mov ebp, eax"
    "jmp take_z"
}

guest! {
    /// Reads the time stamp counter `p0` times, now and then with an exit in between. Status 0 if it never went back, else 1.
    pub fn counter =
    "xor esi, esi"
    "xor edi, edi"
    "mov ebp, [0x100020]"
    "2: rdtsc"
    "cmp edx, edi"
    "jb 4f"
    "ja 3f"
    "cmp eax, esi"
    "jb 4f"
    "3: mov esi, eax"
    "mov edi, edx"
    "test ebp, 7"
    "jnz 5f"
    "xor eax, eax"
    "cpuid"
    "5: dec ebp"
    "jnz 2b"
    "exit 0"
    "4: exit 1"
}

guest! {
    /// Two vCPUs wake each other by interrupts, `p0` times; both wait in HLT. Status 0.
    pub fn ping_pong =
    "gate 0x50, ring_e"
    "trampoline start_e, 64"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "play_e:"
    // The turn's number is at 0x7000; even ones are the first vCPU's.
    "3: cli"
    "mov eax, [0x7000]"
    "cmp eax, [0x100020]"
    "jae 5f"
    "mov ebx, eax"
    "and ebx, 1"
    "cmp ebx, ebp"
    "jne 4f"
    "lock inc dword ptr [0x7000]"
    "lapic_write 0x300, 0xc4050"
    "jmp 3b"
    "4: sti"
    "hlt"
    "jmp 3b"
    "5: test ebp, ebp"
    "jnz 6f"
    "exit 0"
    "6: hlt"
    "jmp 6b"
    "ring_e:"
    "lapic_write 0xb0, 0"
    "iretd"
    ".code16"
    "start_e:"
    "protect start_e"
    "mov esp, 0x80000"
    "call setup_ping_pong"
    "jmp play_e"
}

guest! {
    /// Sends itself `p0` NMIs. The handler sends another, which must wait until the handler has returned. Status 0 if each
    /// came once, 1 if one came inside of the handler.
    pub fn nmis =
    "gate 2, nmi_f"
    "xor ebx, ebx"
    "2: lapic_write 0x300, 0x4400"
    "add ebx, 2"
    // The word at 0x7000 counts what came.
    "3: cmp [0x7000], ebx"
    "jb 3b"
    "cmp ebx, [0x100020]"
    "jb 2b"
    "exit 0"
    "nmi_f:"
    "cmp dword ptr [0x7004], 0"
    "jne 8f"
    "inc dword ptr [0x7000]"
    "test dword ptr [0x7000], 1"
    "jz 5f"
    "mov dword ptr [0x7004], 1"
    "lapic_write 0x300, 0x4400"
    "mov ecx, 40"
    "4: mov eax, 1"
    "push ecx"
    "push ebx"
    "cpuid"
    "pop ebx"
    "pop ecx"
    "loop 4b"
    "mov dword ptr [0x7004], 0"
    "5: iretd"
    "8: exit 1"
}

guest! {
    /// Resets the machine `p0` times, each time after a second vCPU has started; status 0. Memory outlives a reset.
    pub fn resets =
    "trampoline start_g, 8"
    "mov dword ptr [0x7004], 0"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "3: cmp word ptr [0x7004], 0"
    "je 3b"
    "mov eax, [0x7000]"
    "inc dword ptr [0x7000]"
    "cmp eax, [0x100020]"
    "jae 4f"
    "mov al, 0xfe"
    "out 0x64, al"
    // The reset comes before the next instruction.
    "exit 1"
    "4: exit 0"
    ".code16"
    "start_g:"
    "xor ax, ax"
    "mov ds, ax"
    "inc word ptr [0x7004]"
    "5: hlt"
    "jmp 5b"
    ".code32"
}

guest! {
    /// One vCPU halts; another waits for the word at [`GO`], and then resets the machine by an INIT to the first. It says a
    /// word when that is sent. Status 0 after the reset.
    pub fn init_to_the_first =
    "inc dword ptr [0x7000]"
    "cmp dword ptr [0x7000], 2"
    "je 3f"
    "trampoline start_p, 16"
    "mov dword ptr [0x7004], 0"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "2: hlt"
    "jmp 2b"
    "3: exit 0"
    ".code16"
    "start_p:"
    "protect start_p"
    "4: cmp dword ptr [0x7004], 0"
    "je 4b"
    "lapic_write 0x300, 0xc4500"
    "mov al, 0x2e"
    "out 0xe9, al"
    "5: jmp 5b"
}

guest! {
    /// Starts a second vCPU twice, which says what it finds in CR0 and in the register `p0`, then switches its caches off and
    /// writes 1 to the register; resets the machine, and does so again. Status 0 if an INIT left both alone and a reset
    /// neither, so that it had caches at first; else 1.
    pub fn restarts =
    "trampoline start_h, 16"
    "mov eax, [0x100020]"
    "mov [0x700c], eax"
    "mov dword ptr [0x7004], 0"
    "mov ebx, 0x10"
    "xor esi, esi"
    "2: lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "3: cmp word ptr [0x7004], 0"
    "je 3b"
    "cmp [0x7000], ebx"
    "jne 8f"
    "cmp [0x7010], esi"
    "jne 8f"
    "mov dword ptr [0x7004], 0"
    "xor ebx, 0x40000000"
    "xor esi, 1"
    "jnz 2b"
    "cmp dword ptr [0x7008], 0"
    "jne 9f"
    "inc dword ptr [0x7008]"
    "mov al, 0xfe"
    "out 0x64, al"
    "8: exit 1"
    "9: exit 0"
    ".code16"
    "start_h:"
    "xor ax, ax"
    "mov ds, ax"
    "mov eax, cr0"
    "mov [0x7000], eax"
    // CD and MP.
    "or eax, 0x40000002"
    "mov cr0, eax"
    "mov ecx, [0x700c]"
    "rdmsr"
    "mov [0x7010], eax"
    "mov eax, 1"
    "wrmsr"
    "inc word ptr [0x7004]"
    "5: hlt"
    "jmp 5b"
    ".code32"
}

guest! {
    /// Jumps to where there is no memory.
    pub fn jumps_away =
    "mov eax, 0x50000000"
    "jmp eax"
}

guest! {
    /// Faults, and cannot be told of it.
    pub fn triple_faults =
    "mov word ptr [0x5ff8], 0"
    "lidt [0x5ff8]"
    "ud2"
}

guest! {
    /// Touches all of its memory from 2 MiB on, a page at a time.
    pub fn touches_all =
    "mov edi, 0x200000"
    "2: mov [edi], edi"
    "add edi, 0x1000"
    "jmp 2b"
}

guest! {
    /// Never leaves guest mode by itself.
    pub fn spin =
    "cli"
    "2: jmp 2b"
}

guest! {
    /// Two vCPUs halt with interrupts off and wake each other by NMIs, `p0` times in all. Status 0.
    pub fn nmi_ping_pong =
    "gate 2, nmi_k"
    "trampoline start_k, 64"
    "cli"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "3: hlt"
    "jmp 3b"
    "nmi_k:"
    "inc dword ptr [0x7000]"
    "mov eax, [0x7000]"
    "cmp eax, [0x100020]"
    "jae 5f"
    "lapic_write 0x300, 0xc4400"
    "iretd"
    "5: exit 0"
    "6: hlt"
    "jmp 6b"
    ".code16"
    "start_k:"
    "protect start_k"
    "mov esp, 0x98000"
    "call setup_nmi_ping_pong"
    "lapic_write 0x300, 0xc4400"
    "7: hlt"
    "jmp 7b"
}

guest! {
    /// Halts until the serial port tells of a byte that waits below its FIFO's trigger level. Says a word when it is about
    /// to. Status 0 if that is what it tells.
    pub fn serial_timeout =
    "gate 0x44, received_m"
    // The I/O APIC's input 4.
    "mov dword ptr [0xfec00000], 0x18"
    "mov dword ptr [0xfec00010], 0x44"
    // A FIFO with a trigger level of 8; the received-data interrupt.
    "mov edx, 0x3fa"
    "mov al, 0x81"
    "out dx, al"
    "mov edx, 0x3f9"
    "mov al, 1"
    "out dx, al"
    "mov al, 0x2e"
    "out 0xe9, al"
    "2: sti"
    "hlt"
    "jmp 2b"
    "received_m:"
    "mov edx, 0x3fa"
    "in al, dx"
    "cmp al, 0xcc"
    "jne 8f"
    "exit 0"
    "8: exit 1"
}

guest! {
    /// Waits in HLT for `p0` periodic interrupts of the real-time clock, each of which another vCPU acknowledges. Status 0.
    pub fn acknowledged_by_another =
    "gate 0x48, tick_n"
    "trampoline start_n, 8"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    // The I/O APIC's input 8.
    "mov dword ptr [0xfec00000], 0x20"
    "mov dword ptr [0xfec00010], 0x48"
    // Periodic interrupts, 1024 Hz; the index stays at the flags.
    "mov al, 0xb"
    "out 0x70, al"
    "mov al, 0x42"
    "out 0x71, al"
    "mov al, 0xc"
    "out 0x70, al"
    "2: sti"
    "hlt"
    "jmp 2b"
    "tick_n:"
    "inc dword ptr [0x7000]"
    "mov eax, [0x7000]"
    "cmp eax, [0x100020]"
    "jae 3f"
    "lapic_write 0xb0, 0"
    "iretd"
    "3: exit 0"
    ".code16"
    "start_n:"
    "xor ax, ax"
    "mov ds, ax"
    "xor bx, bx"
    "4: pause"
    "cmp bx, [0x7000]"
    "je 4b"
    "mov bx, [0x7000]"
    "in al, 0x71"
    "jmp 4b"
    ".code32"
}

guest! {
    /// Halts until the real-time clock's alarm, which comes each second, interrupts. Status 0.
    pub fn alarm =
    "gate 0x48, alarm_q"
    // The I/O APIC's input 8.
    "mov dword ptr [0xfec00000], 0x20"
    "mov dword ptr [0xfec00010], 0x48"
    // Any second, minute and hour; then the alarm's interrupt.
    "mov ebx, 1"
    "2: mov eax, ebx"
    "out 0x70, al"
    "mov al, 0xff"
    "out 0x71, al"
    "add ebx, 2"
    "cmp ebx, 5"
    "jbe 2b"
    "mov al, 0xb"
    "out 0x70, al"
    "mov al, 0x22"
    "out 0x71, al"
    "3: sti"
    "hlt"
    "jmp 3b"
    "alarm_q:"
    "exit 0"
}

guest! {
    /// One vCPU halts; another executes `p0` OUTs to the debug port. Status 0.
    pub fn another_prints =
    "trampoline start_o, 8"
    "mov eax, [0x100020]"
    "mov [0x7000], eax"
    "lapic_write 0x300, 0xc4500"
    "lapic_write 0x300, 0xc4608"
    "2: hlt"
    "jmp 2b"
    ".code16"
    "start_o:"
    "xor ax, ax"
    "mov ds, ax"
    "mov al, 0x2e"
    "3: out 0xe9, al"
    "dec word ptr [0x7000]"
    "jnz 3b"
    "exit 0"
    ".code32"
}

guest! {
    /// Ejects each PCI device that its owner wants.
    pub fn ejects =
    "2: mov dx, 0xae04"
    "in eax, dx"
    "test eax, eax"
    "jz 2b"
    "mov dx, 0xae08"
    "out dx, eax"
    "jmp 2b"
}

guest! {
    /// Sleeps for ever.
    pub fn sleep =
    "2: cli"
    "hlt"
    "jmp 2b"
}
