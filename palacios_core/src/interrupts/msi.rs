// SPDX-License-Identifier: MIT OR Apache-2.0
//! Message-signalled interrupts: what a device writes, and the message that local APICs make of it (SDM 3A: 11.11; APM 2: 16.5).
#![forbid(unsafe_code)]

use super::{Delivery, Destination, Message};
use crate::interfaces::Msi;

/// Bits 63:20 of an address that belongs to the local APICs.
const APICS: u64 = 0xfee;
/// The destination is a logical one.
const LOGICAL: u64 = 1 << 2;
/// One of those that are meant takes it: the one of lowest priority.
const REDIRECTED: u64 = 1 << 3;
/// Level-triggered.
const LEVEL: u32 = 1 << 15;
/// The level is asserted.
const ASSERTED: u32 = 1 << 14;

/// The message that local APICs make of a write. `None`: none of them hears of it.
pub const fn message(msi: Msi) -> Option<Message> {
    if msi.address >> 20 != APICS {
        return None;
    }
    let delivery = match Delivery::of_register(msi.data) {
        // A start-up IPI comes from another processor alone.
        None | Some(Delivery::Startup) => return None,
        Some(Delivery::Fixed) if msi.address & REDIRECTED != 0 => Delivery::LowestPriority,
        Some(delivery) => delivery,
    };
    let has_vector = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
    let level = has_vector && msi.data & LEVEL != 0;
    if level && msi.data & ASSERTED == 0 {
        return None;
    }
    Some(Message {
        destination: Destination::of_byte((msi.address >> 12) as u8, msi.address & LOGICAL != 0),
        delivery,
        vector: msi.data as u8,
        level,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(address: u64, data: u32) -> Option<Message> {
        super::message(Msi { address, data })
    }

    #[test]
    fn the_address_says_for_whom() {
        for (address, destination) in [
            (0xfee0_0000, Destination::Physical(0)),
            (0xfee0_3000, Destination::Physical(3)),
            (0xfeef_f000, Destination::All),
            (0xfeef_f004, Destination::Logical(0xff)),
            (0xfee0_2004, Destination::Logical(2)),
        ] {
            let message = message(address, 0x31).unwrap();
            assert_eq!(message.destination, destination);
            assert_eq!((message.delivery, message.vector), (Delivery::Fixed, 0x31));
            assert!(!message.level);
        }
        let redirected = message(0xfee0_300c, 0x31).unwrap();
        assert_eq!(redirected.delivery, Delivery::LowestPriority);
    }

    #[test]
    fn the_data_says_what() {
        let at = |data| message(0xfee0_0000, data);
        assert_eq!(at(0x400).map(|m| m.delivery), Some(Delivery::Nmi));
        assert_eq!(at(0x500).map(|m| m.delivery), Some(Delivery::Init(true)));
        assert_eq!(at(0x300), None, "reserved");
        assert_eq!(at(0x600), None, "start-up");
        assert_eq!(at(0x8031), None, "a level that is not asserted");
        assert!(at(0xc031).unwrap().level);
        assert!(!at(0xc400).unwrap().level, "an NMI is an edge");
    }

    proptest! {
        #[test]
        fn only_one_megabyte_is_theirs(address: u64, data: u32) {
            prop_assume!(!(0xfee0_0000..0xfef0_0000).contains(&address));
            prop_assert_eq!(message(address, data), None);
        }
    }
}
