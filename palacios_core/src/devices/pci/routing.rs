// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ways into configuration space: the ports of configuration mechanism 1 (PCI 3.0: 3.2.2.3.2), and the ECAM window.
//!
//! Nothing here answers an access: it only says where one goes. The address register alone has state, which all vCPUs share as on a PC.
#![forbid(unsafe_code)]

use super::ECAM;
use crate::devices::{IoAddress, Space};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The port of the address register. Only an access of 32 bits is to it; port 0xcf9 alone is the reset control's.
pub const ADDRESS_PORT: u16 = 0xcf8;
/// The first of the four ports that show the double word that the address register names.
pub const DATA_PORT: u16 = 0xcfc;
const FIRST: u64 = ADDRESS_PORT as u64;
const DATA: u64 = DATA_PORT as u64;
const DATA_END: u64 = DATA + 4;

/// The data ports lead to configuration space.
const ENABLED: u32 = 1 << 31;
/// Bits of the address register that are kept: bus, device, function, register.
const KEPT: u32 = ENABLED | 0xff_fffc;

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To whoever answers there.
    To(IoAddress),
    /// To the address register.
    AddressRegister,
}

/// The address register, and the ways.
#[derive(Default)]
pub struct Routing(AtomicU32);

impl Routing {
    /// Where an access goes. *Any.*
    #[inline]
    pub fn way(&self, access: IoAddress) -> Way {
        match access.space {
            Space::Ports if (FIRST..DATA_END).contains(&access.at) => self.way_of_port(access),
            Space::Memory if ECAM.contains(&access.at) => {
                let at = access.at.wrapping_sub(ECAM.start);
                Way::To(IoAddress::pci_config(at, access.size))
            }
            _ => Way::To(access),
        }
    }

    #[cold]
    fn way_of_port(&self, access: IoAddress) -> Way {
        if access.at == FIRST && access.size == 4 {
            return Way::AddressRegister;
        }
        let end = access.at.saturating_add(access.size.into());
        let address = self.0.load(Relaxed);
        // What runs over the double word's end reaches nobody: its second half would be another cycle, to another port.
        if access.at < DATA || end > DATA_END || address & ENABLED == 0 {
            return Way::To(access);
        }
        let (function, register) = (u64::from(address & 0xff_ff00), u64::from(address & 0xfc));
        let at = function << 4 | register | access.at & 3;
        Way::To(IoAddress::pci_config(at, access.size))
    }

    /// The address register.
    pub fn address(&self) -> u32 {
        self.0.load(Relaxed)
    }
    /// Writes the address register.
    pub fn set_address(&self, value: u32) {
        self.0.store(value & KEPT, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pci::Bdf;
    use proptest::prelude::*;

    fn config(at: u64, size: u8) -> Way {
        Way::To(IoAddress::pci_config(at, size))
    }

    #[test]
    fn ports_lead_to_the_register_that_is_named() {
        let routing = Routing::default();
        let port = IoAddress::port;
        assert_eq!(routing.way(port(0xcf8, 4)), Way::AddressRegister);
        assert_eq!(
            routing.way(port(0xcfc, 4)),
            Way::To(port(0xcfc, 4)),
            "not enabled"
        );
        routing.set_address(0xffff_ffff);
        assert_eq!(routing.address(), 0x80ff_fffc);
        routing.set_address(0x8000_0b40);
        let at = Bdf::new(1, 3).register(0x40);
        assert_eq!(routing.way(port(0xcfc, 4)), config(at, 4));
        assert_eq!(routing.way(port(0xcfe, 2)), config(at + 2, 2));
        assert_eq!(routing.way(port(0xcff, 1)), config(at + 3, 1));
        for other in [
            port(0xcfd, 4),
            port(0xcff, 2),
            port(0xcf9, 1),
            port(0xcf8, 1),
            port(0xcf8, 2),
        ] {
            assert_eq!(routing.way(other), Way::To(other));
        }
    }

    #[test]
    fn the_window_leads_to_all_registers() {
        let routing = Routing::default();
        let at = Bdf::new(31, 7).register(0xffc);
        assert_eq!(
            routing.way(IoAddress::memory(ECAM.start + at, 4)),
            config(at, 4)
        );
        for other in [ECAM.start - 1, ECAM.end] {
            let access = IoAddress::memory(other, 1);
            assert_eq!(routing.way(access), Way::To(access));
        }
    }

    proptest! {
        /// Both ways lead to the same byte.
        #[test]
        fn both_ways_agree(slot in 0u8..32, function in 0u8..8, register: u8, size in 0u32..3) {
            let size = 1u8 << size;
            let register = register & !(size - 1);
            let routing = Routing::default();
            let bdf = Bdf::new(slot, function);
            routing.set_address(1 << 31 | u32::from(bdf.bits()) << 8 | u32::from(register));
            let by_port = routing.way(IoAddress::port(0xcfc + u16::from(register & 3), size));
            let at = bdf.register(register.into());
            let by_memory = routing.way(IoAddress::memory(ECAM.start + at, size));
            prop_assert_eq!(by_port, by_memory);
            prop_assert_eq!(by_port, config(at, size));
        }
    }
}
