/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The machine's I/O ports, and the two ways by which a kernel ends its VM. */
#pragma once
#include <stdint.h>

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void outb(uint16_t port, uint8_t value)
{
	asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outw(uint16_t port, uint16_t value)
{
	asm volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

/* Ends the VM with the exit status `value * 2 + 1`. */
static inline void test_exit(uint8_t value)
{
	outb(0xf4, value);
}

/* Ends the VM by ACPI: sleep type S5, with the bit that says "now" (ACPI 6.5: 4.8.3.2.1). */
static inline void power_off(void)
{
	outw(0x604, 5 << 10 | 1 << 13);		/* S5 is type 5 in v3vee's tables, */
	outw(0x604, 0 << 10 | 1 << 13);		/* and type 0 in QEMU's. */
}
