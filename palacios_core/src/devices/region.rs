// SPDX-License-Identifier: MIT OR Apache-2.0
//! The addresses at which a device answers.
#![forbid(unsafe_code)]

use core::fmt;

/// What a region's addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Ports.
    Ports,
    /// Guest-physical memory.
    Memory,
    /// Configuration space of PCI functions. An address is as in the ECAM window: bus, device, function and register, from bit 20, 15, 12 and 0 on.
    PciConfig,
}

/// The end of configuration space: 256 buses of 1 MiB each.
pub(super) const PCI_CONFIG_END: u64 = 1 << 28;
/// Bytes of configuration space that a function has.
pub const PCI_CONFIG_BYTES: u64 = 1 << 12;

/// Addresses at which a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoRegion {
    /// Ports, memory or configuration space.
    pub space: Space,
    /// The first address.
    pub at: u64,
    /// How many, from 1 on.
    pub length: u64,
    /// Of two regions that overlap, the one with the higher number answers. With the same number none is attached over another; if
    /// the guest moves one there, the device answers that was attached first.
    pub priority: u8,
    /// The device answers there now.
    pub on: bool,
    /// A write there does nothing but wake the device's worker, and reads are all ones.
    pub doorbell: bool,
}

impl IoRegion {
    /// `count` ports from `at` on.
    pub const fn ports(at: u16, count: u16) -> Self {
        Self {
            space: Space::Ports,
            at: at as u64,
            length: count as u64,
            priority: 0,
            on: true,
            doorbell: false,
        }
    }
    /// `bytes` of memory from `at` on.
    pub const fn memory(at: u64, bytes: u64) -> Self {
        Self {
            space: Space::Memory,
            at,
            length: bytes,
            priority: 0,
            on: true,
            doorbell: false,
        }
    }
    /// The configuration space of the PCI function that begins at `at`.
    pub const fn pci_config(at: u64) -> Self {
        Self {
            space: Space::PciConfig,
            ..Self::memory(at, PCI_CONFIG_BYTES)
        }
    }
    /// It answers in place of those that a PC has there.
    pub const fn over_others(self) -> Self {
        Self {
            priority: 1,
            ..self
        }
    }
    /// Its writes wake the device's worker, and leave the device alone: see [`Work`](super::Work).
    pub const fn doorbell(self) -> Self {
        Self {
            doorbell: true,
            ..self
        }
    }
    /// The device answers there, or not.
    pub const fn switched(self, on: bool) -> Self {
        Self { on, ..self }
    }
    /// The same region at another first address.
    pub const fn moved_to(self, at: u64) -> Self {
        Self { at, ..self }
    }
    /// The address behind the last one.
    pub const fn end(&self) -> u64 {
        self.at.saturating_add(self.length)
    }
}

/// Which bytes an access is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAddress {
    /// Ports, memory or configuration space.
    pub space: Space,
    /// The first of them.
    pub at: u64,
    /// How many: 1, 2 or 4 ports, 1, 2, 4 or 8 bytes of memory or configuration space.
    pub size: u8,
}

impl IoAddress {
    /// `size` ports from `at` on.
    pub const fn port(at: u16, size: u8) -> Self {
        Self {
            space: Space::Ports,
            at: at as u64,
            size,
        }
    }
    /// `size` bytes of memory from `at` on.
    pub const fn memory(at: u64, size: u8) -> Self {
        Self {
            space: Space::Memory,
            at,
            size,
        }
    }
    /// `size` bytes of configuration space from `at` on.
    pub const fn pci_config(at: u64, size: u8) -> Self {
        Self {
            space: Space::PciConfig,
            at,
            size,
        }
    }
    /// How many of them must lie in the region that answers. An access to ports belongs to the first one's.
    pub(super) const fn covered(&self) -> u64 {
        match self.space {
            Space::Ports => 1,
            Space::Memory | Space::PciConfig => self.size as u64,
        }
    }
}

impl fmt::Display for IoRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = match self.space {
            Space::Ports => "ports",
            Space::Memory => "memory",
            Space::PciConfig => "PCI configuration space",
        };
        let last = self.end().saturating_sub(1);
        write!(f, "{space} {:#x} to {last:#x}", self.at)
    }
}
