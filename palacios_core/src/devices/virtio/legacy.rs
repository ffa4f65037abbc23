// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers of version 0.9 of a virtio device on PCI, in ports (virtio 1.2: 4.1.4.10), as functions of an offset in them.
//!
//! | offset | bytes | register |
//! | --- | --- | --- |
//! | 0x00 | 4 | features offered |
//! | 0x04 | 4 | features accepted |
//! | 0x08 | 4 | the selected queue's first page; 0: it is not there |
//! | 0x0c | 2 | its size |
//! | 0x0e | 2 | which queue is selected |
//! | 0x10 | 2 | notification: the number of a queue |
//! | 0x12 | 1 | device status |
//! | 0x13 | 1 | interrupt status, which a read clears |
//! | 0x14 | 2 | with MSI-X: vector for changes of the configuration |
//! | 0x16 | 2 | with MSI-X: the selected queue's vector |
//! | 0x14 or 0x18 | | the device's configuration |
#![forbid(unsafe_code)]

use super::chain::DESCRIPTOR_BYTES;
use super::contract::InterruptSink;
use super::queue::Queue;
use super::transport::{Interface, Virtio};
use crate::addr::{Gpa, PAGE_SIZE};

/// Where the register for notifications is: a doorbell, two bytes long.
pub const NOTIFY: u64 = 0x10;
/// Where the device's configuration begins.
pub const fn config_at(has_msix: bool) -> u64 {
    match has_msix {
        true => 0x18,
        false => 0x14,
    }
}

/// A read of `size` bytes. `has_msix`: the guest has switched MSI-X on.
pub fn read(virtio: &mut Virtio, has_msix: bool, offset: u64, size: u8) -> u64 {
    if let Some(in_config) = offset.checked_sub(config_at(has_msix)) {
        return virtio.read_config(in_config, size);
    }
    let queue = virtio.selected();
    match (offset, size) {
        (0x00, 4) => virtio.offered(Interface::Legacy),
        (0x04, 4) => virtio.registers.accepted & u64::from(u32::MAX),
        (0x08, 4) => queue.map_or(0, |queue| match queue.is_ready() {
            true => queue.descriptors.0 / PAGE_SIZE,
            false => 0,
        }),
        (0x0c, 2) => queue.map_or(0, |queue| queue.max_size().into()),
        (0x0e, 2) => virtio.registers.queue_select.into(),
        (0x12, 1) => virtio.status().into(),
        (0x13, 1) => virtio.take_isr().into(),
        (0x14, 2) => virtio.registers.config_vector.into(),
        (0x16, 2) => queue.map_or(u16::MAX, |queue| queue.vector).into(),
        _ => 0,
    }
}

/// A write of the `size` low bytes of `value`.
pub fn write(
    virtio: &mut Virtio,
    has_msix: bool,
    offset: u64,
    size: u8,
    value: u64,
    sink: &mut dyn InterruptSink,
) {
    if let Some(in_config) = offset.checked_sub(config_at(has_msix)) {
        return virtio.write_config(in_config, size, value);
    }
    let word = value as u16;
    match (offset, size) {
        (0x04, 4) => {
            let mask = u64::from(u32::MAX);
            virtio.accept(Interface::Legacy, mask, value & mask);
        }
        (0x08, 4) => set_up(virtio, value as u32, sink),
        (0x0e, 2) => virtio.registers.queue_select = word,
        (NOTIFY, 2) => virtio.notify_one(word),
        (0x12, 1) => virtio.write_status(Interface::Legacy, value as u8),
        (0x14, 2) => virtio.registers.config_vector = virtio.vector(word),
        (0x16, 2) => {
            let vector = virtio.vector(word);
            if let Some(queue) = virtio.selected_for_writes() {
                queue.vector = vector;
            }
        }
        _ => {}
    }
}

/// Puts the selected queue where the driver has its pages: descriptors, available ring, and on the next page boundary the used ring
/// (virtio 1.2: 2.7.2).
fn set_up(virtio: &mut Virtio, first_page: u32, sink: &mut dyn InterruptSink) {
    let Some(queue) = virtio.selected_for_writes() else {
        return;
    };
    if first_page == 0 {
        queue.disable();
        return;
    }
    if queue.is_ready() {
        return;
    }
    let at = Gpa(u64::from(first_page).wrapping_mul(PAGE_SIZE));
    lay_out(queue, at);
    let enabled = queue.enable();
    virtio.use_legacy();
    match enabled {
        Ok(()) => virtio.notify_one(virtio.registers.queue_select),
        Err(error) => virtio.break_down(error, sink),
    }
}

fn lay_out(queue: &mut Queue, at: Gpa) {
    queue.size = queue.max_size();
    let size = u64::from(queue.size);
    queue.descriptors = at;
    queue.available = at.wrapping_add(size.wrapping_mul(DESCRIPTOR_BYTES));
    // Flags, index, entries, and the index of the event.
    let available_bytes = size.wrapping_mul(2).wrapping_add(6);
    let used = queue.available.wrapping_add(available_bytes).0;
    queue.used = Gpa(used.wrapping_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1));
}
