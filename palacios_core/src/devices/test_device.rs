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

use super::kind::{Kind, Machines};
use super::links::{Line, Links};
use super::{memory_commands, read_bytewise, write_bytewise, Device, IoRegion, Request};
use crate::addr::Gpa;
use crate::alloc_ext::{try_box, try_vec, NoMemory, TryPush};
use crate::interfaces::{GuestMemory, MemoryControl};
use crate::regions::RegionError;
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// The memory's address and length.
pub const MEMORY_GPA: u64 = 0xff00_0000;
/// Its length.
pub const MEMORY_BYTES: u64 = 0x1_0000;

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "test-device",
    machines: Machines::Described("v3vee,test-device"),
    make: |wanted| Ok(try_box(TestDevice::new(wanted.links)?)?),
    ..Kind::OF_EVERY_PC
};

const STATE_VERSION: u32 = 2;
/// It drives the lines from 0 up to this number.
const LINE_COUNT: u16 = 24;
/// "v3me".
const MEMORY_PORTS: u64 = 0x656d_3376;
static REGIONS: [IoRegion; 6] = [
    IoRegion::ports(0xe0, 4),
    IoRegion::ports(0xe4, 4),
    // One of these is a debug port, too.
    IoRegion::ports(0xe8, 4).over_others(),
    IoRegion::ports(0x2000, LINE_COUNT),
    IoRegion::ports(0x2040, 4),
    IoRegion::memory(MEMORY_GPA, MEMORY_BYTES),
];
// Their numbers.
const WORD: usize = 0;
const FORGET: usize = 1;
const BYTES: usize = 2;
const LINES: usize = 3;
const MEMORY_COMMAND: usize = 4;
const MEMORY: usize = 5;

/// What the device keeps for the guest.
struct State {
    word: [u8; 4],
    memory: Vec<u8>,
}

impl State {
    /// Zeros.
    fn new() -> Result<Self, NoMemory> {
        Ok(Self {
            word: [0; 4],
            memory: try_vec(0, MEMORY_BYTES as usize)?,
        })
    }

    /// The byte of the double word at an offset; an access that runs over its end begins anew.
    fn byte(&mut self, offset: u64) -> &mut u8 {
        let [a, b, c, d] = &mut self.word;
        match offset & 3 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        }
    }

    /// The bytes of the memory that an access covers.
    fn memory_at(&mut self, offset: u64, size: u8) -> &mut [u8] {
        let from = offset as usize;
        let to = from.saturating_add(size.into());
        self.memory.get_mut(from..to).unwrap_or_default()
    }
}

/// The device.
pub struct TestDevice {
    guest_memory: Box<dyn GuestMemory>,
    memory_control: Box<dyn MemoryControl>,
    /// By their numbers.
    lines: Vec<Line>,
    state: State,
    /// What a command asks for.
    request: Option<Request>,
}

impl TestDevice {
    /// A device that holds zeros.
    pub fn new(links: &dyn Links) -> Result<Self, NoMemory> {
        let mut lines = Vec::new();
        for number in 0..LINE_COUNT {
            lines.try_push(links.line(number.into())?)?;
        }
        Ok(Self {
            guest_memory: links.memory()?,
            memory_control: links.memory_control()?,
            lines,
            state: State::new()?,
            request: None,
        })
    }

    /// The lines that it holds high, a bit for each.
    fn high_lines(&self) -> u32 {
        let bits = self.lines.iter().rev();
        bits.fold(0, |bits, line| bits << 1 | u32::from(line.is_high()))
    }

    /// Holds these lines high, and no others.
    fn hold_lines(&mut self, high: u32) {
        for (number, line) in (0u32..32).zip(&mut self.lines) {
            line.set(high.wrapping_shr(number) & 1 != 0);
        }
    }
}

