// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lightweight kernel: one address space, memory in large pieces, threads at home on cores, no tick. It knows nothing of
//! virtual machines; of `palacios_core` it uses `alloc_ext` alone.

pub mod acpi;
pub mod apic;
pub mod boot;
pub mod cpu;
mod cpuid;
mod features;
mod intrinsics;
mod layout;
pub mod loader;
pub mod log;
pub mod memory;
mod panic;
pub mod predictions;
pub mod serial;
pub mod serial_input;
pub mod shared;
pub mod stop;
mod symbols;
pub mod sync;
pub mod thread;
pub mod time;
mod trap;

use loader::Boot;
use palacios_core::alloc_ext::NoMemory;

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
        stop::STOP_OTHERS.set(|| apic::local(apic::LocalApic::stop_others));
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
