// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lightweight kernel: one address space, memory in large pieces, threads at home on cores, no tick. It knows nothing of
//! virtual machines; of `palacios_core` it uses `alloc_ext` alone.

pub mod acpi;
pub mod apic;
pub mod boot;
pub mod cpu;
mod features;
mod intrinsics;
pub mod loader;
pub mod memory;
pub mod panic;
pub mod predictions;
pub mod serial;
pub mod sync;
pub mod thread;
pub mod time;
mod trap;

use loader::Boot;
use palacios_core::alloc_ext::NoMemory;

/// Stops this CPU for good.
pub fn stop() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// Brings the machine up: all CPUs, their timers, and what ACPI tells. Interrupts are off.
///
/// # Safety
/// Once, at the entry.
pub unsafe fn init(boot: &'static Boot) -> Result<acpi::Found, NoMemory> {
    // SAFETY: by the contract above, in the order in which one needs the other.
    unsafe {
        memory::init(boot);
        let found = acpi::init(boot.rsdp())?;
        apic::close_pics();
        cpu::init(&found)?;
        time::init(boot.option("tsc=reliable"));
        apic::measure_timer(20_000_000);
        match memory::low_page(boot) {
            Some(page) => cpu::start_others(page)?,
            None => log!("no page below 1 MiB to start other CPUs from"),
        }
        Ok(found)
    }
}

use crate::log;
