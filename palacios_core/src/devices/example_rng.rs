// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device to begin with: a PCI random-number generator with registers, interrupts and transfers. Copy this file for a device of your own.
//! `Documentation/devices.md` explains it piece by piece. Its numbers are a fixed sequence from a seed, so that a test knows them: no keys may be made of them.
//!
//! | offset | register of 32 bits |
//! | --- | --- |
//! | 0x00 | read: the next number |
//! | 0x04 | read: how many transfers ended, and in bit 31 whether the last one failed; takes back the interrupt |
//! | 0x08 | 64 bits, in one access: where in memory to put numbers |
//! | 0x10 | how many bytes to put there, at most 64 KiB |
//! | 0x800 | doorbell: puts them there, and interrupts |
#![forbid(unsafe_code)]

use super::kind::{Kind, Machines};
use super::pci::{Bar, Description, Function, Ids, PciDevice, Wires};
use super::Step;
use crate::addr::Gpa;
use crate::state_io::{StateError, StateReader, StateWriter};

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "example-rng",
    machines: Machines::Described("v3vee,example-rng"),
    is_pci: true,
    make: |wanted| Function::boxed(wanted, ExampleRng::default()),
    ..Kind::OF_EVERY_PC
};

const FAILED: u32 = 1 << 31;

/// Its registers.
#[derive(Clone, Copy, Default)]
struct ExampleRng {
    seed: u64,
    ended: u32,
    at: u64,
    bytes: u32,
}

impl ExampleRng {
    /// The next number, by SplitMix64.
    fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ self.seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Puts numbers into guest memory.
    fn fill(&mut self, wires: &Wires) -> Result<(), super::links::DmaError> {
        for offset in (0..u64::from(self.bytes.min(0x1_0000))).step_by(8) {
            let number = self.next().to_le_bytes();
            let left = u64::from(self.bytes).saturating_sub(offset).min(8) as usize;
            let at = Gpa(self.at.wrapping_add(offset));
            wires
                .dma()
                .write(at, number.get(..left).unwrap_or(&number))?;
        }
        Ok(())
    }
}

impl PciDevice for ExampleRng {
    fn description(&self) -> Description {
        // Nobody is this vendor.
        let ids = Ids::new(0x1234, 0x7633, 0x10_8000, 1);
        let mut description = Description::new(KIND.name, ids);
        description.bars[0] = Bar::memory(0x1000).with_doorbells(&[(0x800, 4)]);
        description.msix = Some((1, 1));
        description
    }
    fn reset(&mut self, _: &mut Wires) {
        *self = Self::default();
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u64(self.seed)?;
        to.u64(self.at)?;
        to.u32(self.ended)?;
        to.u32(self.bytes)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        *self = Self {
            seed: from.u64()?,
            at: from.u64()?,
            ended: from.u32()?,
            bytes: from.u32()?,
        };
        Ok(())
    }
    // ANCHOR: registers
    fn read(&mut self, wires: &mut Wires, _bar: usize, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (0x00, 4) => self.next(),
            (0x04, 4) => {
                wires.acknowledge();
                self.ended.into()
            }
            (0x08, 8) => self.at,
            (0x10, 4) => self.bytes.into(),
            _ => 0,
        }
    }
    fn write(&mut self, _: &mut Wires, _bar: usize, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (0x08, 8) => self.at = value,
            (0x10, 4) => self.bytes = value as u32,
            _ => {}
        }
    }
    fn step(&mut self, wires: &mut Wires, rung: u64) -> Step {
        if rung != 0 {
            let failed = if self.fill(wires).is_err() { FAILED } else { 0 };
            self.ended = self.ended.wrapping_add(1) & !FAILED | failed;
            wires.interrupt(0);
        }
        Step::Idle
    }
    // ANCHOR_END: registers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, saved, TestMachine};
    use crate::devices::{pci::Bdf, Device, Space::Memory};

    #[test]
    fn it_fills_memory_and_interrupts() {
        let machine = TestMachine::new();
        machine.ram.replace(vec![0; 64]);
        let mut rng = Function::new(&machine, Bdf::new(2, 0), ExampleRng::default()).unwrap();
        rng.write(0, 0x10, 4, 0xd000_0000); // Its first base address register; it may answer and master the bus.
        rng.write(0, 0x04, 2, 6);
        assert_eq!(machine.read(&mut rng, Memory, 0xd000_0000, 4), 0x7b1d_cdaf);
        machine.write(&mut rng, Memory, 0xd000_0008, 8, 16);
        machine.write(&mut rng, Memory, 0xd000_0010, 4, 9);
        let mut regions = rng.regions().iter();
        let bell = regions.position(|region| region.doorbell).unwrap();
        rng.work().unwrap().step(1 << bell);
        let filled = [0xf4, 0x65, 0xb9, 0xa1, 0x6a, 0x9e, 0x78, 0x6e, 0x4f, 0];
        assert_eq!(machine.ram.borrow()[16..26], filled);
        assert!(machine.line(0x111), "PIRQB");
        assert_eq!(machine.read(&mut rng, Memory, 0xd000_0004, 4), 1);
        assert!(!machine.line(0x111));
        let record = saved(|w| rng.save(w));
        rng.reset();
        assert_restores(&record, &mut rng);
    }
}
