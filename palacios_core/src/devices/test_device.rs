// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device of test kernels: what those know that were written for QEMU's `pc-testdev`. A machine has it when it is asked for.
//!
//! | | |
//! | --- | --- |
//! | ports 0xe0 to 0xe3 | a double word, read and written at any width |
//! | ports 0xe4 to 0xe7 | an address that is written: the processors forget the translation of its page |
//! | ports 0xe8 to 0xeb | the same double word, byte by byte: wider accesses are split |
//! | ports 0x2040 to 0x2043 | the address of a command that changes what is where in memory (`memory_commands.rs`); of this project alone, reads give "v3me" |
//! | ports 0x2000 to 0x2017 | a byte that is written drives the line of that number |
//! | memory from 0xff00_0000 | 64 KiB that keep what is written, and are no RAM |
#![forbid(unsafe_code)]

use super::{memory_commands, read_bytewise, write_bytewise, Cx, Device, IrqLine, Mmio, PortIo};
use crate::addr::Gpa;
use crate::alloc_ext::{try_vec, NoMemory};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::vec::Vec;
use core::ops::Range;

/// The memory's address and length.
pub const MEMORY_GPA: u64 = 0xff00_0000;
/// Its length.
pub const MEMORY_BYTES: u64 = 0x1_0000;

const STATE_VERSION: u32 = 1;
const WORD: Range<u16> = 0xe0..0xe4;
const FORGET: Range<u16> = 0xe4..0xe8;
const BYTES: Range<u16> = 0xe8..0xec;
const LINES: Range<u16> = 0x2000..0x2018;
/// "v3me".
const MEMORY_PORTS: u32 = 0x656d_3376;
const MEMORY_COMMAND: Range<u16> = 0x2040..0x2044;
static PORTS: [Range<u16>; 5] = [WORD, FORGET, BYTES, LINES, MEMORY_COMMAND];
static RANGE: Range<u64> = MEMORY_GPA..MEMORY_GPA + MEMORY_BYTES;

/// The device.
pub struct TestDevice {
    word: [u8; 4],
    memory: Vec<u8>,
}

impl TestDevice {
    /// A device that holds zeros.
    pub fn new() -> Result<Self, NoMemory> {
        Ok(Self {
            word: [0; 4],
            memory: try_vec(0, MEMORY_BYTES as usize)?,
        })
    }

    /// The byte of the double word that a port shows; an access that runs over its end begins anew.
    fn byte(&mut self, port: u16) -> &mut u8 {
        let [a, b, c, d] = &mut self.word;
        match port & 3 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        }
    }

    /// The bytes of the memory that an access covers.
    fn memory_at(&mut self, at: Gpa, size: u8) -> &mut [u8] {
        let from = at.0.wrapping_sub(MEMORY_GPA) as usize;
        let to = from.saturating_add(size.into());
        self.memory.get_mut(from..to).unwrap_or_default()
    }
}

impl Device for TestDevice {
    fn name(&self) -> &'static str {
        "test"
    }
    fn reset(&mut self) {
        self.word = [0; 4];
        self.memory.fill(0);
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.bytes(&self.word)?;
        to.bytes(&self.memory)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let word = from.bytes()?;
        let mut memory = try_vec(0, MEMORY_BYTES as usize)?;
        for byte in &mut memory {
            *byte = from.u8()?;
        }
        *self = Self { word, memory };
        Ok(())
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

impl PortIo for TestDevice {
    fn ports(&self) -> &'static [Range<u16>] {
        &PORTS
    }

    fn port_read(&mut self, _cx: &Cx<'_>, port: u16, size: u8) -> u32 {
        if WORD.contains(&port) || BYTES.contains(&port) {
            return read_bytewise(port, size, |port| *self.byte(port));
        }
        if port == MEMORY_COMMAND.start && size == 4 {
            return MEMORY_PORTS;
        }
        u32::MAX
    }

    fn port_write(&mut self, cx: &Cx<'_>, port: u16, size: u8, value: u32) {
        if WORD.contains(&port) || BYTES.contains(&port) {
            write_bytewise(port, size, value, |port, byte| *self.byte(port) = byte);
        } else if FORGET.contains(&port) {
            cx.memory_control.forget(Gpa(value.into()));
        } else if port == MEMORY_COMMAND.start && size == 4 {
            memory_commands::command(cx, Gpa(value.into()));
        } else if LINES.contains(&port) {
            let line = IrqLine(u32::from(port.wrapping_sub(LINES.start)));
            line.set(cx, value as u8 != 0);
        }
    }
}

