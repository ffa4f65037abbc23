// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slots of the PCI bus: who is in which one, and how the guest hears of it. A slot of the buses, which this folder is about elsewhere, is any device's place.
#![forbid(unsafe_code)]

use super::{Bus, SlotNumber};
use crate::devices::device::{Device, Slots};
use crate::devices::layout::Named;
use crate::devices::pci::{Bdf, FIRST_FREE_SLOT, SLOTS};
use crate::host::{Host, Lock};

impl<H: Host> Bus<H> {
    /// The PCI function that a device is, if it is one. *Thread.*
    pub fn function_of(&self, number: SlotNumber) -> Option<Bdf> {
        let attached = self.attached.lock();
        let functions = attached.regions.iter().filter_map(function_of);
        let mut of_device = functions.filter(|(slot, _)| *slot == number);
        of_device.next().map(|(_, function)| function)
    }

    /// The first slot of the PCI bus in which nothing is and nothing belongs. *Thread.*
    pub fn free_pci_slot(&self) -> Option<u8> {
        let attached = self.attached.lock();
        let is_taken = |slot: u8| {
            let mut functions = attached.regions.iter().filter_map(function_of);
            functions.any(|(_, function)| function.slot() == slot)
        };
        (FIRST_FREE_SLOT..SLOTS).find(|slot| !is_taken(*slot))
    }

    /// A device in those slots of the PCI bus, a bit for each, that may be taken away. *Thread.*
    pub fn find_in_pci_slots(&self, slots: u32) -> Option<SlotNumber> {
        let attached = self.attached.lock();
        let is_removable = |number: SlotNumber| {
            let mut devices = attached.devices.iter();
            devices.any(|device| device.slot == number && device.is_removable && !device.goes)
        };
        let functions = attached.regions.iter().filter_map(function_of);
        let mut there =
            functions.filter(|(_, function)| slots.wrapping_shr(function.slot().into()) & 1 != 0);
        let found = there.find(|(number, _)| is_removable(*number));
        found.map(|(number, _)| number)
    }

    /// Tells whoever tells the guest of PCI devices. `false`: nobody does. *Thread.*
    pub fn tell_slots(&self, tell: impl Fn(&mut dyn Slots)) -> bool {
        let mut any = false;
        for slot in self.used() {
            self.call(slot, |device: &mut dyn Device| {
                if let Some(slots) = device.slots() {
                    tell(slots);
                    any = true;
                }
            });
        }
        any
    }
}

/// The device of a region of configuration space, and the function that it is.
fn function_of(named: &Named) -> Option<(SlotNumber, Bdf)> {
    let function = Bdf::of_region(&named.region)?;
    Some((SlotNumber(named.target.slot), function))
}
