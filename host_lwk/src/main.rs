// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lightweight kernel that runs virtual machines on cores of their own: `kernel` is the kernel, `shim` embeds
//! `palacios_core` in it.
#![no_std]
#![no_main]

extern crate alloc;

mod kernel;
mod shim;

use kernel::loader::Boot;
use kernel::thread::Thread;
use kernel::{acpi, cpu, loader, memory, serial, serial_input, start, stop, thread, time};
use palacios_core::alloc_ext::{try_box, NoMemory};

/// # Safety
/// For the start code, on the first CPU.
#[no_mangle]
unsafe extern "C" fn kernel_main(magic: u32, info: u32) -> ! {
    // SAFETY: by the contract above.
    unsafe { cpu::set_current(&cpu::FIRST) };
    serial::init();
    // SAFETY: by the contract above.
    let Some(boot) = (unsafe { loader::init(magic, info) }) else {
        log!("not started by a Multiboot 2 loader");
        stop::halt()
    };
    // SAFETY: as above.
    match unsafe { start::init(boot) } {
        Ok(topology) => begin(boot, topology),
        Err(NoMemory) => {
            log!("too little memory to start");
            acpi::power_off()
        }
    }
}

/// The kernel is up: the control thread takes over, and this CPU idles.
fn begin(boot: &'static Boot, topology: acpi::Topology) -> ! {
    log!(
        "{} cores, {} MiB free, time stamp counter {} MHz{}",
        cpu::count(),
        memory::free_bytes() >> 20,
        time::tsc_hz() / 1_000_000,
        if time::tsc_stable() {
            ""
        } else {
            ", not stable"
        }
    );
    let control = Thread::new(0).and_then(|control| {
        let job = try_box(move || shim::main(boot))?;
        Thread::start(&control, job);
        Ok(control)
    });
    match control {
        Ok(control) => {
            // It stays: its job ends with the machine.
            let control = core::mem::ManuallyDrop::new(control);
            let control: *const Thread = &raw const **control;
            // SAFETY: as said.
            serial_input::listen(&topology, cpu::current(), unsafe { &*control });
        }
        Err(NoMemory) => log!("too little memory for a thread"),
    }
    thread::idle()
}
