# SPDX-License-Identifier: MIT OR Apache-2.0
# Where the loader enters: 32-bit protected mode, no paging, interrupts off (Multiboot 0.6.96: 3.2). The compiler makes 64-bit
# code, so this switches to 64-bit mode, which needs paging: the first GiB is mapped to itself.
.section .multiboot, "a"
    .balign 4
    .long 0x1badb002            # magic number
    .long 0                     # flags: we ask the loader for nothing
    .long -0x1badb002           # checksum: the three add up to zero

.text
.code32
.globl start
start:
    mov esp, offset stack_top
    mov edi, eax                # first argument: the loader's magic number
    mov esi, ebx                # second argument: where its information lies
    mov eax, 0x620              # CR4: PAE; OSFXSR and OSXMMEXCPT, since compiled Rust uses SSE
    mov cr4, eax
    mov eax, offset level_4
    mov cr3, eax
    mov ecx, 0xc0000080         # the register EFER:
    mov eax, 0x100              # LME, 64-bit mode
    xor edx, edx
    wrmsr
    mov eax, 0x80000013         # CR0: PG, paging; ET, MP, PE
    mov cr0, eax
    lgdt [gdt_register]
    push 8                      # to the code segment at 8 in the GDT,
    mov eax, offset start_64    # and there to start_64
    push eax
    retf
.code64
start_64:
    xor eax, eax
    mov ss, eax
    mov ds, eax
    mov es, eax
    call kernel_main
1:  cli
    hlt
    jmp 1b

.data
    .balign 4096
level_4:                        # each entry: address, writable (2), present (1)
    .quad level_3 + 3
    .skip 4088
level_3:
    .quad level_2 + 3
    .skip 4088
level_2:                        # 512 pages of 2 MiB (0x80)
    .set page, 0
    .rept 512
    .quad page + 0x83
    .set page, page + 0x200000
    .endr
gdt:
    .quad 0, 0x00209a0000000000 # at 8: 64-bit code
gdt_register:
    .word 15
    .long gdt

.bss
    .balign 16
    .skip 16384
stack_top:
