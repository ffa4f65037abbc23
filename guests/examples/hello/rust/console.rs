// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console: a 16550A serial port, by polling. Register names are those of its datasheet.

use crate::machine::{inb, outb};
use core::fmt::{self, Write};

const COM1: u16 = 0x3f8;
const DATA: u16 = COM1;
const IER: u16 = COM1 + 1;
const FCR: u16 = COM1 + 2;
const LCR: u16 = COM1 + 3;
const LSR: u16 = COM1 + 5;

pub fn init() {
    outb(IER, 0); // no interrupts: we poll
    outb(LCR, 0x80); // the divisor is at DATA and IER now:
    outb(DATA, 1); // 115200 baud
    outb(IER, 0);
    outb(LCR, 0x03); // 8 bits, no parity, 1 stop bit
    outb(FCR, 0x01); // FIFO on
}

pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while inb(LSR) & 0x20 == 0 {} // until the transmitter has room
            outb(DATA, byte);
        }
        Ok(())
    }
}

#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::console::Console, $($arg)*);
    }};
}
