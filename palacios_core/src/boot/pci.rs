// SPDX-License-Identifier: MIT OR Apache-2.0
//! What firmware does with PCI before it starts a kernel: it gives each base address register addresses, has the function answer there, and notes to which interrupt the
//! pin leads. It does it as any guest would, by configuration space alone. Devices that come later are left to the guest.
//!
//! A register that finds no room stays as it is, and its function is left off.

use crate::devices::pci::config::{command, register};
use crate::devices::pci::{high_window, intx, isa_bridge, Bdf, MEMORY_WINDOW, PORT_WINDOW, SLOTS};
use crate::ram::RamLayout;
use core::ops::Range;

/// Configuration space of the machine's PCI bus.
pub trait ConfigSpace {
    /// A read of `size` bytes at an address there.
    fn read(&self, at: u64, size: u8) -> u32;
    /// A write.
    fn write(&self, at: u64, size: u8, value: u32);
}

/// Sets up all functions that there are.
pub fn set_up(space: &dyn ConfigSpace, ram: RamLayout) {
    let mut firmware = Firmware {
        space,
        ports: PORT_WINDOW,
        memory: MEMORY_WINDOW,
        high: high_window(ram),
    };
    for slot in 0..SLOTS {
        for function in 0..8 {
            let at = Bdf::new(slot, function);
            if firmware.word(at, register::ID) == 0xffff {
                if function == 0 {
                    break;
                }
                continue;
            }
            firmware.set_up(at);
            let has_more = firmware.byte(Bdf::new(slot, 0), register::HEADER_TYPE) & 0x80 != 0;
            if function == 0 && !has_more {
                break;
            }
        }
    }
}

/// The firmware, with the addresses that nobody has yet.
struct Firmware<'a> {
    space: &'a dyn ConfigSpace,
    ports: Range<u64>,
    memory: Range<u64>,
    high: Range<u64>,
}

impl Firmware<'_> {
    fn byte(&self, of: Bdf, register: u8) -> u8 {
        self.space.read(of.register(register.into()), 1) as u8
    }
    fn word(&self, of: Bdf, register: u8) -> u16 {
        self.space.read(of.register(register.into()), 2) as u16
    }
    fn set(&self, of: Bdf, register: u8, value: u32) {
        self.space.write(of.register(register.into()), 4, value);
    }
    /// Writes ones to a register: what takes them says how much it is for. The register is as before then.
    fn mask(&self, of: Bdf, register: u8) -> u32 {
        let at = of.register(register.into());
        let before = self.space.read(at, 4);
        self.space.write(at, 4, u32::MAX);
        let mask = self.space.read(at, 4);
        self.space.write(at, 4, before);
        mask
    }

    fn set_up(&mut self, of: Bdf) {
        // Bridges to other buses have another header.
        if self.byte(of, register::HEADER_TYPE) & 0x7f != 0 {
            return;
        }
        let (mut number, mut switches) = (0, 0);
        while number < 6 {
            let at = register::BASE.wrapping_add(number << 2);
            let (wide, switch) = self.place(of, at);
            switches |= switch;
            number = number.wrapping_add(if wide { 2 } else { 1 });
        }
        self.place_rom(of);
        let pin = self.byte(of, register::INTERRUPT_PIN);
        if (1..=4).contains(&pin) {
            let wire = intx::wire(of, pin) as u8;
            let route = self.byte(isa_bridge::AT, isa_bridge::ROUTES.wrapping_add(wire));
            let at = of.register(register::INTERRUPT_LINE.into());
            let irq = intx::routed(route).unwrap_or(0xff);
            self.space.write(at, 1, irq.into());
        }
        let at = of.register(register::COMMAND.into());
        self.space.write(at, 2, switches.into());
    }

    /// Gives the base address register at `at` addresses: whether it is one of 64 bits, and what switches its addresses on.
    fn place(&mut self, of: Bdf, at: u8) -> (bool, u16) {
        let low = self.mask(of, at);
        if low == 0 {
            return (false, 0);
        }
        if low & 1 != 0 {
            let bytes = u64::from((low & !3).wrapping_neg() & 0xffff);
            let address = take(&mut self.ports, bytes);
            if let Some(address) = address {
                self.set(of, at, address as u32);
            }
            return (false, address.map_or(0, |_| command::PORTS));
        }
        let is_wide = low & 0b110 == 0b100;
        let behind = at.wrapping_add(4);
        let high = if is_wide {
            self.mask(of, behind)
        } else {
            u32::MAX
        };
        let mask = u64::from(high) << 32 | u64::from(low & !0xf);
        let bytes = mask.wrapping_neg();
        // Also a guest that knows no others finds it below 4 GiB, if there is room.
        let address = take(&mut self.memory, bytes);
        let address = address.or_else(|| take(&mut self.high, bytes).filter(|_| is_wide));
        let Some(address) = address else {
            return (is_wide, 0);
        };
        self.set(of, at, address as u32);
        if is_wide {
            self.set(of, behind, (address >> 32) as u32);
        }
        (is_wide, command::MEMORY)
    }

    /// Gives the expansion ROM addresses, and leaves it off.
    fn place_rom(&mut self, of: Bdf) {
        let mask = self.mask(of, register::ROM) & !0x7ff;
        if mask != 0 {
            if let Some(address) = take(&mut self.memory, mask.wrapping_neg().into()) {
                self.set(of, register::ROM, address as u32);
            }
        }
    }
}

