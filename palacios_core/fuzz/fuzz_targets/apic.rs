// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hostile processors at their local APICs and the I/O APIC: registers written with every value, modes switched out of
//! order, messages of all kinds to all kinds of destinations. See `interrupts::testing` for what must hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palacios_core::interrupts::testing::Apics;

fuzz_target!(|data: &[u8]| {
    let Some((cpus, steps)) = data.split_first() else {
        return;
    };
    let mut apics = Apics::new(1 + u32::from(cpus % 5));
    for step in steps.as_chunks::<8>().0 {
        apics.step(*step);
    }
    apics.settle();
});
