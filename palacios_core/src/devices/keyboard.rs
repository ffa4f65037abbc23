// SPDX-License-Identifier: MIT OR Apache-2.0
//! A PC's keyboard controller (Intel 8042), with no keyboard and no mouse behind it.
//!
//! It answers its own commands, as firmware and kernels ask: self-test, command byte, output port. The output port resets the
//! machine and holds the gate of address line 20, which reads back and masks nothing: all of the memory can be reached. What is sent
//! to a keyboard or a mouse gets no answer, and nothing interrupts. The FADT says that there is no such controller, so
//! that kernels which read it do not wait for a keyboard.
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
    name: "keyboard",
    make: |wanted| Ok(try_box(KeyboardController::new(wanted.links)?)?),
    ..Kind::OF_EVERY_PC
};

/// What the controller answers, and what follows a command.
pub const DATA_PORT: u16 = 0x60;
/// Reads the status, writes a command.
pub const COMMAND_PORT: u16 = 0x64;

const STATE_VERSION: u32 = 1;
static REGIONS: [IoRegion; 2] = [
    IoRegion::ports(DATA_PORT, 1),
    IoRegion::ports(COMMAND_PORT, 1),
];
/// The command port's number among them.
const COMMAND: usize = 1;

/// The status register.
mod status {
    /// An answer waits.
    pub const OUTPUT_FULL: u8 = 1 << 0;
    /// The self-test passed.
    pub const SYSTEM: u8 = 1 << 2;
    /// The last write was a command.
    pub const COMMAND: u8 = 1 << 3;
    /// The keyboard is not locked.
    pub const UNLOCKED: u8 = 1 << 4;
}

/// The command byte after the self-test: keyboard and mouse are off.
const COMMAND_BYTE: u8 = 0x30;

/// The output port.
mod output {
    /// The processor runs; low resets it.
    pub const NO_RESET: u8 = 1 << 0;
    /// Address line 20 is not masked.
    pub const A20: u8 = 1 << 1;
    /// What it holds after power-on.
    pub const INITIAL: u8 = 0xc0 | A20 | NO_RESET;
}

/// Commands (8042 as in the IBM PS/2 Technical Reference: keyboard and auxiliary device controller).
mod command {
    pub const READ_COMMAND_BYTE: u8 = 0x20;
    pub const WRITE_COMMAND_BYTE: u8 = 0x60;
    pub const DISABLE_MOUSE: u8 = 0xa7;
    pub const ENABLE_MOUSE: u8 = 0xa8;
    pub const TEST_MOUSE: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_INPUT: u8 = 0xc0;
    pub const READ_OUTPUT: u8 = 0xd0;
    pub const WRITE_OUTPUT: u8 = 0xd1;
    pub const ECHO_KEYBOARD: u8 = 0xd2;
    pub const ECHO_MOUSE: u8 = 0xd3;
    pub const WRITE_MOUSE: u8 = 0xd4;
    pub const DISABLE_A20: u8 = 0xdd;
    pub const ENABLE_A20: u8 = 0xdf;
    /// From here on: pulses the output port's lines whose bits are 0.
    pub const PULSE: u8 = 0xf0;
}

/// In the command byte: the clock of keyboard or mouse is held.
const KEYBOARD_OFF: u8 = 1 << 4;
const MOUSE_OFF: u8 = 1 << 5;
const SELF_TEST_PASSED: u8 = 0x55;
/// A test found the lines in order.
const LINES_GOOD: u8 = 0;

/// What the controller holds.
#[derive(Clone, Copy, Debug)]
struct State {
    /// Keeps interrupts and clocks of keyboard and mouse.
    command_byte: u8,
    output_port: u8,
    answer: Option<u8>,
    /// The command whose data byte comes next.
    awaiting: Option<u8>,
    last_was_command: bool,
}

impl State {
    /// It has passed its self-test.
    const fn new() -> Self {
        Self {
            command_byte: COMMAND_BYTE,
            output_port: output::INITIAL,
            answer: None,
            awaiting: None,
            last_was_command: false,
        }
    }

    fn status(&self) -> u8 {
        let mut value = status::SYSTEM | status::UNLOCKED;
        if self.answer.is_some() {
            value |= status::OUTPUT_FULL;
        }
        if self.last_was_command {
            value |= status::COMMAND;
        }
        value
    }

