// SPDX-License-Identifier: MIT OR Apache-2.0
//! The common configuration of a virtio device on PCI (virtio 1.2: 4.1.4.3), as functions of an offset in it.
//!
//! | offset | bytes | register |
//! | --- | --- | --- |
//! | 0x00 | 4 | which 32 features are read at 0x04 |
//! | 0x04 | 4 | features offered |
//! | 0x08 | 4 | which 32 features are written at 0x0c |
//! | 0x0c | 4 | features accepted |
//! | 0x10 | 2 | vector for changes of the configuration |
//! | 0x12 | 2 | number of queues |
//! | 0x14 | 1 | device status |
//! | 0x15 | 1 | generation of the configuration |
//! | 0x16 | 2 | which queue the rest is about |
//! | 0x18 | 2 | its size |
//! | 0x1a | 2 | its vector |
//! | 0x1c | 2 | it is enabled |
//! | 0x1e | 2 | where its doorbell is |
//! | 0x20, 0x28, 0x30 | 8 | its descriptors, available ring, used ring |
#![forbid(unsafe_code)]

use super::contract::InterruptSink;
use super::transport::{Interface, Virtio};
use crate::addr::Gpa;

/// How many bytes it has.
pub const BYTES: u64 = 0x38;

/// A read of `size` bytes. What is behind the end is zero.
pub fn read(virtio: &Virtio, offset: u64, size: u8) -> u64 {
    let image = image(virtio);
    let mut bytes = [0; 8];
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let there = image.get(from..).unwrap_or_default();
    let wanted = bytes.iter_mut().zip(there).take(size.into());
    wanted.for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(bytes)
}

/// All registers as they read now.
fn image(virtio: &Virtio) -> [u8; BYTES as usize] {
    let registers = &virtio.registers;
    let half = |features: u64, select| match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    };
    let queue = virtio.selected();
    let [size, vector, enabled, doorbell] = match queue {
        Some(queue) => [
            queue.size,
            queue.vector,
            queue.is_ready().into(),
            registers.queue_select,
        ],
        // There is no such queue: its size is 0 (virtio 1.2: 4.1.4.3.1).
        None => [0, u16::MAX, 0, 0],
    };
    let rings = queue.map_or([0; 3], |queue| {
        [queue.descriptors.0, queue.available.0, queue.used.0]
    });
    let mut image = [0; BYTES as usize];
    let mut rest = image.as_mut_slice();
    let mut put = |bytes: &[u8]| {
        if let Some((to, behind)) = core::mem::take(&mut rest).split_at_mut_checked(bytes.len()) {
            to.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            rest = behind;
        }
    };
    let offered = virtio.offered(Interface::Modern);
    put(&registers.offered_select.to_le_bytes());
    put(&half(offered, registers.offered_select).to_le_bytes());
    put(&registers.accepted_select.to_le_bytes());
    put(&half(registers.accepted, registers.accepted_select).to_le_bytes());
    put(&registers.config_vector.to_le_bytes());
    put(&(virtio.queues.len() as u16).to_le_bytes());
    put(&[virtio.status(), registers.generation]);
    put(&registers.queue_select.to_le_bytes());
    for word in [size, vector, enabled, doorbell] {
        put(&word.to_le_bytes());
    }
    for ring in rings {
        put(&ring.to_le_bytes());
    }
    image
}

/// A write of the `size` low bytes of `value`. It is lost where no register of this size is; those of 8 bytes are written in halves, too
/// (virtio 1.2: 4.1.3.1).
pub fn write(virtio: &mut Virtio, offset: u64, size: u8, value: u64, sink: &mut dyn InterruptSink) {
    let (word, long) = (value as u16, value as u32);
    match (offset, size) {
        (0x00, 4) => virtio.registers.offered_select = long,
        (0x08, 4) => virtio.registers.accepted_select = long,
        (0x0c, 4) => {
            let shift = match virtio.registers.accepted_select {
                0 => 0,
                1 => 32,
                _ => return,
            };
            let mask = u64::from(u32::MAX) << shift;
            virtio.accept(Interface::Modern, mask, u64::from(long) << shift);
        }
        (0x10, 2) => virtio.registers.config_vector = virtio.vector(word),
        (0x14, 1) => virtio.write_status(Interface::Modern, value as u8),
        (0x16, 2) => virtio.registers.queue_select = word,
        (0x1a, 2) => {
            let vector = virtio.vector(word);
            if let Some(queue) = virtio.selected_for_writes() {
                queue.vector = vector;
            }
        }
        (0x18 | 0x1c.., 2 | 4 | 8) => write_queue(virtio, offset, size, value, sink),
        _ => {}
    }
}

/// A write to the registers that set a queue up: they are the driver's until the queue is enabled.
fn write_queue(
    virtio: &mut Virtio,
    offset: u64,
    size: u8,
    value: u64,
    sink: &mut dyn InterruptSink,
) {
    let Some(queue) = virtio.selected_for_writes() else {
        return;
    };
    if queue.is_ready() {
        return;
    }
    match (offset, size) {
        (0x18, 2) => queue.size = value as u16,
        (0x1c, 2) if value == 1 => {
            if let Err(error) = queue.enable() {
                virtio.break_down(error, sink);
            }
        }
        (0x20..0x38, 4 | 8) if offset % u64::from(size) == 0 => {
            let address = match offset & !7 {
                0x20 => &mut queue.descriptors,
                0x28 => &mut queue.available,
                _ => &mut queue.used,
            };
            *address = Gpa(match (size, offset & 4) {
                (8, _) => value,
                (_, 0) => address.0 & !u64::from(u32::MAX) | value & u64::from(u32::MAX),
                _ => address.0 & u64::from(u32::MAX) | value << 32,
            });
        }
        _ => {}
    }
}
