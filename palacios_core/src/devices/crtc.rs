// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CRT controller of a colour text display, as far as consoles use it: where the cursor is, and where the text begins.
//!
//! Nothing is shown. Registers read back, since consoles keep the cursor's place there. The text itself lies at 0xb8000, which
//! is RAM.
#![forbid(unsafe_code)]

use super::kind::Kind;
use super::{read_bytewise, write_bytewise, Device, IoRegion};
use crate::alloc_ext::try_box;
use crate::state_io::{StateError, StateReader, StateWriter};

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "crtc",
    make: |_| Ok(try_box(Crtc::new())?),
    ..Kind::OF_EVERY_PC
};

/// Selects a register.
pub const INDEX_PORT: u16 = 0x3d4;
/// Reads or writes the register that was selected.
pub const DATA_PORT: u16 = 0x3d5;

/// The index has five bits; a VGA has registers up to 0x18, and those behind read back here too.
const REGISTERS: usize = 32;
const STATE_VERSION: u32 = 1;
static REGIONS: [IoRegion; 1] = [IoRegion::ports(INDEX_PORT, 2)];
/// Where the ports lie in it.
const INDEX: u64 = 0;
const DATA: u64 = 1;

/// The controller.
#[derive(Clone, Debug, Default)]
pub struct Crtc {
    index: u8,
    registers: [u8; REGISTERS],
}

impl Crtc {
    /// A controller whose registers are zero.
    pub const fn new() -> Self {
        Self {
            index: 0,
            registers: [0; REGISTERS],
        }
    }

    fn selected(&mut self) -> Option<&mut u8> {
        self.registers.get_mut(usize::from(self.index))
    }

    fn read_byte(&mut self, offset: u64) -> u8 {
        match offset {
            INDEX => self.index,
            DATA => self.selected().map_or(0xff, |register| *register),
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        match (offset, self.selected()) {
            (INDEX, _) => self.index = value % REGISTERS as u8,
            (DATA, Some(register)) => *register = value,
            _ => {}
        }
    }
}

impl Device for Crtc {
    fn name(&self) -> &'static str {
        KIND.name
    }
    fn reset(&mut self) {
        *self = Self::new();
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.u8(self.index)?;
        to.bytes(&self.registers)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let index = from.u8()?;
        if usize::from(index) >= REGISTERS {
            return Err(StateError::Value("crtc.index"));
        }
        let registers = from.bytes()?;
        *self = Self { index, registers };
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        &REGIONS
    }
    fn read(&mut self, _region: usize, offset: u64, size: u8) -> u64 {
        read_bytewise(offset, size, |offset| self.read_byte(offset))
    }
    fn write(&mut self, _region: usize, offset: u64, size: u8, value: u64) {
        write_bytewise(offset, size, value, |offset, byte| {
            self.write_byte(offset, byte)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
    use proptest::prelude::*;

    /// The cursor is at 0x07d0, as a console writes it: high byte, low byte.
    #[test]
    fn the_cursor_reads_back() {
        let (machine, mut crtc) = (TestMachine::new(), Crtc::new());
        for (index, value) in [(14, 0x07), (15, 0xd0)] {
            machine.outb(&mut crtc, INDEX_PORT, index);
            machine.outb(&mut crtc, DATA_PORT, value);
        }
        for (index, value) in [(14, 0x07), (15, 0xd0)] {
            machine.outb(&mut crtc, INDEX_PORT, index);
            assert_eq!(machine.inb(&mut crtc, INDEX_PORT), index);
            assert_eq!(machine.inb(&mut crtc, DATA_PORT), value);
        }
    }

    #[test]
    fn a_word_selects_a_register_and_writes_it() {
        let (machine, mut crtc) = (TestMachine::new(), Crtc::new());
        machine.port_write(&mut crtc, INDEX_PORT, 2, 0x120e);
        assert_eq!(machine.port_read(&mut crtc, INDEX_PORT, 2), 0x120e);
    }

    proptest! {
        #[test]
        fn registers_are_apart_and_saved(writes in prop::collection::vec((0u8..32, any::<u8>()), 0..40), record in prop::collection::vec(any::<u8>(), 0..40)) {
            let (machine, mut crtc) = (TestMachine::new(), Crtc::new());
            let mut expected = [0; 32];
            for (index, value) in writes {
                machine.outb(&mut crtc, INDEX_PORT, index);
                machine.outb(&mut crtc, DATA_PORT, value);
                expected[usize::from(index)] = value;
            }
            assert_restores(&saved(|w| crtc.save(w)), &mut Crtc::new());
            for (index, value) in (0..).zip(expected) {
                machine.outb(&mut crtc, INDEX_PORT, index);
                prop_assert_eq!(machine.inb(&mut crtc, DATA_PORT), value);
            }
            assert_survives(&record, &mut crtc);
            crtc.reset();
            prop_assert_eq!(machine.inb(&mut crtc, DATA_PORT), 0);
        }
    }
}