    fn set_a20(&mut self, on: bool) {
        self.output_port = match on {
            true => self.output_port | output::A20,
            false => self.output_port & !output::A20,
        };
    }
}

/// The controller.
pub struct KeyboardController {
    power: Box<dyn PowerSink>,
    state: State,
}

impl KeyboardController {
    /// A controller that has passed its self-test.
    pub fn new(links: &dyn Links) -> Result<Self, NoMemory> {
        Ok(Self {
            power: links.power()?,
            state: State::new(),
        })
    }

    fn take_command(&mut self, value: u8) {
        let state = &mut self.state;
        state.awaiting = None;
        state.last_was_command = true;
        match value {
            command::READ_COMMAND_BYTE => state.answer = Some(state.command_byte),
            command::WRITE_COMMAND_BYTE | command::WRITE_OUTPUT..=command::WRITE_MOUSE => {
                state.awaiting = Some(value);
            }
            command::DISABLE_MOUSE => state.command_byte |= MOUSE_OFF,
            command::ENABLE_MOUSE => state.command_byte &= !MOUSE_OFF,
            command::DISABLE_KEYBOARD => state.command_byte |= KEYBOARD_OFF,
            command::ENABLE_KEYBOARD => state.command_byte &= !KEYBOARD_OFF,
            command::TEST_MOUSE | command::TEST_KEYBOARD => state.answer = Some(LINES_GOOD),
            command::SELF_TEST => {
                state.command_byte = COMMAND_BYTE;
                state.answer = Some(SELF_TEST_PASSED);
            }
            command::READ_INPUT => state.answer = Some(0),
            command::READ_OUTPUT => state.answer = Some(state.output_port),
            command::DISABLE_A20 => state.set_a20(false),
            command::ENABLE_A20 => state.set_a20(true),
            command::PULSE.. if value & output::NO_RESET == 0 => self.reset_machine(),
            _ => {}
        }
    }

    /// A byte for the command before it, or for the keyboard.
    fn take_data(&mut self, value: u8) {
        let state = &mut self.state;
        state.last_was_command = false;
        match state.awaiting.take() {
            Some(command::WRITE_OUTPUT) => {
                state.output_port = value;
                if value & output::NO_RESET == 0 {
                    self.reset_machine();
                }
            }
            Some(command::ECHO_KEYBOARD | command::ECHO_MOUSE) => state.answer = Some(value),
            Some(command::WRITE_COMMAND_BYTE) => state.command_byte = value,
            _ => {}
        }
    }

    fn reset_machine(&self) {
        self.power.request(PowerRequest::Reset);
    }
}

