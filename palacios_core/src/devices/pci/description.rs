// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the author of a device says of it once: ids, base address registers, interrupts.
#![forbid(unsafe_code)]

use super::Bar;

/// What a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Who made it.
    pub vendor: u16,
    /// What the maker calls it.
    pub device: u16,
    /// The maker's of the card.
    pub subsystem_vendor: u16,
    /// What that one calls it.
    pub subsystem: u16,
    /// Class, subclass and programming interface, from bit 16, 8 and 0 on.
    pub class: u32,
    /// Which edition.
    pub revision: u8,
}

impl Ids {
    /// A function of its maker's own, on a card that says nothing.
    pub const fn new(vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        Self {
            vendor,
            device,
            subsystem_vendor: vendor,
            subsystem: 0,
            class,
            revision,
        }
    }
}

/// What configuration space says of a function from the beginning.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// The name of its kind.
    pub name: &'static str,
    /// What it is.
    pub ids: Ids,
    /// Its base address registers. That of the table of MSI-X is [`Bar::NONE`] here.
    pub bars: [Bar; 6],
    /// Bytes of its expansion ROM; 0 for none.
    pub rom_bytes: u32,
    /// Its interrupt pin: 1 is INTA; 0 is none.
    pub pin: u8,
    /// Vectors of MSI; 0 for none.
    pub msi_vectors: u8,
    /// Vectors of MSI-X, and the number of the base address register of its table.
    pub msix: Option<(u16, u8)>,
    /// Its device has others, so that the guest looks for them. To be said by function 0.
    pub has_more_functions: bool,
    /// The owner may take it away.
    pub is_removable: bool,
}

impl Description {
    /// A function with a pin, without base address registers and messages.
    pub const fn new(name: &'static str, ids: Ids) -> Self {
        Self {
            name,
            ids,
            bars: [Bar::NONE; 6],
            rom_bytes: 0,
            pin: 1,
            msi_vectors: 0,
            msix: None,
            has_more_functions: false,
            is_removable: true,
        }
    }
}
