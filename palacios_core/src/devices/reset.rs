// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two ports by which kernels reset a PC: the chipset's reset control, which the FADT names, and system control port A, which
//! also has a gate of address line 20. That reads back and masks nothing: all of the memory can be reached.
//!
//! The third is the keyboard controller's.
#![forbid(unsafe_code)]

use super::kind::Kind;
use super::links::Links;
use super::{Device, IoRegion};
use crate::alloc_ext::{try_box, NoMemory};
use crate::interfaces::{PowerRequest, PowerSink};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "reset",
    make: |wanted| Ok(try_box(ResetPorts::new(wanted.links)?)?),
    ..Kind::OF_EVERY_PC
};

/// Reset control (82371AB: 4.2.6).
pub const RESET_PORT: u16 = 0xcf9;
/// What is written to [`RESET_PORT`] to reset the machine.
pub const RESET_VALUE: u8 = 6;
/// System control port A.
pub const PORT_A: u16 = 0x92;

const STATE_VERSION: u32 = 2;
static REGIONS: [IoRegion; 2] = [IoRegion::ports(PORT_A, 1), IoRegion::ports(RESET_PORT, 1)];
/// The reset control's number among them.
const CONTROL: usize = 1;

/// Resets when set.
const RESET_CPU: u8 = 1 << 2;
/// Hard reset, full reset: what kind of reset it is makes no difference here, but reads back.
const RESET_KIND: u8 = 1 << 1 | 1 << 3;

/// Bits of port A: resets where it becomes set; address line 20 is not masked.
const FAST_RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;

/// What the ports show.
#[derive(Clone, Copy, Debug)]
struct State {
    control: u8,
    port_a: u8,
}

impl State {
    /// Nothing was reset yet.
    const fn new() -> Self {
        Self {
            control: 0,
            port_a: A20,
        }
    }
}

/// The ports.
pub struct ResetPorts {
    power: Box<dyn PowerSink>,
    state: State,
}

impl ResetPorts {
    /// Ports that have reset nothing yet.
    pub fn new(links: &dyn Links) -> Result<Self, NoMemory> {
        Ok(Self {
            power: links.power()?,
            state: State::new(),
        })
    }
}

impl Device for ResetPorts {
    fn name(&self) -> &'static str {
        KIND.name
    }
    fn reset(&mut self) {
        self.state = State::new();
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.bytes(&[self.state.control, self.state.port_a])
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let [control, port_a] = from.bytes()?;
        if control & !RESET_KIND != 0 || port_a & !(A20 | FAST_RESET) != 0 {
            return Err(StateError::Value("reset"));
        }
        self.state = State { control, port_a };
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        &REGIONS
    }

    fn read(&mut self, region: usize, _offset: u64, _size: u8) -> u64 {
        let byte = match region {
            CONTROL => self.state.control,
            _ => self.state.port_a,
        };
        !0xff | u64::from(byte)
    }

    fn write(&mut self, region: usize, _offset: u64, _size: u8, value: u64) {
        let (state, value) = (&mut self.state, value as u8);
        let resets = match region {
            CONTROL => {
                state.control = value & RESET_KIND;
                value & RESET_CPU != 0
            }
            _ => {
                let before = core::mem::replace(&mut state.port_a, value & (A20 | FAST_RESET));
                state.port_a & !before & FAST_RESET != 0
            }
        };
        if resets {
            self.power.request(PowerRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
    use proptest::prelude::*;

    fn resets(port: u16, value: u8) -> bool {
        let machine = TestMachine::new();
        let mut ports = ResetPorts::new(&machine).unwrap();
        machine.outb(&mut ports, port, value);
        let requests = machine.power.take();
        assert!(requests.iter().all(|what| *what == PowerRequest::Reset));
        !requests.is_empty()
    }

    #[test]
    fn either_port_resets() {
        assert!(!resets(RESET_PORT, 0x02));
        assert!(resets(RESET_PORT, RESET_VALUE));
        assert!(resets(RESET_PORT, 0x0e));
        assert!(!resets(PORT_A, 0x02));
        assert!(resets(PORT_A, 0x03));
        assert!(resets(PORT_A, 0x01));
    }

    #[test]
    fn address_line_20_reads_back() {
        let machine = TestMachine::new();
        let mut ports = ResetPorts::new(&machine).unwrap();
        assert_eq!(machine.inb(&mut ports, PORT_A), 2, "as firmware leaves it");
        for value in [0, 2, 0] {
            machine.outb(&mut ports, PORT_A, value);
            assert_eq!(machine.inb(&mut ports, PORT_A), value);
        }
        assert!(machine.power.take().is_empty());
    }

    /// As a kernel does that sets the gate by reading the port, and writing it with one bit more.
    #[test]
    fn port_a_resets_where_its_bit_becomes_set() {
        let machine = TestMachine::new();
        let mut ports = ResetPorts::new(&machine).unwrap();
        for value in [1, 3, 1] {
            machine.outb(&mut ports, PORT_A, value);
        }
        assert_eq!(*machine.power.borrow(), [PowerRequest::Reset]);
    }

    proptest! {
        #[test]
        fn what_was_written_reads_back_and_is_saved(value: u8, port_a: u8, record in prop::collection::vec(0u8..16, 0..7)) {
            let machine = TestMachine::new();
        let mut ports = ResetPorts::new(&machine).unwrap();
            machine.outb(&mut ports, RESET_PORT, value);
            machine.outb(&mut ports, PORT_A, port_a);
            prop_assert_eq!(machine.inb(&mut ports, RESET_PORT), value & 0x0a);
            prop_assert_eq!(machine.inb(&mut ports, PORT_A), port_a & 3);
            assert_restores(&saved(|w| ports.save(w)), &mut ResetPorts::new(&machine).unwrap());
            assert_survives(&record, &mut ports);
            ports.reset();
            prop_assert_eq!(machine.inb(&mut ports, RESET_PORT), 0);
        }
    }
}
