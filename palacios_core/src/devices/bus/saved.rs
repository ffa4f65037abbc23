// SPDX-License-Identifier: MIT OR Apache-2.0
//! The saved state of the devices on a bus: each in a section of its own, by its name.
#![forbid(unsafe_code)]

use super::{Bus, DeviceInfo, Slot};
use crate::devices::device::Device;
use crate::devices::pci::Bdf;
use crate::devices::{self, Kind};
use crate::host::{Host, Lock};
use crate::names::DeviceId;
use crate::sections::{self, Section, SectionName};
use crate::state_io::{StateError, StateReader};
use alloc::vec::Vec;

/// What stands before a device's name in the path of its section.
const DEVICE_PATH: &str = "device/";
/// The section of the address register of PCI.
pub const PCI_PATH: &str = "pci";
/// Its kind.
pub const PCI_KIND: &str = "address";
const VERSION: u32 = 1;

/// What stands before a device's own record.
struct Head {
    /// Its place: see [`place_of`].
    place: u16,
    /// The doorbells that its worker has not heard yet.
    rung: u64,
}

impl Head {
    fn read(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        from.version(VERSION)?;
        let (place, rung) = (from.u16()?, from.u64()?);
        Ok(Self { place, rung })
    }
}

/// A device that was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedDevice<'a> {
    /// What it was known by.
    pub id: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// The first of its ports, if its kind may be at several places.
    pub port: Option<u16>,
    /// Its slot of the PCI bus, if its kind may be in any.
    pub slot: Option<u8>,
    /// Its place: see [`place_of`].
    pub place: Option<u16>,
}

impl<'a> SavedDevice<'a> {
    /// The device that a section is of; `None` if it is of something else.
    pub fn of(section: &Section<'a>) -> Result<Option<Self>, StateError> {
        let Some(id) = section.path.strip_prefix(DEVICE_PATH) else {
            return Ok(None);
        };
        let head = Head::read(&mut StateReader::new(section.content))?;
        let place = (head.place != 0).then_some(head.place);
        let is_pci = kind_of(section.kind).is_some_and(|kind| kind.is_pci);
        Ok(Some(Self {
            id,
            kind: section.kind,
            port: place.filter(|_| !is_pci),
            slot: place
                .filter(|_| is_pci)
                .map(|place| Bdf::of_bits(place).slot()),
            place,
        }))
    }
}

fn kind_of(name: &str) -> Option<&'static Kind> {
    devices::KINDS
        .iter()
        .copied()
        .find(|kind| kind.name == name)
}

/// Where a device is whose kind may be at several places: its first port, or the number of its PCI function.
pub fn place_of(device: &DeviceInfo) -> Option<u16> {
    let (kind, first) = (kind_of(device.kind)?, device.regions.first()?);
    match kind.is_pci {
        true => Bdf::of_region(first).map(Bdf::bits),
        false if kind.places.is_empty() => None,
        false => u16::try_from(first.at).ok(),
    }
}

impl<H: Host> Bus<H> {
    /// Appends a section for each device, in the order in which they came. Their workers are at rest. *Thread.*
    pub fn save(&self, to: &mut Vec<u8>) -> Result<(), StateError> {
        let path = SectionName::new(format_args!("{PCI_PATH}"));
        sections::write_section(to, &path, PCI_KIND, |record| {
            record.u32(VERSION)?;
            record.u32(self.pci.address())
        })?;
        for info in self.devices()? {
            let Some(slot) = self
                .find(&info.name)
                .and_then(|(number, _)| self.slot(number))
            else {
                continue;
            };
            let device = slot.device.lock();
            let Some(device) = device.as_ref() else {
                continue;
            };
            sections::write_section(to, &path_of(&info.name), info.kind, |record| {
                record.u32(VERSION)?;
                record.u16(place_of(&info).unwrap_or(0))?;
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
        if (section.path, section.kind) == (PCI_PATH, PCI_KIND) {
            let mut from = StateReader::new(section.content);
            from.version(VERSION)?;
            self.pci.set_address(from.u32()?);
            return from.end("pci.end");
        }
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
        let rung = Head::read(&mut from)?.rung;
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
