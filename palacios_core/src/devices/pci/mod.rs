// SPDX-License-Identifier: MIT OR Apache-2.0
//! PCI (PCI Local Bus Specification 3.0): one bus, number 0, as an i440FX with a PIIX has it.
//!
//! The bus is routing and no device. A function is a [`Device`](super::Device) in a slot of the machine's buses like all others, and one of its regions is its
//! configuration space. An access to the ports of configuration mechanism 1, or to the ECAM window, is translated to an address there
//! ([`routing`]), and goes on by the map that all accesses go by.
//!
//! Who writes a device implements [`PciDevice`], and [`Function`] makes a [`Device`](super::Device) of that.
#![forbid(unsafe_code)]

pub mod bar;
pub mod config;
mod description;
mod function;
pub mod host_bridge;
pub mod hotplug;
pub mod intx;
pub mod isa_bridge;
pub mod msi;
pub mod msix;
pub mod pm;
pub mod routing;
mod wires;

pub use bar::Bar;
pub use description::{Description, Ids};
pub use function::{Function, PciDevice};
pub use wires::Wires;

use super::region::PCI_CONFIG_BYTES;
use super::IoRegion;
use crate::ram::RamLayout;
use core::fmt;
use core::ops::Range;

/// Buses that there are.
pub const BUSES: u8 = 1;
/// Slots on a bus.
pub const SLOTS: u8 = 32;
/// The first slot that is for others than the chipset.
pub const FIRST_FREE_SLOT: u8 = 2;

/// Where configuration space is in memory (PCI Firmware Specification 3.0: 4.1).
pub const ECAM: Range<u64> = 0xf000_0000..0xf000_0000 + ((BUSES as u64) << 20);
/// Memory below 4 GiB for base address registers.
pub const MEMORY_WINDOW: Range<u64> = 0xc000_0000..0xe000_0000;
/// Ports for base address registers.
pub const PORT_WINDOW: Range<u64> = 0xc000..0x1_0000;
/// Bytes of the window above 4 GiB, and what its begin is a multiple of. So it ends below 64 GiB in a small machine, as far as all processors reach.
const HIGH_WINDOW_BYTES: u64 = 32 << 30;

const _: () = assert!(MEMORY_WINDOW.start >= crate::ram::LOW_RAM_END);

/// Memory above 4 GiB, and above all RAM, for base address registers of 64 bits.
pub fn high_window(ram: RamLayout) -> Range<u64> {
    let start = crate::bytes::align_up(ram.high().end, HIGH_WINDOW_BYTES);
    start..start.saturating_add(HIGH_WINDOW_BYTES)
}

/// Which function: bus, device and function number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bdf(u16);

impl Bdf {
    /// Function `function` of the device in `slot`, on bus 0.
    pub const fn new(slot: u8, function: u8) -> Self {
        Self(((slot & 31) as u16) << 3 | (function & 7) as u16)
    }
    /// From its 16 bits.
    pub const fn of_bits(bits: u16) -> Self {
        Self(bits)
    }
    /// Its 16 bits.
    pub const fn bits(self) -> u16 {
        self.0
    }
    /// The number of the device on its bus.
    pub const fn slot(self) -> u8 {
        (self.0 >> 3 & 31) as u8
    }
    /// The number of the function in its device.
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }
    /// The address of a register of it in configuration space.
    pub const fn register(self, register: u16) -> u64 {
        (self.0 as u64) << 12 | register as u64 & (PCI_CONFIG_BYTES - 1)
    }
    /// Its configuration space.
    pub const fn region(self) -> IoRegion {
        IoRegion::pci_config(self.register(0))
    }
    /// The function whose configuration space begins with a region, if it is one.
    pub fn of_region(region: &IoRegion) -> Option<Self> {
        let is_config = region.space == super::Space::PciConfig;
        is_config.then_some(Self((region.at >> 12) as u16))
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bus = self.0 >> 8;
        write!(f, "{bus:02x}:{:02x}.{}", self.slot(), self.function())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_has_its_place_in_configuration_space() {
        let bdf = Bdf::new(1, 3);
        assert_eq!((bdf.slot(), bdf.function()), (1, 3));
        assert_eq!(bdf.register(0x40), 0xb040);
        assert_eq!(Bdf::of_region(&bdf.region()), Some(bdf));
        assert_eq!(std::format!("{bdf}"), "00:01.3");
        assert_eq!(Bdf::of_region(&IoRegion::ports(0, 1)), None);
    }

    #[test]
    fn windows_are_behind_all_ram() {
        for (mib, start_gib) in [(64, 32), (3072, 32), (8192, 32), (40 << 10, 64)] {
            let window = high_window(RamLayout::new(mib << 20));
            assert_eq!(
                (window.start, window.end),
                (start_gib << 30, (start_gib + 32) << 30)
            );
        }
    }
}
