// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a kind of device is: by what name an image, an owner and a guest know it, and how one is made.
#![forbid(unsafe_code)]

use super::links::Links;
use super::pci::{Bdf, FIRST_FREE_SLOT};
use super::{ByteStream, Device, Nowhere};
use crate::alloc_ext::{try_box, NoMemory};
use crate::block::BlockStore;
use crate::names::DeviceId;
use crate::ram::RamLayout;
use alloc::boxed::Box;

/// A kind of device.
pub struct Kind {
    /// Its name, for owners: `v3 attach VM NAME`.
    pub name: &'static str,
    /// Who has one.
    pub machines: Machines,
    /// It has a byte stream. In a kind that every PC has, its stream has the name of the kind.
    pub has_stream: bool,
    /// It keeps bytes in a block store.
    pub has_store: bool,
    /// The addresses at which one may be; empty if they are always the same.
    pub places: &'static [Place],
    /// What is said of another place.
    pub place_words: &'static str,
    /// What is said of another interrupt line than its place has.
    pub irq_words: &'static str,
    /// One is a PCI function, in a slot of its own.
    pub is_pci: bool,
    /// Makes one.
    pub make: fn(Resources<'_>) -> Result<Box<dyn Device>, NoMemory>,
    /// What ACPI's tables say of one at a place.
    pub acpi: fn(&Place) -> Option<AcpiDevice>,
}

/// Which machines have a device of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machines {
    /// Every PC.
    All,
    /// Those whose image describes one, with this in `compatible` of its node, and those to which one is attached.
    Described(&'static str),
}

/// Where a device may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What a device there is known by, if its owner gives no name.
    pub name: &'static str,
    /// The first of its ports.
    pub port: u16,
    /// How many.
    pub ports: u16,
    /// Its interrupt line.
    pub irq: u32,
}

/// What a device is made of.
pub struct Resources<'a> {
    /// Its links.
    pub links: &'a dyn Links,
    /// The machine's RAM.
    pub ram: RamLayout,
    /// Where it is to be, one of its kind's places.
    pub place: Option<&'static Place>,
    /// Its slot, if it is a PCI function.
    pub slot: Option<Bdf>,
    /// Its stream, if its kind has one.
    pub stream: Option<Box<dyn ByteStream>>,
    /// What it is as a disk, if its kind has a store.
    pub disk: Option<DiskParts>,
}

/// What a disk is made of.
pub struct DiskParts {
    /// Where its bytes are.
    pub store: Box<dyn BlockStore>,
    /// How many queues it has, from 1 on.
    pub queues: u16,
    /// The serial number by which its guest knows it.
    pub serial: DeviceId,
}

/// A device of ACPI's tables (ACPI 6.5: 5.7, 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiDevice {
    /// Its name, of four letters.
    pub name: [u8; 4],
    /// Its id as a compressed EISA id.
    pub hid: [u8; 4],
    /// Its number among those of that id.
    pub uid: u8,
    /// Its ports and its line.
    pub place: Place,
}

impl Resources<'_> {
    /// Its slot. One that was given none, though its kind is PCI, is in the first that is free in an empty machine.
    pub(super) fn bdf(&self) -> Bdf {
        self.slot.unwrap_or(Bdf::new(FIRST_FREE_SLOT, 0))
    }
    /// Takes its stream; without one, what is sent goes nowhere.
    pub(super) fn take_stream(&mut self) -> Result<Box<dyn ByteStream>, NoMemory> {
        match self.stream.take() {
            Some(stream) => Ok(stream),
            None => Ok(try_box(Nowhere)?),
        }
    }
}

impl Kind {
    /// What a device of it is known by, if its owner gives no name: the name of its place, or of the kind.
    pub fn usual_name(&self, place: Option<&Place>) -> DeviceId {
        DeviceId::of_kind(place.map_or(self.name, |place| place.name))
    }

    /// A kind whose device every PC has, always at the same addresses, without a stream, and of which ACPI's tables say nothing.
    pub(super) const OF_EVERY_PC: Self = Self {
        name: "",
        machines: Machines::All,
        has_stream: false,
        has_store: false,
        places: &[],
        place_words: "",
        irq_words: "",
        is_pci: false,
        make: |_| Err(NoMemory),
        acpi: |_| None,
    };
}