/// Takes so many addresses, a power of two, from the begin of those that are left. What is taken is a multiple of its size.
fn take(from: &mut Range<u64>, bytes: u64) -> Option<u64> {
    let at = from.start.checked_next_multiple_of(bytes)?;
    let end = at.checked_add(bytes).filter(|end| *end <= from.end)?;
    from.start = end;
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pci::{Bar, Description, Function, Ids, PciDevice, Wires};
    use crate::devices::testing::TestMachine;
    use crate::devices::{Device, Space};
    use crate::state_io::{StateError, StateReader, StateWriter};
    use std::cell::RefCell;

    struct Card([Bar; 6], u32);

    impl PciDevice for Card {
        fn description(&self) -> Description {
            Description {
                bars: self.0,
                rom_bytes: self.1,
                has_more_functions: true,
                ..Description::new("card", Ids::new(1, 2, 3, 4))
            }
        }
        fn reset(&mut self, _: &mut Wires) {}
        fn save(&self, _: &mut StateWriter<'_>) -> Result<(), StateError> {
            Ok(())
        }
        fn restore(&mut self, _: &mut StateReader<'_>) -> Result<(), StateError> {
            Ok(())
        }
    }

    struct Cards(RefCell<Vec<(Bdf, Function<Card>)>>);

    impl Cards {
        fn regions(&self, of: usize) -> Vec<(Space, u64, bool)> {
            let (_, card) = &self.0.borrow()[of];
            let regions = card.regions()[1..].iter();
            regions
                .map(|region| (region.space, region.at, region.on))
                .collect()
        }
    }

    impl ConfigSpace for Cards {
        fn read(&self, at: u64, size: u8) -> u32 {
            // Where the ISA bridge routes the wires.
            if let Some(wire) = at
                .checked_sub(isa_bridge::AT.register(0x60))
                .filter(|wire| *wire < 4)
            {
                return intx::USUAL[wire as usize].into();
            }
            let mut all = self.0.borrow_mut();
            let found = all
                .iter_mut()
                .find(|(bdf, _)| bdf.register(0) == at & !0xfff);
            found.map_or(u32::MAX, |(_, card)| card.read(0, at & 0xfff, size) as u32)
        }
        fn write(&self, at: u64, size: u8, value: u32) {
            let mut all = self.0.borrow_mut();
            if let Some((_, card)) = all
                .iter_mut()
                .find(|(bdf, _)| bdf.register(0) == at & !0xfff)
            {
                card.write(0, at & 0xfff, size, value.into());
            }
        }
    }

    fn cards(cards: Vec<(Bdf, Card)>) -> Cards {
        let machine = TestMachine::new();
        let made = cards
            .into_iter()
            .map(|(at, card)| (at, Function::new(&machine, at, card).unwrap()));
        Cards(RefCell::new(made.collect()))
    }

    #[test]
    fn each_register_gets_addresses_of_its_own() {
        let none = Bar::NONE;
        let all = cards(vec![
            (
                Bdf::new(2, 0),
                Card(
                    [
                        Bar::ports(16),
                        Bar::memory(4096),
                        Bar::memory64(1 << 14),
                        none,
                        none,
                        none,
                    ],
                    0x800,
                ),
            ),
            (
                Bdf::new(2, 5),
                Card(
                    [
                        Bar::memory64(1 << 33),
                        none,
                        Bar::memory(1 << 31),
                        none,
                        none,
                        none,
                    ],
                    0,
                ),
            ),
            (
                Bdf::new(31, 0),
                Card([none, Bar::ports(4), none, none, none, Bar::memory(16)], 0),
            ),
        ]);
        set_up(&all, RamLayout::new(64 << 20));
        let (ports, memory) = (Space::Ports, Space::Memory);
        assert_eq!(
            all.regions(0),
            [
                (ports, 0xc000, true),
                (memory, 0xc000_0000, true),
                (memory, 0xc000_4000, true),
                (memory, 0xc000_8000, false),
            ]
        );
        // What does not fit below 4 GiB is above, if it may be; and else nowhere.
        assert_eq!(
            all.regions(1),
            [(memory, 32 << 30, true), (memory, 0, false)]
        );
        assert_eq!(
            all.regions(2),
            [(ports, 0xc010, true), (memory, 0xc000_8800, true)]
        );
        let line = |at: Bdf| all.read(at.register(0x3c), 1);
        assert_eq!((line(Bdf::new(2, 0)), line(Bdf::new(31, 0))), (11, 5));
        assert_eq!(
            all.read(Bdf::new(2, 0).register(4), 2),
            3,
            "not a master of the bus"
        );
    }
}
