// SPDX-License-Identifier: MIT OR Apache-2.0
//! A panic: all CPUs stop, and the log says what went wrong and which calls led to it.

use super::{cpu, layout, serial, stop, symbols};
use crate::log;
use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;

/// How many callers a backtrace names at most.
const DEPTH: usize = 32;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack)) };
    die(rbp, None, format_args!("{info}"))
}

/// Says what went wrong and by which calls, and stops all CPUs.
pub fn die(rbp: u64, rip: Option<u64>, what: fmt::Arguments<'_>) -> ! {
    stop::stop_all_but_this();
    serial::break_log_lock();
    log!("panic on CPU {}: {what}", cpu::current());
    rip.into_iter().for_each(|at| log_call(at, at));
    log_callers(rbp);
    stop::halt()
}

/// Follows the frame pointers from `rbp` on.
fn log_callers(rbp: u64) {
    let mut frame = rbp;
    for _ in 0..DEPTH {
        if frame < 1 << 20 || frame % 8 != 0 || frame > i64::MAX as u64 {
            break;
        }
        let words = frame as *const u64;
        // SAFETY: all memory is mapped; a wrong frame pointer that leads elsewhere faults, and the CPU halts in `stop_all_but_this`.
        let (before, at) = unsafe { (words.read(), words.add(1).read()) };
        if !layout::kernel().contains(&at) {
            break;
        }
        // A call that does not come back may be its function's last instruction.
        log_call(at, at - 1);
        // The stack grows down: a caller's frame lies higher.
        if before <= frame {
            break;
        }
        frame = before;
    }
}

/// Writes one line of a backtrace: the return address `at`, and the function that holds `inside`.
fn log_call(at: u64, inside: u64) {
    match symbols::function_at(inside) {
        Some((name, offset)) => log!(
            "  {at:#x} {:#} + {offset:#x}",
            rustc_demangle::demangle(name)
        ),
        None => log!("  {at:#x}"),
    }
}
