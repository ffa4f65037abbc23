// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a PC has its serial ports.
#![forbid(unsafe_code)]

use crate::devices::device::IoRegion;
use crate::devices::kind::Place;

/// The four serial ports of a PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComPort {
    /// Ports 0x3f8–0x3ff, IRQ 4.
    Com1,
    /// Ports 0x2f8–0x2ff, IRQ 3.
    Com2,
    /// Ports 0x3e8–0x3ef, IRQ 4.
    Com3,
    /// Ports 0x2e8–0x2ef, IRQ 3.
    Com4,
}

impl ComPort {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Com1, Self::Com2, Self::Com3, Self::Com4];

    /// What its device is known by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Com1 => "com1",
            Self::Com2 => "com2",
            Self::Com3 => "com3",
            Self::Com4 => "com4",
        }
    }
    /// The one at a place.
    pub fn at(place: &Place) -> Option<Self> {
        let is_there = |port: &Self| port.base() == place.port;
        Self::ALL.into_iter().find(is_there)
    }
    const fn place(self) -> Place {
        Place {
            name: self.name(),
            port: self.base(),
            ports: 8,
            irq: self.irq(),
        }
    }
    /// Its number, from 1 on.
    pub const fn number(self) -> u8 {
        self as u8 + 1
    }
    /// The first of its eight ports.
    pub const fn base(self) -> u16 {
        match self {
            Self::Com1 => 0x3f8,
            Self::Com2 => 0x2f8,
            Self::Com3 => 0x3e8,
            Self::Com4 => 0x2e8,
        }
    }
    /// Where a PC wires its interrupt.
    pub const fn irq(self) -> u32 {
        match self {
            Self::Com1 | Self::Com3 => 4,
            Self::Com2 | Self::Com4 => 3,
        }
    }
    pub(super) const fn region(self) -> IoRegion {
        IoRegion::ports(self.base(), 8)
    }
}

/// All of them.
pub(super) static PLACES: [Place; 4] = [
    ComPort::Com1.place(),
    ComPort::Com2.place(),
    ComPort::Com3.place(),
    ComPort::Com4.place(),
];
