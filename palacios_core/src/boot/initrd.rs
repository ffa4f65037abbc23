// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine's initial file systems as one: Linux takes several that follow each other at multiples of 4.

use super::writer::Writer;
use crate::addr::{Gpa, NotRam};
use crate::bytes::align_up;
use crate::image::Machine;
use crate::interfaces::GuestMemory;

/// The length of all of them together; zero if there is none.
pub(super) fn bytes(machine: &Machine<'_>) -> u64 {
    machine.initrds().fold(0, |end, initrd| {
        align_up(end, 4).saturating_add(initrd.len() as u64)
    })
}

/// Writes them to `start`, a multiple of 4, with zeros between them.
pub(super) fn write(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    start: u64,
) -> Result<(), NotRam> {
    let mut to = Writer {
        memory,
        at: Gpa(start),
    };
    for initrd in machine.initrds() {
        to.align(4)?;
        to.bytes(initrd)?;
    }
    Ok(())
}
