// SPDX-License-Identifier: MIT OR Apache-2.0
//! The saved state of the devices on a bus: each in a section of its own, by its name.
#![forbid(unsafe_code)]

use super::{Bus, Listed, Slot};
use crate::alloc_ext::{NoMemory, TryPush};
use crate::devices::device::Device;
use crate::host::{Host, Lock};
use crate::names::DeviceId;
use crate::sections::{self, Section, SectionName};
use crate::state_io::{StateError, StateReader};
use alloc::vec::Vec;

/// What stands before a device's name in the path of its section.
pub const DEVICE_PATH: &str = "device/";

impl<H: Host> Bus<H> {
    /// Appends a section for each device, in the order in which they came. Their workers are at rest. *Thread.*
    pub fn save(&self, to: &mut Vec<u8>) -> Result<(), StateError> {
        for listed in self.listed()? {
            let Some(slot) = self.slot(listed.slot) else {
                continue;
            };
            let device = slot.device.lock();
            let Some(device) = device.as_ref() else {
                continue;
            };
            let path = SectionName::new(format_args!("{DEVICE_PATH}{}", listed.name));
            sections::write_section(to, &path, listed.kind, |record| {
                record.u64(slot.doorbells.rung())?;
                device.save(record)
            })?;
        }
        Ok(())
    }

    /// Whether the section's device is there, and of its kind. *Thread.*
    pub fn has_device_of(&self, section: &Section<'_>) -> Result<bool, StateError> {
        Ok(self.listed()?.iter().any(|listed| is_of(listed, section)))
    }

    /// The name of the first device without a section. *Thread.*
    pub fn find_unsaved(
        &self,
        is_saved: impl Fn(&DeviceId) -> bool,
    ) -> Result<Option<DeviceId>, StateError> {
        let all = self.listed()?;
        let unsaved = all.iter().find(|listed| !is_saved(&listed.name));
        Ok(unsaved.map(|listed| listed.name))
    }

    /// Gives a device its section's state. *Thread.*
    ///
    /// # Errors
    /// What is wrong with the section. The device is as it was then, and others may have been restored.
    pub fn restore(&self, section: &Section<'_>) -> Result<(), StateError> {
        for listed in self.listed()? {
            if let Some(slot) = self.slot(listed.slot).filter(|_| is_of(&listed, section)) {
                self.restore_slot(slot, section)?;
                self.update_regions(listed.slot);
            }
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

    /// A copy, so that no lock is held while a device is called.
    fn listed(&self) -> Result<Vec<Listed>, NoMemory> {
        let attached = self.attached.lock();
        let mut all = Vec::new();
        for listed in &attached.devices {
            all.try_push(*listed)?;
        }
        Ok(all)
    }
}

fn is_of(listed: &Listed, section: &Section<'_>) -> bool {
    let name = section.path.strip_prefix(DEVICE_PATH);
    name == Some(listed.name.as_str()) && listed.kind == section.kind
}
