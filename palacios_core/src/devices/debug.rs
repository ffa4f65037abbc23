// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ports for those who debug and test: two that print, one that ends the VM with a status, and port 0x80 for
//! power-on self-test codes, whose writes are ignored.
#![forbid(unsafe_code)]

use super::{ByteStream, Cx, Device, PortIo};
use crate::interfaces::PowerRequest;
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;
use core::ops::Range;

/// Where firmware prints. Reads tell that someone listens.
pub const FIRMWARE_PORT: u16 = 0x402;
/// Where Bochs and those after it print.
pub const BOCHS_PORT: u16 = 0xe9;
/// What reads of both give.
pub const LISTENING: u8 = 0xe9;
/// A write ends the VM with the status `value * 2 + 1`: never 0, so that no guest succeeds by accident.
pub const EXIT_PORT: u16 = 0xf4;
/// Power-on self-test codes; kernels write here to pass time.
pub const POST_PORT: u16 = 0x80;

const STATE_VERSION: u32 = 1;
static PORTS: [Range<u16>; 4] = [0x80..0x81, 0xe9..0xea, 0xf4..0xf5, 0x402..0x403];

/// The ports, printing to one stream.
pub struct DebugPorts {
    stream: Box<dyn ByteStream>,
}

impl DebugPorts {
    /// Ports that print to `stream`.
    pub const fn new(stream: Box<dyn ByteStream>) -> Self {
        Self { stream }
    }
}

impl Device for DebugPorts {
    fn name(&self) -> &'static str {
        "debug"
    }
    fn reset(&mut self) {}
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for DebugPorts {
    fn ports(&self) -> &'static [Range<u16>] {
        &PORTS
    }

    fn port_read(&mut self, _cx: &Cx<'_>, port: u16, _size: u8) -> u32 {
        match port {
            FIRMWARE_PORT | BOCHS_PORT => LISTENING.into(),
            _ => u32::MAX,
        }
    }

    fn port_write(&mut self, cx: &Cx<'_>, port: u16, size: u8, value: u32) {
        let [low, high, ..] = value.to_le_bytes();
        match port {
            FIRMWARE_PORT | BOCHS_PORT => self.stream.write(&[low]),
            EXIT_PORT => {
                let value = match size {
                    1 => low.into(),
                    2 => u16::from_le_bytes([low, high]).into(),
                    _ => value,
                };
                let status = value.wrapping_mul(2).wrapping_add(1);
                cx.power.request(PowerRequest::Exit(status));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, saved, TestMachine, TestStream};
    use proptest::prelude::*;

    #[test]
    fn both_ports_print_and_say_that_someone_listens() {
        let (machine, stream) = (TestMachine::new(), TestStream::default());
        let mut ports = DebugPorts::new(Box::new(stream.clone()));
        for port in [FIRMWARE_PORT, BOCHS_PORT] {
            assert_eq!(machine.inb(&mut ports, port), 0xe9);
            for byte in *b"hi" {
                machine.outb(&mut ports, port, byte);
            }
            assert_eq!(stream.take_output(), b"hi");
        }
    }

    #[test]
    fn the_exit_status_is_odd() {
        let machine = TestMachine::new();
        let mut ports = DebugPorts::new(Box::new(TestStream::default()));
        let cx = machine.cx();
        for (size, value) in [(1, 0), (1, 0x1ff), (2, 0x1_0102), (4, 0x4000_0000)] {
            ports.port_write(&cx, EXIT_PORT, size, value);
        }
        let exits = [1, 0x1ff, 0x205, 0x8000_0001].map(PowerRequest::Exit);
        assert_eq!(*machine.power.borrow(), exits);
    }

    #[test]
    fn post_codes_are_ignored() {
        let (machine, stream) = (TestMachine::new(), TestStream::default());
        let mut ports = DebugPorts::new(Box::new(stream.clone()));
        machine.outb(&mut ports, POST_PORT, 0x55);
        assert_eq!(machine.inb(&mut ports, POST_PORT), 0xff);
        assert_eq!(
            (stream.take_output(), machine.power.take()),
            (vec![], vec![])
        );
    }

    proptest! {
        #[test]
        fn no_access_leaves_state(port: u16, size in prop::sample::select(vec![1u8, 2, 4]), value: u32) {
            let machine = TestMachine::new();
            let mut ports = DebugPorts::new(Box::new(TestStream::default()));
            let record = saved(|w| ports.save(w));
            ports.port_write(&machine.cx(), port, size, value);
            ports.port_read(&machine.cx(), port, size);
            assert_restores(&record, &mut ports);
        }
    }
}
