// SPDX-License-Identifier: MIT OR Apache-2.0
//! `palacios_core` in this kernel: the host contract, and the VMs that the command line asks for.

mod checks;
mod console;
mod guests;
mod host;
mod ram;
mod requests;
mod virtualization;

use crate::kernel::loader::Boot;
use crate::kernel::{acpi, memory, serial, thread};
use crate::log;
use alloc::vec::Vec;
use guests::Guest;
use host::Lwk;
use palacios_core::alloc_ext::TryPush;
use palacios_core::backend::any::Hardware;

/// Ctrl-]: the next key is for the kernel.
const ESCAPE: u8 = 0x1d;

/// What the control thread does: makes the VMs, and serves them until the last one has ended.
#[inline(never)]
pub fn main(boot: &'static Boot) {
    if boot.option("conformance") {
        checks::run();
        acpi::power_off()
    }
    if boot.option("panic") {
        panic!("the command line asks for it");
    }
    if boot.option("panic=stack") {
        overflow(&[0; 64]);
    }
    match virtualization::enable() {
        Err(why) => log!("cannot run guests here: {why}"),
        Ok(hardware) => serve(launch_all(boot, &hardware)),
    }
    acpi::power_off()
}

/// Calls itself until there is no stack left.
#[expect(unconditional_recursion)]
fn overflow(words: &[u64; 64]) {
    let more = *words;
    overflow(core::hint::black_box(&more));
    core::hint::black_box(words);
}

fn launch_all(boot: &'static Boot, hardware: &Hardware<Lwk>) -> Vec<Guest> {
    let features = hardware.features();
    log!(
        "{} with {} address-space tags",
        features.backend,
        features.address_space_tags
    );
    let mut guests = Vec::new();
    for request in requests::vm_requests(boot.command_line()) {
        let module = boot.modules().find(|module| module.name == request.image);
        if let Some(guest) = guests::launch(hardware, request, module, guests.len()) {
            if guests.try_push(guest).is_err() {
                log!("{}: no memory", request.image);
            }
        }
    }
    if guests.is_empty() {
        log!("no VM runs; the command line asks for one by vm=guest.img cores=1-2");
    }
    guests
}

/// Serves consoles and keys and looks for guests that have ended, in turn, until the last one has. Sleeps while there is nothing to
/// do.
fn serve(mut guests: Vec<Guest>) {
    let allocations = memory::allocations();
    let mut escaped = false;
    loop {
        // No short cut: each console is served by being asked.
        let more = guests
            .iter()
            .fold(false, |more, guest| guest.serve_console() | more);
        while let Some(byte) = serial::receive(serial::LOG) {
            if core::mem::take(&mut escaped) {
                command(&guests, byte);
            } else if byte == ESCAPE {
                escaped = true;
            } else if let Some(guest) = guests.first() {
                guest.type_in(byte);
            }
        }
        // No short cut: a guest that has ended logs that when it is asked.
        let running = guests
            .iter_mut()
            .filter_map(|guest| (!guest.has_ended()).then_some(()))
            .count();
        if running == 0 {
            break;
        }
        if !more {
            thread::park();
        }
    }
    log!(
        "{} allocations since the launch",
        memory::allocations() - allocations
    );
}

/// A key after Ctrl-].
fn command(guests: &[Guest], key: u8) {
    match key {
        b's' => guests.iter().for_each(Guest::log_statistics),
        b'q' => guests.iter().for_each(Guest::stop),
        ESCAPE => guests
            .iter()
            .take(1)
            .for_each(|guest| guest.type_in(ESCAPE)),
        _ => log!("Ctrl-] s: statistics; Ctrl-] q: stop all VMs; Ctrl-] Ctrl-]: the key itself"),
    }
}
