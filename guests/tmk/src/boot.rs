// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the Multiboot 1 entry (32-bit, no paging) to `kernel_main` in 64-bit mode, with the first 4 GiB mapped one to one.

use core::arch::global_asm;

global_asm!(
    ".pushsection .multiboot, \"a\"",
    ".balign 4",
    // Magic; flags: page-aligned modules, memory map; checksum (Multiboot 0.6.96: 3.1.1).
    ".long 0x1badb002",
    ".long 0x00000003",
    ".long -(0x1badb002 + 0x00000003)",
    ".popsection",
    //
    ".pushsection .boot, \"ax\"",
    ".code32",
    ".globl start",
    "start:",
    "cli",
    "mov esp, offset boot_stack_top",
    "mov edi, eax",
    "mov esi, ebx",
    // Page tables: one top entry, four directories of 2 MiB pages.
    "mov eax, offset boot_pdpt + 3",
    "mov [boot_pml4], eax",
    "mov eax, offset boot_pd + 3",
    "mov ecx, 0",
    "1: mov [boot_pdpt + ecx * 8], eax",
    "add eax, 0x1000",
    "inc ecx",
    "cmp ecx, 4",
    "jb 1b",
    "mov eax, 0x83",
    "mov ecx, 0",
    "2: mov [boot_pd + ecx * 8], eax",
    "add eax, 0x200000",
    "inc ecx",
    "cmp ecx, 2048",
    "jb 2b",
    // CR4: PAE, OSFXSR, OSXMMEXCPT. EFER: LME, NXE. CR0: PG, WP, NE, MP, and not EM.
    "mov eax, cr4",
    "or eax, 0x620",
    "mov cr4, eax",
    "mov eax, offset boot_pml4",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x900",
    "wrmsr",
    "mov eax, cr0",
    "and eax, 0xfffffffb",
    "or eax, 0x80010022",
    "mov cr0, eax",
    "lgdt [boot_gdt_register]",
    ".byte 0xea", // a far jump to 64-bit code
    ".long boot_64",
    ".word 8",
    ".code64",
    "boot_64:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov rsp, offset boot_stack_top",
    "xor ebp, ebp",
    "mov edi, edi",
    "mov esi, esi",
    "call kernel_main",
    "boot_end: cli",
    "hlt",
    "jmp boot_end",
    ".popsection",
    //
    ".pushsection .data",
    ".balign 16",
    ".globl boot_gdt",
    "boot_gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff", // 0x08: 64-bit code
    ".quad 0x00cf93000000ffff", // 0x10: data
    ".quad 0x00cf9b000000ffff", // 0x18: 32-bit code
    ".quad 0x00009b000000ffff", // 0x20: 16-bit code
    ".quad 0x000093000000ffff", // 0x28: 16-bit data
    ".quad 0x00cff3000000ffff", // 0x30: user data
    ".quad 0x00affb000000ffff", // 0x38: user 64-bit code
    ".globl boot_tss_descriptor",
    "boot_tss_descriptor: .quad 0, 0", // 0x40: the TSS
    ".quad 0x00cf13000000ffff",        // 0x50: data that is not present
    "boot_gdt_end:",
    ".globl boot_gdt_register",
    "boot_gdt_register: .word boot_gdt_end - boot_gdt - 1",
    ".quad boot_gdt",
    ".popsection",
    //
    ".pushsection .bss",
    ".balign 4096",
    ".globl boot_pml4, boot_pd",
    "boot_pml4: .skip 4096",
    "boot_pdpt: .skip 4096",
    "boot_pd: .skip 16384",
    ".skip 65536",
    "boot_stack_top:",
    ".popsection",
);
