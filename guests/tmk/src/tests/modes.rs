// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real mode, protected mode without paging, 32-bit code in long mode.

use crate::{check, tests, Outcome};
use core::arch::{asm, global_asm};

tests!(real_mode, protected_mode, compatibility_mode);

/// Where the real-mode code is copied to; its results lie at `RESULT`.
const LOW: u64 = 0x8000;
const RESULT: u64 = 0x9000;

// Down from 64-bit to real mode, some instructions there that exit, and back up. It runs at LOW, so that addresses are
// computed from its own beginning.
global_asm!(
    ".pushsection .rodata",
    ".globl low_begin, low_end, low_protected",
    "low_begin:",
    ".code64",
    "mov [0x9100], rsp",
    "sidt [0x9110]",
    "push 0x18",
    "push offset at_32",
    "retfq",
    ".code32",
    "low_32:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov ss, eax",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax", // paging off
    "mov ecx, 0xc0000080",
    "rdmsr",
    "and eax, 0xfffffeff",
    "wrmsr", // long mode off
    // Protected mode without paging: exits by port and CPUID.
    "mov eax, 0x12345678",
    "mov dx, 0x80",
    "out dx, eax",
    "xor eax, eax",
    "cpuid",
    "mov [0x9000], ebx",
    ".byte 0xea; .long 0x8000 + (low_16 - low_begin); .word 0x20",
    ".code16",
    "low_16:",
    "mov ax, 0x28",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "mov eax, cr0",
    "and al, 0xfe",
    "mov cr0, eax",
    ".byte 0xea; .word low_real - low_begin; .word 0x800",
    "low_real:",
    "xor ax, ax",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "mov sp, 0x7000",
    "lidt [0x9120]",
    "mov eax, 0x40000000",
    "cpuid",
    "mov [0x9004], ebx",
    // A software interrupt through the real-mode table.
    "mov word ptr [0x80 * 4], offset in_handler",
    "mov word ptr [0x80 * 4 + 2], 0x800",
    "mov cx, 0",
    "int 0x80",
    "mov [0x9008], cx",
    // String output, and a port read.
    "mov ax, 0x800",
    "mov ds, ax",
    "mov si, offset in_text",
    "mov cx, 4",
    "mov dx, 0xe9",
    "cld",
    "rep outsb",
    "xor ax, ax",
    "mov ds, ax",
    "mov [0x900c], cx",
    "mov dx, 0x5678",
    "in al, dx",
    "mov [0x9010], al",
    // And back: protected mode, paging, long mode.
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xea; .long 0x8000 + (low_up - low_begin); .word 0x18",
    "low_handler:",
    "mov cx, 0x4321",
    "iret",
    "low_text: .ascii \"real\"",
    ".code32",
    "low_up:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax",
    ".byte 0xea; .long 0x8000 + (low_64 - low_begin); .word 8",
    ".code64",
    "low_64:",
    "mov rsp, [0x9100]",
    "lidt [0x9110]",
    "ret",
    "low_end:",
    ".set at_32, 0x8000 + low_32 - low_begin",
    ".set in_handler, low_handler - low_begin",
    ".set in_text, low_text - low_begin",
    ".popsection",
);

extern "C" {
    static low_begin: u8;
    static low_end: u8;
}

fn go_down_and_up() {
    // SAFETY: low memory is ours; the code comes back in the mode it left, with all callee-saved registers as they were.
    unsafe {
        let (begin, end) = (&raw const low_begin, &raw const low_end);
        core::ptr::copy_nonoverlapping(begin, LOW as *mut u8, end as usize - begin as usize);
        core::ptr::write_bytes(RESULT as *mut u8, 0, 0x100);
        // The real-mode interrupt table: at 0, 0x400 bytes.
        (0x9120 as *mut u16).write_volatile(0x3ff);
        (0x9122 as *mut u64).write_volatile(0);
        asm!(
            "push rbx", "push rbp", "call {}", "pop rbp", "pop rbx",
            in(reg) LOW, out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
}

fn result(offset: u64) -> u32 {
    // SAFETY: low memory is ours.
    unsafe { ((RESULT + offset) as *const u32).read_volatile() }
}

fn real_mode() -> Outcome {
    go_down_and_up();
    check!(result(4) == u32::from_le_bytes(*b"V3VE"), "CPUID");
    check!(result(8) == 0x4321, "a software interrupt");
    check!(result(12) as u16 == 0, "string output");
    check!(result(16) as u8 == 0xff, "a port");
    Ok(())
}

fn protected_mode() -> Outcome {
    go_down_and_up();
    check!(
        result(0) == crate::io::cpuid(0, 0)[1],
        "CPUID without paging"
    );
    Ok(())
}

fn compatibility_mode() -> Outcome {
    let (vendor, read): (u32, u32);
    // SAFETY: 32-bit code below 4 GiB and back, on the same stack, which is below 4 GiB too.
    unsafe {
        asm!(
            "push rbx",
            "mov {keep}, rsp",
            "push 0x18", "lea rax, [rip + 78f]", "push rax", "retfq",
            ".code32",
            "78: xor eax, eax", "cpuid", "mov esi, ebx",
            "mov ebx, 0xfec00000", "mov dword ptr [ebx], 1", "mov edi, [ebx + 0x10]",
            ".byte 0xea", ".long 79f", ".word 8", // far jump to 64-bit code
            ".code64",
            "79: mov rsp, {keep}",
            "pop rbx",
            keep = out(reg) _, out("rax") _, out("rcx") _, out("rdx") _, out("esi") vendor, out("edi") read,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        )
    };
    check!(vendor == crate::io::cpuid(0, 0)[1]);
    check!(read >> 16 & 0xff == 23, "the I/O APIC, by 32-bit code");
    Ok(())
}