impl Device for KeyboardController {
    fn name(&self) -> &'static str {
        KIND.name
    }
    fn reset(&mut self) {
        self.state = State::new();
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        let state = &self.state;
        to.bytes(&[state.command_byte, state.output_port])?;
        for byte in [state.answer, state.awaiting] {
            to.bool(byte.is_some())?;
            to.u8(byte.unwrap_or(0))?;
        }
        to.bool(state.last_was_command)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let mut new = State::new();
        [new.command_byte, new.output_port] = from.bytes()?;
        for byte in [&mut new.answer, &mut new.awaiting] {
            let there = from.bool("keyboard.byte")?;
            let value = from.u8()?;
            if !there && value != 0 {
                return Err(StateError::Value("keyboard.byte"));
            }
            *byte = there.then_some(value);
        }
        new.last_was_command = from.bool("keyboard.last_was_command")?;
        self.state = new;
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        &REGIONS
    }

    fn read(&mut self, region: usize, _offset: u64, _size: u8) -> u64 {
        let byte = match region {
            COMMAND => self.state.status(),
            _ => self.state.answer.take().unwrap_or(0),
        };
        !0xff | u64::from(byte)
    }

    fn write(&mut self, region: usize, _offset: u64, _size: u8, value: u64) {
        match region {
            COMMAND => self.take_command(value as u8),
            _ => self.take_data(value as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
    use proptest::prelude::*;

    struct Controller(TestMachine, KeyboardController);

    impl Controller {
        fn new() -> Self {
            let machine = TestMachine::new();
            let controller = KeyboardController::new(&machine).unwrap();
            Self(machine, controller)
        }
        /// Sends a command as kernels do, with the bytes that follow it.
        fn command(&mut self, command: u8, data: &[u8]) {
            assert_eq!(self.status() & 2, 0, "it takes bytes at once");
            self.0.outb(&mut self.1, COMMAND_PORT, command);
            for byte in data {
                self.0.outb(&mut self.1, DATA_PORT, *byte);
            }
        }
        fn status(&mut self) -> u8 {
            self.0.inb(&mut self.1, COMMAND_PORT)
        }
        /// What it answers, if it does.
        fn answer(&mut self) -> Option<u8> {
            let waits = self.status() & 1 != 0;
            waits.then(|| self.0.inb(&mut self.1, DATA_PORT))
        }
        fn resets(&self) -> bool {
            let requests = self.0.power.take();
            assert!(requests.iter().all(|what| *what == PowerRequest::Reset));
            !requests.is_empty()
        }
    }

    #[test]
    fn it_is_found_and_passes_its_tests() {
        let mut controller = Controller::new();
        assert_eq!(controller.status(), 0x14);
        for (command, answer) in [(0xaa, 0x55), (0xab, 0), (0xa9, 0), (0x20, 0x30)] {
            controller.command(command, &[]);
            assert_eq!(controller.status() & 9, 9);
            assert_eq!(controller.answer(), Some(answer), "{command:#x}");
            assert_eq!(controller.answer(), None);
        }
    }

    #[test]
    fn the_command_byte_reads_back_and_says_what_is_off() {
        let mut controller = Controller::new();
        let steps: [(u8, &[u8], u8); 5] = [
            (0x60, &[0x47], 0x47),
            (0xad, &[], 0x57),
            (0xa7, &[], 0x77),
            (0xae, &[], 0x67),
            (0xa8, &[], 0x47),
        ];
        for (command, data, expected) in steps {
            controller.command(command, data);
            controller.command(0x20, &[]);
            assert_eq!(controller.answer(), Some(expected), "{command:#x}");
        }
    }

    #[test]
    fn address_line_20_reads_back() {
        let mut controller = Controller::new();
        let steps: [(u8, &[u8], bool); 4] = [
            (0xdd, &[], false),
            (0xdf, &[], true),
            (0xd1, &[0xdd], false),
            (0xd1, &[0xdf], true),
        ];
        for (command, data, on) in steps {
            controller.command(command, data);
            controller.command(0xd0, &[]);
            let port = controller.answer().unwrap();
            assert_eq!((port & 2 != 0, port & 1), (on, 1), "{command:#x}");
        }
        assert!(!controller.resets());
    }

    #[test]
    fn it_resets_the_machine() {
        let mut controller = Controller::new();
        let resets: [(u8, &[u8]); 3] = [(0xfe, &[]), (0xf0, &[]), (0xd1, &[0xde])];
        for (command, data) in resets {
            controller.command(command, data);
            assert!(controller.resets(), "{command:#x}");
        }
        for command in [0x20, 0x60, 0xaa, 0xd1, 0xdd, 0xdf, 0xff] {
            controller.command(command, &[0xff]);
            assert!(!controller.resets(), "{command:#x}");
        }
    }

    #[test]
    fn no_keyboard_and_no_mouse_answers() {
        let mut controller = Controller::new();
        // Reset, identify, echo; the same of the mouse.
        for byte in [0xff, 0xf2, 0xee] {
            controller.0.outb(&mut controller.1, DATA_PORT, byte);
            assert_eq!(controller.answer(), None);
            controller.command(0xd4, &[byte]);
            assert_eq!(controller.answer(), None);
        }
        controller.command(0xd2, &[0x1c]);
        assert_eq!(controller.answer(), Some(0x1c), "as if it had sent it");
    }

    proptest! {
        #[test]
        fn all_state_is_saved(writes in prop::collection::vec((any::<bool>(), any::<u8>()), 0..20), record in prop::collection::vec(any::<u8>(), 0..14)) {
            let mut controller = Controller::new();
            for (command, value) in writes {
                let port = if command { COMMAND_PORT } else { DATA_PORT };
                controller.0.outb(&mut controller.1, port, value);
            }
            assert_restores(&saved(|w| controller.1.save(w)), &mut Controller::new().1);
            assert_survives(&record, &mut controller.1);
            controller.1.reset();
            prop_assert_eq!(controller.status(), 0x14);
        }
    }
}
