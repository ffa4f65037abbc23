// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log, and the end: what went wrong, and by which calls it came to that.

use super::boot::{kernel_begin, kernel_end};
use super::trap::GOES_DOWN;
use super::{apic, loader, serial};
use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

/// How far a backtrace goes.
const DEPTH: usize = 32;

/// The last byte on the log's port ended a line.
static AT_LINE_START: AtomicBool = AtomicBool::new(true);

/// A line on its way to the log's port, in one piece.
struct Line {
    bytes: [u8; 1024],
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
        bytes: [0; 1024],
        len: 0,
    };
    let begin = match AT_LINE_START.swap(true, Ordering::Relaxed) {
        true => "",
        false => "\r\n",
    };
    let _ = write!(text, "{begin}lwk: {line}\r\n");
    serial::send(serial::LOG, text.bytes.get(..text.len).unwrap_or_default());
}

/// Somebody's output on the log's port.
pub fn output(bytes: &[u8]) {
    if let Some(last) = bytes.last() {
        AT_LINE_START.store(*last == b'\n', Ordering::Relaxed);
        serial::send(serial::LOG, bytes);
    }
}

/// Writes a line to the log.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::kernel::panic::log(format_args!($($argument)*)) };
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack)) };
    die(rbp, None, format_args!("{info}"))
}

/// Says what went wrong and by which calls, and stops all CPUs.
pub fn die(rbp: u64, rip: Option<u64>, what: fmt::Arguments<'_>) -> ! {
    x86_64::instructions::interrupts::disable();
    if GOES_DOWN.swap(true, Ordering::AcqRel) {
        super::stop();
    }
    apic::local(apic::LocalApic::stop_others);
    serial::take_log();
    log(format_args!(
        "panic on CPU {}: {what}",
        super::cpu::current().id
    ));
    rip.into_iter().for_each(|at| tell(at, at));
    let mut frame = rbp;
    for _ in 0..DEPTH {
        if frame < 1 << 20 || frame % 8 != 0 || frame > i64::MAX as u64 {
            break;
        }
        let words = frame as *const u64;
        // SAFETY: all memory is mapped; a wrong frame pointer that leads elsewhere faults, and `die` ends that.
        let (before, at) = unsafe { (words.read(), words.add(1).read()) };
        if !(&raw const kernel_begin as u64..&raw const kernel_end as u64).contains(&at) {
            break;
        }
        // A call that does not come back may be its function's last instruction.
        tell(at, at - 1);
        // The stack grows down: a caller's frame lies higher.
        if before <= frame {
            break;
        }
        frame = before;
    }
    super::stop()
}

/// One line of a backtrace, for the function that holds `inside`.
fn tell(at: u64, inside: u64) {
    match loader::boot().and_then(|boot| boot.symbol(inside)) {
        Some((name, offset)) => log(format_args!(
            "  {at:#x} {:#} + {offset:#x}",
            rustc_demangle::demangle(name)
        )),
        None => log(format_args!("  {at:#x}")),
    }
}
