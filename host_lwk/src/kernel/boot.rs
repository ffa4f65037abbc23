// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the Multiboot 2 entry (32-bit, no paging) to `kernel_main` in 64-bit mode, with the first 4 GiB (`layout::MAPPED_BYTES`)
//! mapped one to one; and from a start-up message (real mode, at a page below 1 MiB) to `start::secondary_main`, for the other CPUs.

use core::arch::global_asm;

extern "C" {
    /// The first and the last byte, plus one, of what another CPU runs first; to be copied to a page below 1 MiB.
    pub static boot_low: u8;
    pub static boot_low_end: u8;
    /// The top of the next CPU's stack, and what `start::secondary_main` is called with.
    pub static mut boot_next_stack: u64;
    pub static mut boot_next_argument: u64;
}

global_asm!(
    ".pushsection .multiboot, \"a\"",
    ".balign 8",
    // Magic, i386, length, checksum (Multiboot 2: 3.1.1); modules page-aligned (3.1.7); the end.
    "boot_header: .long 0xe85250d6, 0, boot_header_end - boot_header",
    ".long -(0xe85250d6 + boot_header_end - boot_header)",
    ".short 6, 0",
    ".long 8",
    ".short 0, 0",
    ".long 8",
    "boot_header_end:",
    ".popsection",
    //
    ".pushsection .boot, \"ax\"",
    ".code32",
    ".globl boot_start",
    "boot_start:",
    "cli",
    "cld",
    "mov edi, eax",
    "mov esi, ebx",
    // Page tables: one top entry, four directories of 2 MiB pages.
    "mov eax, offset boot_pdpt + 3",
    "mov [boot_pml4], eax",
    "mov eax, offset boot_pd + 3",
    "xor ecx, ecx",
    "2: mov [boot_pdpt + ecx * 8], eax",
    "add eax, 0x1000",
    "inc ecx",
    "cmp ecx, 4",
    "jb 2b",
    "mov eax, 0x83",
    "xor ecx, ecx",
    "3: mov [boot_pd + ecx * 8], eax",
    "add eax, 0x200000",
    "inc ecx",
    "cmp ecx, 2048",
    "jb 3b",
    "lgdt [boot_gdt_register]",
    "mov ebp, offset boot_first_64",
    "boot_long_mode:",
    // No-execute is there unless firmware switched it off: Intel's can have it on again (IA32_MISC_ENABLE, bit 34; SDM 4: 2.1).
    "xor eax, eax",
    "cpuid",
    "cmp ebx, 0x756e6547", // Genu…
    "jne 4f",
    "mov ecx, 0x1a0",
    "rdmsr",
    "btr edx, 2",
    "jnc 4f",
    "wrmsr",
    // EFER: LME, and NXE (bit 11) where there is no-execute (bit 20 of EDX).
    "4: mov eax, 0x80000001",
    "cpuid",
    "shr edx, 9",
    "and edx, 0x800",
    "mov ebx, edx",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "or eax, ebx",
    "wrmsr",
    // CR4: PAE, OSFXSR, OSXMMEXCPT. CR0: PG, WP, NE, MP, and not EM, CD or NW (SDM 3A: 10.8.5).
    "mov eax, cr4",
    "or eax, 0x620",
    "mov cr4, eax",
    "mov eax, offset boot_pml4",
    "mov cr3, eax",
    "mov eax, cr0",
    "and eax, 0x9ffffffb",
    "or eax, 0x80010022",
    "mov cr0, eax",
    ".byte 0xea", // a far jump to 64-bit code
    ".long boot_segments",
    ".word 8",
    ".code64",
    "boot_segments:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov edi, edi",
    "mov esi, esi",
    "mov eax, ebp",
    "xor ebp, ebp",
    "jmp rax",
    "boot_first_64:",
    "mov rsp, offset boot_stack_top",
    "call kernel_main",
    "boot_end: cli",
    "hlt",
    "jmp boot_end",
    "boot_next_64:",
    "mov rsp, [boot_next_stack]",
    "mov rdi, [boot_next_argument]",
    "call secondary_main",
    "jmp boot_end",
    //
    // Another CPU, in protected mode.
    ".code32",
    "boot_next:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov ebp, offset boot_next_64",
    "jmp boot_long_mode",
    ".code64",
    ".popsection",
    //
    ".pushsection .data",
    ".balign 16",
    "boot_gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff", // 0x08: 64-bit code
    ".quad 0x00cf93000000ffff", // 0x10: data
    ".quad 0x00cf9b000000ffff", // 0x18: 32-bit code
    "boot_gdt_end:",
    "boot_gdt_register: .word boot_gdt_end - boot_gdt - 1",
    ".quad boot_gdt",
    ".balign 8",
    ".globl boot_next_stack, boot_next_argument",
    "boot_next_stack: .quad 0",
    "boot_next_argument: .quad 0",
    ".popsection",
    //
    ".pushsection .bss",
    ".balign 4096",
    "boot_pml4: .skip 4096",
    "boot_pdpt: .skip 4096",
    "boot_pd: .skip 16384",
    ".skip 65536",
    "boot_stack_top:",
    ".popsection",
    //
    // Where another CPU begins: at a page below 1 MiB, which its code segment names.
    ".pushsection .rodata",
    ".globl boot_low, boot_low_end",
    "boot_low:",
    ".code16",
    "cli",
    "mov ax, cs",
    "mov ds, ax",
    ".byte 0x66, 0x0f, 0x01, 0x16", // a GDT register with an address of 32 bits
    ".word boot_low_gdt - boot_low",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xea", // a far jump to 32-bit code
    ".long boot_next",
    ".word 0x18",
    "boot_low_gdt: .word boot_gdt_end - boot_gdt - 1",
    ".long boot_gdt",
    "boot_low_end:",
    ".code64",
    ".popsection",
);
