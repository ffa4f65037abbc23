// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ports for those who debug and test: two that print, one that ends the VM with a status, and port 0x80 for
//! power-on self-test codes, whose writes are ignored.
#![forbid(unsafe_code)]

use super::kind::Kind;
use super::links::Links;
use super::{ByteStream, Device, IoRegion};
use crate::alloc_ext::{try_box, NoMemory};
use crate::interfaces::{PowerRequest, PowerSink};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "debug",
    has_stream: true,
    make: |mut wanted| {
        let stream = wanted.take_stream()?;
        Ok(try_box(DebugPorts::new(wanted.links, stream)?)?)
    },
    ..Kind::OF_EVERY_PC
};

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
static REGIONS: [IoRegion; 4] = [
    IoRegion::ports(POST_PORT, 1),
    IoRegion::ports(BOCHS_PORT, 1),
    IoRegion::ports(EXIT_PORT, 1),
    IoRegion::ports(FIRMWARE_PORT, 1),
];
// Their numbers.
const POST: usize = 0;
const BOCHS: usize = 1;
const EXIT: usize = 2;
const FIRMWARE: usize = 3;

/// The ports, printing to one stream.
pub struct DebugPorts {
    power: Box<dyn PowerSink>,
    stream: Box<dyn ByteStream>,
}

impl DebugPorts {
    /// Ports that print to `stream`.
    pub fn new(links: &dyn Links, stream: Box<dyn ByteStream>) -> Result<Self, NoMemory> {
        Ok(Self {
            power: links.power()?,
            stream,
        })
    }
}

impl Device for DebugPorts {
    fn name(&self) -> &'static str {
        KIND.name
    }
    fn reset(&mut self) {}
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)
    }

    fn regions(&self) -> &[IoRegion] {
        &REGIONS
    }

    fn answers_in_window(&self, region: usize, _offset: u64, write: bool) -> bool {
        !write || region == POST
    }
    fn read(&mut self, region: usize, _offset: u64, _size: u8) -> u64 {
        match region {
            FIRMWARE | BOCHS => LISTENING.into(),
            _ => u64::MAX,
        }
    }

    fn write(&mut self, region: usize, _offset: u64, size: u8, value: u64) {
        match region {
            FIRMWARE | BOCHS => self.stream.write(&[value as u8]),
            EXIT => {
                let value = match size {
                    1 => (value as u8).into(),
                    2 => (value as u16).into(),
                    _ => value as u32,
                };
                let status = value.wrapping_mul(2).wrapping_add(1);
                self.power.request(PowerRequest::Exit(status));
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

    fn bench() -> (TestMachine, TestStream, DebugPorts) {
        let (machine, stream) = (TestMachine::new(), TestStream::default());
        let ports = DebugPorts::new(&machine, Box::new(stream.clone())).unwrap();
        (machine, stream, ports)
    }

    #[test]
    fn both_ports_print_and_say_that_someone_listens() {
        let (machine, stream, mut ports) = bench();
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
        let (machine, _, mut ports) = bench();
        for (size, value) in [(1, 0), (1, 0x1ff), (2, 0x1_0102), (4, 0x4000_0000)] {
            machine.port_write(&mut ports, EXIT_PORT, size, value);
        }
        let exits = [1, 0x1ff, 0x205, 0x8000_0001].map(PowerRequest::Exit);
        assert_eq!(*machine.power.borrow(), exits);
    }

    #[test]
    fn post_codes_are_ignored() {
        let (machine, stream, mut ports) = bench();
        machine.outb(&mut ports, POST_PORT, 0x55);
        assert_eq!(machine.inb(&mut ports, POST_PORT), 0xff);
        assert_eq!(
            (stream.take_output(), machine.power.take()),
            (vec![], vec![])
        );
    }

    proptest! {
        #[test]
        fn no_access_leaves_state(region in 0usize..5, size in prop::sample::select(vec![1u8, 2, 4]), value: u64) {
            let (_, _, mut ports) = bench();
            let record = saved(|w| ports.save(w));
            ports.write(region, 0, size, value);
            ports.read(region, 0, size);
            assert_restores(&record, &mut ports);
        }
    }
}
