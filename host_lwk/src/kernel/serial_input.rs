// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt of serial ports: it wakes one thread, which reads what came in.

use super::acpi::Topology;
use super::thread::Thread;
use super::trap::{self, vectors};
use super::{apic, serial};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Woken when something came in.
static READER: AtomicPtr<Thread> = AtomicPtr::new(null_mut());

/// Has what comes in raise an interrupt on a CPU, which wakes `reader`; it stays.
pub fn listen(topology: &Topology, cpu: u32, reader: &'static Thread) {
    READER.store(core::ptr::from_ref(reader).cast_mut(), Ordering::Release);
    trap::register(vectors::SERIAL, interrupted);
    for irq in serial::irqs() {
        apic::route(topology, irq, vectors::SERIAL, cpu);
    }
}

fn interrupted() {
    // SAFETY: the reader stays.
    if let Some(reader) = unsafe { READER.load(Ordering::Acquire).as_ref() } {
        reader.unpark();
    }
}
