# SPDX-License-Identifier: MIT OR Apache-2.0
# The boot sector of the disk that boot_disk.py makes: reads what the disk's table says to where it says, and starts Linux by its
# 64-bit boot protocol. No boot loader is as quick in an emulator, and the kernel lies there unpacked.

# Where things are while this runs; the same numbers are in boot_disk.py.
.set TABLE, 0x8000		# of pairs: address, sectors (1 to 256); at its end: where to jump, 0
.set TABLE_SECTORS, 64
.set MAP, 0x7000		# what the BIOS says of memory
.set BOOT_PARAMS, 0x10000
.set PAGE_TABLES, 0x20000

.set E820_ENTRIES, 0x1e8	# fields of the boot parameters
.set E820_TABLE, 0x2d0

	.code16
	.globl _start
_start:	cli
	cld
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movw $_start, %sp

	# The memory map, entry by entry.
	xorl %ebx, %ebx
	movw $MAP, %di
1:	movl $0xe820, %eax
	movl $20, %ecx
	movl $0x534d4150, %edx
	int $0x15
	jc 2f
	addw $20, %di
	testl %ebx, %ebx
	jnz 1b
2:	movw %di, %bp

	lgdt descriptors
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	ljmp $8, $protected

	.code32
protected:
	movw $0x18, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	inb $0x92, %al		# all 32 lines of addresses
	orb $2, %al
	outb %al, $0x92

	movl $1, %ebx		# the next sector
	movl $TABLE, %edi
	movl $TABLE_SECTORS, %ecx
	call read
	movl $TABLE, %esi
1:	lodsl
	movl %eax, %edi
	lodsl
	movl %eax, %ecx
	jecxz 2f
	call read
	jmp 1b

	# The memory map goes into the boot parameters.
2:	pushl %edi
	movl $MAP, %esi
	movzwl %bp, %ecx
	subl %esi, %ecx
	movl %ecx, %eax
	movb $20, %dl
	divb %dl
	movb %al, BOOT_PARAMS + E820_ENTRIES
	movl $BOOT_PARAMS + E820_TABLE, %edi
	rep movsb

	# The first GiB at its own addresses, by pages of 2 MiB.
	movl $PAGE_TABLES, %edi
	movl %edi, %cr3
	xorl %eax, %eax
	movl $0x3000 / 4, %ecx
	rep stosl
	movl $PAGE_TABLES + 0x1003, PAGE_TABLES
	movl $PAGE_TABLES + 0x2003, PAGE_TABLES + 0x1000
	movl $PAGE_TABLES + 0x2000, %edi
	movl $0x83, %eax
1:	movl %eax, (%edi)
	addl $8, %edi
	addl $0x200000, %eax
	cmpl $0x40000083, %eax
	jne 1b

	popl %edi
	movl %cr4, %eax
	orb $0x20, %al		# PAE
	movl %eax, %cr4
	movl $0xc0000080, %ecx	# EFER.LME
	rdmsr
	orb $1, %ah
	wrmsr
	movl %cr0, %eax
	orl $0x80000000, %eax
	movl %eax, %cr0
	ljmp $0x10, $long

	.code64
long:	movl $BOOT_PARAMS, %esi
	jmp *%rdi

	# read: %ecx sectors from sector %ebx on to %edi; both move on.
	.code32
read:	movw $0x1f2, %dx
	movb %cl, %al
	outb %al, %dx
	movl %ebx, %eax
	orl $0xe0000000, %eax	# the first drive, by sector numbers
1:	incw %dx
	outb %al, %dx
	shrl $8, %eax
	cmpb $0xf6, %dl
	jne 1b
	incw %dx
	movb $0x20, %al		# read
	outb %al, %dx
1:	inb %dx, %al
	andb $0x88, %al
	cmpb $0x08, %al		# not busy, and has data
	jne 1b
	pushl %ecx
	movl $128, %ecx
	movb $0xf0, %dl
	rep insl
	movb $0xf7, %dl
	popl %ecx
	incl %ebx
	loop 1b
	ret

	.balign 8
	# 8: 32-bit code, 0x10: 64-bit code, 0x18: data, as the boot protocol wants them.
gdt:	.quad 0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff
descriptors:
	.word . - gdt - 1
	.long gdt

	.org 510
	.word 0xaa55
