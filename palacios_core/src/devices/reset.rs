// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two ports by which kernels reset a PC: the chipset's reset control, which the FADT names, and the keyboard
//! controller's command port.
//!
//! There is no keyboard controller behind the latter: its status reads all ones, as an empty bus does. Kernels that probe
//! find its output full forever and give up within milliseconds; a status of zero would make them wait for answers.
#![forbid(unsafe_code)]

use super::{Cx, Device, PortIo, PowerRequest};
use crate::state_io::{StateError, StateReader, StateWriter};
use core::ops::Range;

/// Reset control (82371AB: 4.2.6).
pub const RESET_PORT: u16 = 0xcf9;
/// What is written to [`RESET_PORT`] to reset the machine.
pub const RESET_VALUE: u8 = 6;
/// The keyboard controller's status and command port.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;

const STATE_VERSION: u32 = 1;
static PORTS: [Range<u16>; 2] = [0x64..0x65, 0xcf9..0xcfa];

/// Resets when set.
const RESET_CPU: u8 = 1 << 2;
/// Hard reset, full reset: what kind of reset it is makes no difference here, but reads back.
const RESET_KIND: u8 = 1 << 1 | 1 << 3;

/// The ports.
#[derive(Clone, Debug, Default)]
pub struct ResetPorts {
    control: u8,
}

impl ResetPorts {
    /// Ports that have reset nothing yet.
    pub const fn new() -> Self {
        Self { control: 0 }
    }
}

impl Device for ResetPorts {
    fn name(&self) -> &'static str {
        "reset"
    }
    fn reset(&mut self) {
        *self = Self::new();
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.u8(self.control)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        match from.u8()? {
            control if control & !RESET_KIND == 0 => self.control = control,
            _ => return Err(StateError::Value("reset.control")),
        }
        Ok(())
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for ResetPorts {
    fn ports(&self) -> &'static [Range<u16>] {
        &PORTS
    }

    fn port_read(&mut self, _cx: &Cx<'_>, port: u16, _size: u8) -> u32 {
        match port {
            RESET_PORT => 0xffff_ff00 | u32::from(self.control),
            _ => u32::MAX,
        }
    }

    fn port_write(&mut self, cx: &Cx<'_>, port: u16, _size: u8, value: u32) {
        let value = value as u8;
        let resets = match port {
            RESET_PORT => {
                self.control = value & RESET_KIND;
                value & RESET_CPU != 0
            }
            // Commands 0xf0 to 0xff pulse output lines low, those whose bit is 0; line 0 is the processor's reset.
            KEYBOARD_COMMAND_PORT => value & 0xf1 == 0xf0,
            _ => false,
        };
        if resets {
            cx.power.request(PowerRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
    use proptest::prelude::*;

    fn resets(port: u16, value: u8) -> bool {
        let (machine, mut ports) = (TestMachine::new(), ResetPorts::new());
        machine.outb(&mut ports, port, value);
        let requests = machine.power.take();
        assert!(requests.iter().all(|what| *what == PowerRequest::Reset));
        !requests.is_empty()
    }

    #[test]
    fn linux_resets_by_either_port() {
        assert!(!resets(RESET_PORT, 0x02));
        assert!(resets(RESET_PORT, RESET_VALUE));
        assert!(resets(RESET_PORT, 0x0e));
        assert!(resets(KEYBOARD_COMMAND_PORT, 0xfe));
    }

    #[test]
    fn other_keyboard_commands_do_nothing() {
        for command in [0x20, 0x60, 0xaa, 0xd1, 0xdd, 0xdf, 0xff] {
            assert!(!resets(KEYBOARD_COMMAND_PORT, command));
        }
    }

    #[test]
    fn no_keyboard_controller_is_found() {
        let (machine, mut ports) = (TestMachine::new(), ResetPorts::new());
        assert_eq!(machine.inb(&mut ports, KEYBOARD_COMMAND_PORT), 0xff);
    }

    proptest! {
        #[test]
        fn the_kind_of_reset_reads_back_and_is_saved(value: u8, record in prop::collection::vec(0u8..16, 0..6)) {
            let (machine, mut ports) = (TestMachine::new(), ResetPorts::new());
            machine.outb(&mut ports, RESET_PORT, value);
            prop_assert_eq!(machine.inb(&mut ports, RESET_PORT), value & 0x0a);
            assert_restores(&saved(|w| ports.save(w)), &mut ResetPorts::new());
            assert_survives(&record, &mut ports);
            ports.reset();
            prop_assert_eq!(machine.inb(&mut ports, RESET_PORT), 0);
        }
    }
}
