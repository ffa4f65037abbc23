// SPDX-License-Identifier: MIT OR Apache-2.0
//! The stop flag: whether the machine goes down, and how a CPU halts for good.

use super::sync::Hook;
use core::sync::atomic::{AtomicBool, Ordering};

/// The machine goes down: an NMI halts the CPU that takes it.
static GOING_DOWN: AtomicBool = AtomicBool::new(false);
/// Sends an NMI to all other CPUs. The local APIC's code sets it.
pub static STOP_OTHERS: Hook = Hook::new();

/// Halts this CPU for good.
pub fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// Whether the machine goes down.
pub fn going_down() -> bool {
    GOING_DOWN.load(Ordering::Relaxed)
}

/// Has the machine go down: stops all other CPUs. Halts this one if another began before, or this one comes here again.
pub fn stop_all_but_this() {
    x86_64::instructions::interrupts::disable();
    if GOING_DOWN.swap(true, Ordering::AcqRel) {
        halt();
    }
    STOP_OTHERS.call();
}
