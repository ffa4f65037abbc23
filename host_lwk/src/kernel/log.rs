// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's log: lines on the first serial port, which a guest's console may share.

use super::serial;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

/// The longest line; what is longer is cut.
const LINE_BYTES: usize = 1024;

/// The last byte on the log's port ended a line.
static AT_LINE_START: AtomicBool = AtomicBool::new(true);

/// A line on its way to the log's port, in one piece.
struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(slot) = self.bytes.get_mut(self.len) {
                *slot = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Writes a line to the log. In any context.
pub fn log(line: fmt::Arguments<'_>) {
    let mut text = Line {
        bytes: [0; LINE_BYTES],
        len: 0,
    };
    let begin = match AT_LINE_START.swap(true, Ordering::Relaxed) {
        true => "",
        false => "\r\n",
    };
    let _ = write!(text, "{begin}lwk: {line}\r\n");
    serial::send(serial::LOG, text.bytes.get(..text.len).unwrap_or_default());
}

/// Writes a guest's output to the log's port, as it is.
pub fn guest_output(bytes: &[u8]) {
    if let Some(last) = bytes.last() {
        AT_LINE_START.store(*last == b'\n', Ordering::Relaxed);
        serial::send(serial::LOG, bytes);
    }
}

/// Writes a line to the log.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::kernel::log::log(format_args!($($argument)*)) };
}
