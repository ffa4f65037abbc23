// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hostile processors at their local APICs and the I/O APIC: registers written with every value, modes switched out of
//! order, messages of all kinds to all kinds of destinations. See `interrupts::testing` for what must hold.
#![forbid(unsafe_code)]

use crate::Target;
use palacios_core::interrupts::testing::Apics;

/// The target.
pub const TARGET: Target = Target {
    name: "apic",
    run,
    header_bytes: 1,
    step_bytes: 8,
};

fn run(data: &[u8]) {
    let Some((cpus, steps)) = data.split_first() else {
        return;
    };
    let mut apics = Apics::new(1 + u32::from(cpus % 5));
    for step in crate::steps(steps).0 {
        apics.step(step);
    }
    apics.settle();
}