impl Device for TestDevice {
    fn name(&self) -> &'static str {
        "test"
    }
    fn reset(&mut self) {
        self.state.word = [0; 4];
        self.state.memory.fill(0);
        self.hold_lines(0);
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.u32(self.high_lines())?;
        to.bytes(&self.state.word)?;
        to.bytes(&self.state.memory)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let high = from.u32()?;
        if high.wrapping_shr(LINE_COUNT.into()) != 0 {
            return Err(StateError::Value("test-device.lines"));
        }
        let mut new = State::new()?;
        new.word = from.bytes()?;
        for byte in &mut new.memory {
            *byte = from.u8()?;
        }
        self.state = new;
        self.hold_lines(high);
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        &REGIONS
    }

    fn read(&mut self, region: usize, offset: u64, size: u8) -> u64 {
        let state = &mut self.state;
        match region {
            WORD | BYTES => read_bytewise(offset, size, |at| *state.byte(at)),
            MEMORY_COMMAND if offset == 0 && size == 4 => MEMORY_PORTS,
            MEMORY => {
                let bytes = state.memory_at(offset, size).iter().rev();
                bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
            }
            _ => u64::MAX,
        }
    }

    fn write(&mut self, region: usize, offset: u64, size: u8, value: u64) {
        let state = &mut self.state;
        // The address that a port is given.
        let at = Gpa(u64::from(value as u32));
        match region {
            WORD | BYTES => write_bytewise(offset, size, value, |at, byte| *state.byte(at) = byte),
            FORGET => self.memory_control.forget(at),
            LINES => {
                if let Some(line) = self.lines.get_mut(offset as usize) {
                    line.set(value as u8 != 0);
                }
            }
            MEMORY_COMMAND if offset == 0 && size == 4 => {
                let (memory, control) = (self.guest_memory.as_ref(), self.memory_control.as_ref());
                self.request = memory_commands::command(memory, control, at);
            }
            MEMORY => {
                let bytes = state.memory_at(offset, size).iter_mut();
                for (to, byte) in bytes.zip(value.to_le_bytes()) {
                    *to = byte;
                }
            }
            _ => {}
        }
    }

    fn request(&mut self) -> Option<Request> {
        self.request.take()
    }

    fn memory_changed(&mut self, tag: u64, changed: Result<(), RegionError>) {
        memory_commands::changed(self.guest_memory.as_ref(), tag, changed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
    use crate::devices::Space;
    use proptest::prelude::*;

    fn bench() -> (TestMachine, TestDevice) {
        let machine = TestMachine::new();
        let device = TestDevice::new(&machine).unwrap();
        (machine, device)
    }

    #[test]
    fn the_word_reads_back_at_any_width() {
        let (machine, mut device) = bench();
        for (size, value) in [(1, 0x11), (2, 0x2233), (4, 0x4455_6677)] {
            machine.port_write(&mut device, 0xe0, size, value);
            assert_eq!(machine.port_read(&mut device, 0xe0, size), value);
        }
        machine.port_write(&mut device, 0xe1, 1, 0xaa);
        machine.port_write(&mut device, 0xe2, 2, 0xccbb);
        assert_eq!(machine.port_read(&mut device, 0xe0, 4), 0xccbb_aa77);
    }

    #[test]
    fn the_same_word_is_there_byte_by_byte() {
        let (machine, mut device) = bench();
        machine.port_write(&mut device, 0xe8, 4, 0x1234_5678);
        assert_eq!(machine.port_read(&mut device, 0xe0, 4), 0x1234_5678);
        assert_eq!(machine.port_read(&mut device, 0xe9, 2), 0x3456);
        assert_eq!(machine.inb(&mut device, 0xeb), 0x12);
    }

    #[test]
    fn an_address_is_forgotten_and_lines_are_driven() {
        let (machine, mut device) = bench();
        machine.port_write(&mut device, 0xe4, 4, 0x12_3456);
        assert_eq!(*machine.forgotten.borrow(), [Gpa(0x12_3456)]);
        for (port, value) in [(0x2000, 1), (0x2017, 0x80), (0x2000, 0)] {
            machine.outb(&mut device, port, value);
        }
        assert_eq!(*machine.irqs.borrow(), [(0, true), (23, true), (0, false)]);
    }

    #[test]
    fn reset_and_restore_leave_the_lines_as_they_were() {
        let (machine, mut device) = bench();
        let record = saved(|w| device.save(w));
        machine.outb(&mut device, 0x2003, 1);
        assert!(machine.line(3));
        device.reset();
        assert!(!machine.line(3));
        machine.outb(&mut device, 0x2003, 1);
        let high = saved(|w| device.save(w));
        assert_restores(&record, &mut device);
        assert!(!machine.line(3));
        assert_restores(&high, &mut device);
        assert!(machine.line(3));
    }

    #[test]
    fn a_command_is_carried_out() {
        let (machine, mut device) = bench();
        machine.ram.borrow_mut().resize(0x1000, 0);
        assert_eq!(
            &machine.port_read(&mut device, 0x2040, 4).to_le_bytes(),
            b"v3me"
        );
        // Begins the log.
        GuestMemory::write(&machine, Gpa(0x100), &[4]).unwrap();
        machine.port_write(&mut device, 0x2040, 4, 0x100);
        assert!(machine.logs.get());
    }

    proptest! {
        #[test]
        fn memory_keeps_what_is_written(at in 0u64..MEMORY_BYTES - 8, size in prop::sample::select(vec![1u8, 2, 4, 8]), value: u64) {
            let (machine, mut device) = bench();
            let (at, mask) = (MEMORY_GPA + at, u64::MAX >> (64 - 8 * u32::from(size)));
            machine.write(&mut device, Space::Memory, at, size, value);
            prop_assert_eq!(machine.read(&mut device, Space::Memory, at, size), value & mask);
            prop_assert_eq!(machine.read(&mut device, Space::Memory, at, 8), value & mask);
            assert_restores(&saved(|w| device.save(w)), &mut TestDevice::new(&machine).unwrap());
            assert_survives(&[2, 0, 0, 0, 5, 5, 5, 5, 9], &mut device);
            device.reset();
            prop_assert_eq!(machine.read(&mut device, Space::Memory, at, 8), 0);
        }
    }
}
