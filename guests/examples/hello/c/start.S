# SPDX-License-Identifier: MIT OR Apache-2.0
# Where the loader enters: 32-bit protected mode, no paging, interrupts off (Multiboot 0.6.96: 3.2).
	.intel_syntax noprefix

	.section .multiboot, "a"
	.balign 4
	.long 0x1badb002		# magic number
	.long 0				# flags: we ask the loader for nothing
	.long -0x1badb002		# checksum: the three add up to zero

	.text
	.globl start
start:
	mov esp, offset stack_top
	push ebx			# second argument: where the loader's information lies
	push eax			# first argument: the loader's magic number
	call kernel_main
halt:
	cli
	hlt
	jmp halt

	.bss
	.balign 16
	.skip 16384
stack_top:
	.section .note.GNU-stack, "", @progbits