impl Mmio for TestDevice {
    fn ranges(&self) -> &[Range<u64>] {
        core::slice::from_ref(&RANGE)
    }

    fn mmio_read(&mut self, _cx: &Cx<'_>, at: Gpa, size: u8) -> u64 {
        let bytes = self.memory_at(at, size).iter().rev();
        bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn mmio_write(&mut self, _cx: &Cx<'_>, at: Gpa, size: u8, value: u64) {
        let bytes = self.memory_at(at, size).iter_mut();
        for (to, byte) in bytes.zip(value.to_le_bytes()) {
            *to = byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
    use proptest::prelude::*;

    fn device() -> TestDevice {
        TestDevice::new().unwrap()
    }

    #[test]
    fn the_word_reads_back_at_any_width() {
        let (machine, mut device) = (TestMachine::new(), device());
        let cx = machine.cx();
        for (size, value) in [(1, 0x11), (2, 0x2233), (4, 0x4455_6677)] {
            device.port_write(&cx, 0xe0, size, value);
            assert_eq!(device.port_read(&cx, 0xe0, size), value);
        }
        device.port_write(&cx, 0xe1, 1, 0xaa);
        device.port_write(&cx, 0xe2, 2, 0xccbb);
        assert_eq!(device.port_read(&cx, 0xe0, 4), 0xccbb_aa77);
    }

    #[test]
    fn the_same_word_is_there_byte_by_byte() {
        let (machine, mut device) = (TestMachine::new(), device());
        let cx = machine.cx();
        device.port_write(&cx, 0xe8, 4, 0x1234_5678);
        assert_eq!(device.port_read(&cx, 0xe0, 4), 0x1234_5678);
        assert_eq!(device.port_read(&cx, 0xe9, 2), 0x3456);
        assert_eq!(machine.inb(&mut device, 0xeb), 0x12);
    }

    #[test]
    fn an_address_is_forgotten_and_lines_are_driven() {
        let (machine, mut device) = (TestMachine::new(), device());
        let cx = machine.cx();
        device.port_write(&cx, 0xe4, 4, 0x12_3456);
        assert_eq!(*machine.forgotten.borrow(), [Gpa(0x12_3456)]);
        for (port, value) in [(0x2000, 1), (0x2017, 0x80), (0x2000, 0)] {
            machine.outb(&mut device, port, value);
        }
        assert_eq!(*machine.irqs.borrow(), [(0, true), (23, true), (0, false)]);
    }

    proptest! {
        #[test]
        fn memory_keeps_what_is_written(at in 0u64..MEMORY_BYTES - 8, size in prop::sample::select(vec![1u8, 2, 4, 8]), value: u64) {
            let (machine, mut device) = (TestMachine::new(), device());
            let (cx, mask) = (machine.cx(), u64::MAX >> (64 - 8 * u32::from(size)));
            device.mmio_write(&cx, Gpa(MEMORY_GPA + at), size, value);
            prop_assert_eq!(device.mmio_read(&cx, Gpa(MEMORY_GPA + at), size), value & mask);
            prop_assert_eq!(device.mmio_read(&cx, Gpa(MEMORY_GPA + at), 8), value & mask);
            assert_restores(&saved(|w| device.save(w)), &mut TestDevice::new().unwrap());
            assert_survives(&[1, 0, 0, 0, 5, 5, 5, 5, 9], &mut device);
            device.reset();
            prop_assert_eq!(device.mmio_read(&cx, Gpa(MEMORY_GPA + at), 8), 0);
        }
    }
}
