/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The console: a 16550A serial port, by polling. Register names are those of its datasheet. */
#include "console.h"
#include "machine.h"

enum { COM1 = 0x3f8, DATA = COM1, IER = COM1 + 1, FCR = COM1 + 2, LCR = COM1 + 3, LSR = COM1 + 5 };

void console_init(void)
{
	outb(IER, 0);			/* no interrupts: we poll */
	outb(LCR, 0x80);		/* the divisor is at DATA and IER now: */
	outb(DATA, 1);			/* 115200 baud */
	outb(IER, 0);
	outb(LCR, 0x03);		/* 8 bits, no parity, 1 stop bit */
	outb(FCR, 0x01);		/* FIFO on */
}

static void put(char c)
{
	while (!(inb(LSR) & 0x20))	/* until the transmitter has room */
		;
	outb(DATA, c);
}

void print(const char *text)
{
	for (; *text; text++)
		put(*text);
}

void print_number(unsigned number)
{
	if (number >= 10)
		print_number(number / 10);
	put('0' + number % 10);
}
