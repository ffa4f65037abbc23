// SPDX-License-Identifier: MIT OR Apache-2.0
//! The saved state of the devices on a bus: each in a section of its own, by its name.
#![forbid(unsafe_code)]

use super::{Bus, Slot};
use crate::devices::device::Device;
use crate::host::{Host, Lock};
use crate::names::DeviceId;
use crate::sections::{self, Section, SectionName};
use crate::state_io::{StateError, StateReader};
use alloc::vec::Vec;

/// What stands before a device's name in the path of its section.
const DEVICE_PATH: &str = "device/";

impl<H: Host> Bus<H> {
    /// Appends a section for each device, in the order in which they came. Their workers are at rest. *Thread.*
    pub fn save(&self, to: &mut Vec<u8>) -> Result<(), StateError> {
        for listed in &self.attached.lock().devices {
            let Some(slot) = self.slot(listed.slot) else {
                continue;
            };
            let device = slot.device.lock();
            let Some(device) = device.as_ref() else {
                continue;
            };
            sections::write_section(to, &path_of(&listed.name), listed.kind, |record| {
                record.u64(slot.doorbells.rung())?;
                device.save(record)
            })?;
        }
        Ok(())
    }

    /// Gives the state in a section to the device of its path and kind; nothing happens if there is none. *Thread.*
    ///
    /// # Errors
    /// What is wrong with the section. The device is as it was then, and others may have been restored.
    pub fn restore(&self, section: &Section<'_>) -> Result<(), StateError> {
        let name = section.path.strip_prefix(DEVICE_PATH);
        let found = name
            .and_then(DeviceId::new)
            .and_then(|name| self.find(&name));
        let is_of_kind = |slot: &&Slot<H>| {
            let device = slot.device.lock();
            device
                .as_ref()
                .is_some_and(|device| device.name() == section.kind)
        };
        let slot = found.and_then(|(number, _)| self.slot(number));
        if let Some(slot) = slot.filter(is_of_kind) {
            self.restore_slot(slot, section)?;
            self.update_regions(slot.number);
        }
        Ok(())
    }

    fn restore_slot(&self, slot: &Slot<H>, section: &Section<'_>) -> Result<(), StateError> {
        let mut from = StateReader::new(section.content);
        let rung = from.u64()?;
        let mut restored = Ok(());
        let restore = |device: &mut dyn Device| {
            restored = device
                .restore(&mut from)
                .and_then(|()| from.end("device.end"));
        };
        self.call(slot, restore);
        restored?;
        slot.doorbells.take();
        for region in (0..64u16).filter(|region| rung.wrapping_shr((*region).into()) & 1 != 0) {
            let _ = slot.doorbells.ring(region);
        }
        Ok(())
    }
}

/// The path of a device's section.
pub fn path_of(device: &DeviceId) -> SectionName {
    SectionName::new(format_args!("{DEVICE_PATH}{device}"))
}
