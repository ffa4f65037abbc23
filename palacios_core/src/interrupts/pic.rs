// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pair of 8259A interrupt controllers of a PC (Intel 8259A datasheet, 231468), with the edge/level control
//! registers of the chipsets that followed (82371AB: 4.2.4).
//!
//! It sits with the I/O APIC behind the VM's interrupt lock, reached from any thread that drives a line. Two liberties are taken. An edge stays latched though its line falls before the acknowledge, so that a device
//! may pulse its line; and buffered mode and the MCS-80 call format, which no PC can have wired, are accepted and ignored.
#![forbid(unsafe_code)]

mod registers;

pub use registers::PicRegisters;

use crate::devices::{read_bytewise, write_bytewise, IoRegion};
use crate::state_io::{StateError, StateReader, StateWriter};

/// Where the pair answers.
pub static REGIONS: [IoRegion; 3] = [
    IoRegion::ports(0x20, 2),
    IoRegion::ports(0xa0, 2),
    IoRegion::ports(0x4d0, 2),
];
/// The numbers of these regions: the two chips', and that of edge/level control.
const PRIMARY: usize = 0;
const SECONDARY: usize = 1;
const EDGE_LEVEL: usize = 2;

/// The primary's input to which the secondary's output is wired.
const CASCADE: u8 = 2;
/// The timer's input of the primary, and the real-time clock's of the secondary.
const TIMER: u8 = 0;
const CLOCK: u8 = 0;
/// Inputs that firmware makes level-triggered: the system control interrupt, and those to which pins of PCI devices lead.
pub const LEVELS: u16 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 11;
const STATE_VERSION: u32 = 1;

/// Which initialisation word the data port takes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    /// None since power-on: the chip stays silent.
    Unprogrammed = 0,
    Icw2 = 1,
    Icw3 = 2,
    Icw4 = 3,
    Done = 4,
}

/// One 8259A. Bit `n` of each byte is input `n`.
#[derive(Clone, Copy, Debug)]
struct Chip {
    /// Levels of the input lines.
    lines: u8,
    /// Interrupt requests (IRR).
    requests: u8,
    /// Interrupts in service (ISR).
    in_service: u8,
    /// Interrupt mask (IMR).
    mask: u8,
    /// Inputs that are level-triggered (ELCR).
    level_triggered: u8,
    /// Inputs that may be made so; the others are wired to edges.
    level_allowed: u8,
    vector_base: u8,
    /// The input of lowest priority; the next one, modulo 8, has the highest.
    lowest: u8,
    init: Init,
    /// ICW1 said that an ICW4 follows, and that there is no ICW3.
    wants_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    /// The command port reads the ISR, not the IRR.
    read_in_service: bool,
    /// The next read is a poll.
    poll: bool,
}

const fn bit(irq: u8) -> u8 {
    1 << (irq & 7)
}

impl Chip {
    const fn new(level_allowed: u8) -> Self {
        Self {
            lines: 0,
            requests: 0,
            in_service: 0,
            mask: 0,
            level_triggered: 0,
            level_allowed,
            vector_base: 0,
            lowest: 7,
            init: Init::Unprogrammed,
            wants_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_in_service: false,
            poll: false,
        }
    }

    const fn level_triggered(self, inputs: u8) -> Self {
        Self {
            level_triggered: inputs,
            ..self
        }
    }

    const fn initialised(self, vector_base: u8, mask: u8) -> Self {
        Self {
            vector_base,
            mask,
            init: Init::Done,
            ..self
        }
    }

    fn set_line(&mut self, irq: u8, level: bool) {
        let bit = bit(irq);
        let rising = level && self.lines & bit == 0;
        self.lines = if level {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        if self.level_triggered & bit != 0 {
            self.requests = self.requests & !bit | self.lines & bit;
        } else if rising {
            self.requests |= bit;
        }
    }

    /// Of `inputs`, the one of highest priority with its rank, 0 being the highest.
    fn highest(&self, inputs: u8) -> Option<(u8, u8)> {
        let first = self.lowest.wrapping_add(1) & 7;
        let rank = inputs.rotate_right(first.into()).trailing_zeros() as u8;
        (rank < 8).then_some((rank, rank.wrapping_add(first) & 7))
    }

    /// The input for which the chip asserts INT.
    fn pending(&self) -> Option<u8> {
        if self.init != Init::Done {
            return None;
        }
        let (rank, irq) = self.highest(self.requests & !self.mask)?;
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        if self.special_fully_nested {
            // The primary lets a higher input of the secondary through while another is in service.
            blocking &= !bit(CASCADE);
        }
        match self.highest(blocking) {
            Some((served, _)) if served <= rank => None,
            _ => Some(irq),
        }
    }

    /// The first half of an acknowledge: the request becomes a service.
    fn start_service(&mut self, irq: u8) {
        let bit = bit(irq);
        if self.level_triggered & bit == 0 {
            self.requests &= !bit;
        }
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = irq;
        }
    }

    /// ICW1 begins anew; edges must come again to count, the edge/level choice stays.
    fn write_icw1(&mut self, value: u8) {
        let level_requests = self.lines & self.level_triggered;
        *self = Self {
            lines: self.lines,
            requests: level_requests,
            level_triggered: self.level_triggered,
            init: Init::Icw2,
            wants_icw4: value & 0x01 != 0,
            single: value & 0x02 != 0,
            ..Self::new(self.level_allowed)
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let named = value & 7;
        let target = if value & 0x40 != 0 {
            Some(named)
        } else {
            // A masked input's service is not ended by a non-specific EOI in special mask mode.
            let hidden = if self.special_mask { self.mask } else { 0 };
            self.highest(self.in_service & !hidden).map(|(_, irq)| irq)
        };
        match (value >> 5, target) {
            (0b000, _) => self.rotate_on_auto_eoi = false,
            (0b100, _) => self.rotate_on_auto_eoi = true,
            (0b001 | 0b011, Some(irq)) => self.in_service &= !bit(irq),
            (0b101 | 0b111, Some(irq)) => {
                self.in_service &= !bit(irq);
                self.lowest = irq;
            }
            (0b110, _) => self.lowest = named,
            _ => {}
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_in_service = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_command(&mut self, value: u8) {
        match value >> 3 & 0b11 {
            0b10 | 0b11 => self.write_icw1(value),
            0b01 => self.write_ocw3(value),
            _ => self.write_ocw2(value),
        }
    }

    fn write_data(&mut self, value: u8) {
        let icw4 = if self.wants_icw4 {
            Init::Icw4
        } else {
            Init::Done
        };
        match self.init {
            Init::Unprogrammed | Init::Done => self.mask = value,
            Init::Icw2 => {
                self.vector_base = value & 0xf8;
                self.init = if self.single { icw4 } else { Init::Icw3 };
            }
            // How the pair is wired is not for software to say.
            Init::Icw3 => self.init = icw4,
            Init::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.init = Init::Done;
            }
        }
    }

    fn read(&mut self, data_port: bool) -> u8 {
        if core::mem::take(&mut self.poll) {
            // A poll is an acknowledge that names the input instead of a vector.
            return match self.pending() {
                Some(irq) => {
                    self.start_service(irq);
                    0x80 | irq
                }
                None => 0,
            };
        }
        match (data_port, self.read_in_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requests,
        }
    }

    fn set_level_triggered(&mut self, value: u8) {
        self.level_triggered = value & self.level_allowed;
        // What is level-triggered now requests while its line is high, and only then.
        self.requests = self.requests & !self.level_triggered | self.lines & self.level_triggered;
    }

    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.bytes(&[self.lines, self.requests, self.in_service, self.mask])?;
        to.bytes(&[self.level_triggered, self.vector_base, self.lowest])?;
        to.u8(self.init as u8)?;
        to.bool(self.wants_icw4)?;
        to.bool(self.single)?;
        to.bool(self.auto_eoi)?;
        to.bool(self.rotate_on_auto_eoi)?;
        to.bool(self.special_mask)?;
        to.bool(self.special_fully_nested)?;
        to.bool(self.read_in_service)?;
        to.bool(self.poll)
    }

    fn restored(level_allowed: u8, from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let [lines, requests, in_service, mask] = from.bytes()?;
        let [level_triggered, vector_base, lowest] = from.bytes()?;
        if level_triggered & !level_allowed != 0 {
            return Err(StateError::Value("pic.level_triggered"));
        }
        if (requests ^ lines) & level_triggered != 0 {
            return Err(StateError::Value("pic.requests"));
        }
        if vector_base & 7 != 0 {
            return Err(StateError::Value("pic.vector_base"));
        }
        if lowest > 7 {
            return Err(StateError::Value("pic.lowest"));
        }
        Ok(Self {
            lines,
            requests,
            in_service,
            mask,
            level_triggered,
            level_allowed,
            vector_base,
            lowest,
            init: match from.u8()? {
                0 => Init::Unprogrammed,
                1 => Init::Icw2,
                2 => Init::Icw3,
                3 => Init::Icw4,
                4 => Init::Done,
                _ => return Err(StateError::Value("pic.init")),
            },
            wants_icw4: from.bool("pic.wants_icw4")?,
            single: from.bool("pic.single")?,
            auto_eoi: from.bool("pic.auto_eoi")?,
            rotate_on_auto_eoi: from.bool("pic.rotate_on_auto_eoi")?,
            special_mask: from.bool("pic.special_mask")?,
            special_fully_nested: from.bool("pic.special_fully_nested")?,
            read_in_service: from.bool("pic.read_in_service")?,
            poll: from.bool("pic.poll")?,
        })
    }
}

/// The primary, which drives INTR, and the secondary behind its input 2.
#[derive(Clone, Debug)]
pub struct Pic {
    primary: Chip,
    secondary: Chip,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// The pair after power-on: silent until it is initialised.
    pub const fn new() -> Self {
        Self {
            // Timer, keyboard, cascade, RTC and the coprocessor are wired to edges (82371AB: 4.2.4).
            primary: Chip::new(0xf8),
            secondary: Chip::new(0xde),
        }
    }

    /// The pair as firmware leaves it, in real mode: vectors 0x08 and 0x70; timer, cascade and real-time clock are not masked.
    pub const fn after_firmware() -> Self {
        let Self { primary, secondary } = Self::new();
        Self {
            primary: primary
                .initialised(0x08, !(bit(TIMER) | bit(CASCADE)))
                .level_triggered(LEVELS as u8),
            secondary: secondary
                .initialised(0x70, !bit(CLOCK))
                .level_triggered((LEVELS >> 8) as u8),
        }
    }

    /// Back to power-on; all lines are low.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Drives input `irq`, 0–15. Input 2 is the cascade, and what is beyond 15 does not exist: both are ignored.
    pub fn set_line(&mut self, irq: u8, level: bool) {
        match irq {
            CASCADE => {}
            0..=7 => self.primary.set_line(irq, level),
            8..=15 => self.secondary.set_line(irq & 7, level),
            _ => {}
        }
        self.cascade();
    }

    fn chip(&self, irq: u8) -> &Chip {
        match irq {
            0..=7 => &self.primary,
            _ => &self.secondary,
        }
    }

    /// The vector of input `irq`, unless that is masked.
    pub fn vector(&self, irq: u8) -> Option<u8> {
        let chip = self.chip(irq);
        let heard = irq < 16 && chip.init == Init::Done && chip.mask & bit(irq) == 0;
        heard.then_some(chip.vector_base | irq & 7)
    }

    /// Input `irq` requests an interrupt, but another is in service or goes first.
    pub fn holds_back(&self, irq: u8) -> bool {
        let requests = self.chip(irq).requests & bit(irq) != 0;
        let vector = self.vector(irq).filter(|_| requests);
        vector.is_some() && vector != self.waiting_vector()
    }

    /// INTR, the wire to LINT0 and to the I/O APIC's input 0.
    pub fn output(&self) -> bool {
        self.primary.pending().is_some()
    }

    /// The vector that an acknowledge would give now.
    pub fn waiting_vector(&self) -> Option<u8> {
        let of = |chip: &Chip| chip.pending().map(|irq| chip.vector_base | irq);
        match self.primary.pending()? {
            CASCADE => of(&self.secondary),
            _ => of(&self.primary),
        }
    }

    /// The processor's acknowledge cycle: the vector of the interrupt whose service starts. When the request has gone
    /// meanwhile it is that of input 7, spurious, of which no ISR bit tells.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.primary.pending() {
            Some(CASCADE) => {
                self.primary.start_service(CASCADE);
                // The secondary's output falls during the acknowledge, so that what it asks next is a new edge.
                self.primary.set_line(CASCADE, false);
                Self::acknowledge_chip(&mut self.secondary)
            }
            _ => Self::acknowledge_chip(&mut self.primary),
        };
        self.cascade();
        vector
    }

    fn acknowledge_chip(chip: &mut Chip) -> u8 {
        let irq = chip.pending();
        if let Some(irq) = irq {
            chip.start_service(irq);
        }
        chip.vector_base | irq.unwrap_or(7)
    }

    /// The secondary's output drives the primary's input.
    fn cascade(&mut self) {
        let level = self.secondary.pending().is_some();
        self.primary.set_line(CASCADE, level);
    }

    /// A read in one of [`REGIONS`].
    pub fn read(&mut self, region: usize, offset: u64, size: u8) -> u64 {
        let value = read_bytewise(offset, size, |offset| match (region, offset) {
            (PRIMARY, 0 | 1) => self.primary.read(offset == 1),
            (SECONDARY, 0 | 1) => self.secondary.read(offset == 1),
            (EDGE_LEVEL, 0) => self.primary.level_triggered,
            (EDGE_LEVEL, 1) => self.secondary.level_triggered,
            _ => 0xff,
        });
        self.cascade();
        value
    }

    /// A write in one of [`REGIONS`].
    pub fn write(&mut self, region: usize, offset: u64, size: u8, value: u64) {
        write_bytewise(offset, size, value, |offset, byte| match (region, offset) {
            (PRIMARY, 0) => self.primary.write_command(byte),
            (PRIMARY, 1) => self.primary.write_data(byte),
            (SECONDARY, 0) => self.secondary.write_command(byte),
            (SECONDARY, 1) => self.secondary.write_data(byte),
            (EDGE_LEVEL, 0) => self.primary.set_level_triggered(byte),
            (EDGE_LEVEL, 1) => self.secondary.set_level_triggered(byte),
            _ => {}
        });
        self.cascade();
    }

    /// Writes the state of both chips.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        self.primary.save(to)?;
        self.secondary.save(to)
    }

    /// Takes back what [`Pic::save`] wrote; on failure nothing has changed.
    pub fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let primary = Chip::restored(self.primary.level_allowed, from)?;
        let secondary = Chip::restored(self.secondary.level_allowed, from)?;
        *self = Self { primary, secondary };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::saved;
    use proptest::prelude::*;

    /// The pair as Linux and most others set it up: vectors 0x30 and 0x38, nothing masked.
    /// The region of a port, and the offset in it.
    fn find(port: u16) -> (usize, u64) {
        let at = u64::from(port);
        let here = |region: &IoRegion| region.at <= at && at < region.end();
        let region = REGIONS.iter().position(here).unwrap();
        (region, at - REGIONS[region].at)
    }

    impl Pic {
        fn port_read(&mut self, port: u16, size: u8) -> u32 {
            let (region, offset) = find(port);
            self.read(region, offset, size) as u32
        }
        fn port_write(&mut self, port: u16, size: u8, value: u32) {
            let (region, offset) = find(port);
            self.write(region, offset, size, value.into());
        }
    }

    fn initialised(icw4: u32) -> Pic {
        let mut pic = Pic::new();
        for (command, base, wiring) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
            pic.port_write(command, 1, 0x11);
            for icw in [base, wiring, icw4] {
                pic.port_write(command + 1, 1, icw);
            }
            pic.port_write(command + 1, 1, 0);
        }
        pic
    }

    fn pulse(pic: &mut Pic, irq: u8) {
        pic.set_line(irq, true);
        pic.set_line(irq, false);
    }

    const EOI: u32 = 0x20;

    #[test]
    fn is_silent_until_initialised() {
        let mut pic = Pic::new();
        pulse(&mut pic, 0);
        assert!(!pic.output());
        pic.port_write(0x20, 1, 0x11);
        pulse(&mut pic, 0);
        assert!(!pic.output());
    }

    #[test]
    fn tells_what_it_holds_back() {
        let mut pic = initialised(1);
        assert_eq!((pic.vector(0), pic.vector(8)), (Some(0x30), Some(0x38)));
        assert_eq!((pic.waiting_vector(), pic.holds_back(8)), (None, false));
        pulse(&mut pic, 8);
        assert_eq!(
            (pic.waiting_vector(), pic.holds_back(8)),
            (Some(0x38), false)
        );
        pulse(&mut pic, 0);
        assert_eq!(
            (pic.waiting_vector(), pic.holds_back(8)),
            (Some(0x30), true)
        );
        assert_eq!(pic.acknowledge(), 0x30);
        pulse(&mut pic, 0);
        assert_eq!(pic.waiting_vector(), None);
        assert!(pic.holds_back(0) && pic.holds_back(8));
        pic.port_write(0x21, 1, 1);
        pic.port_write(0xa1, 1, 1);
        assert!(!pic.holds_back(0) && !pic.holds_back(8), "they are masked");
        assert_eq!((pic.vector(0), pic.vector(8)), (None, None));
    }

    #[test]
    fn firmware_leaves_it_open_for_timer_and_clock() {
        let mut pic = Pic::after_firmware();
        for irq in [1, 3, 4, 5, 6, 7, 9, 12, 15] {
            pulse(&mut pic, irq);
        }
        assert!(!pic.output());
        pulse(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x08);
        pic.port_write(0x20, 1, EOI);
        pulse(&mut pic, 8);
        assert_eq!(pic.acknowledge(), 0x70);
        assert_eq!(
            [0x21, 0xa1].map(|port| pic.port_read(port, 1)),
            [0xfa, 0xfe]
        );
    }

    #[test]
    fn delivers_by_priority_and_waits_for_the_end_of_service() {
        let mut pic = initialised(1);
        pulse(&mut pic, 4);
        pulse(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x30);
        assert!(!pic.output(), "4 is below 0, which is in service");
        pic.port_write(0x20, 1, EOI);
        assert_eq!(pic.acknowledge(), 0x34);
        pulse(&mut pic, 1);
        assert_eq!(pic.acknowledge(), 0x31, "1 is above 4");
    }

    #[test]
    fn secondary_interrupts_through_the_cascade() {
        let mut pic = initialised(1);
        pulse(&mut pic, 8);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x38);
        pic.port_write(0x20, 1, 0x0b);
        assert_eq!(pic.port_read(0x20, 1), 0x04, "the cascade is in service");
        pic.port_write(0xa0, 1, 0x0b);
        assert_eq!(pic.port_read(0xa0, 1), 0x01);
        pulse(&mut pic, 12);
        assert!(!pic.output());
        pic.port_write(0xa0, 1, EOI);
        pic.port_write(0x20, 1, EOI);
        assert_eq!(pic.acknowledge(), 0x3c);
    }

    #[test]
    fn an_edge_counts_once_and_a_level_as_long_as_it_is_high() {
        let mut pic = initialised(1);
        pic.set_line(5, true);
        pic.set_line(5, true);
        assert_eq!(pic.acknowledge(), 0x35);
        pic.port_write(0x20, 1, EOI);
        assert!(!pic.output());

        pic.port_write(0x4d0, 2, 0xffff);
        assert_eq!(
            pic.port_read(0x4d0, 2),
            0xdef8,
            "the wired edges stay edges"
        );
        assert_eq!(pic.acknowledge(), 0x35);
        pic.port_write(0x20, 1, EOI);
        assert!(pic.output());
        pic.set_line(5, false);
        assert!(!pic.output());
    }

    #[test]
    fn a_request_that_went_away_is_spurious_and_leaves_no_service() {
        let mut pic = initialised(1);
        pic.port_write(0x4d0, 2, 0x0220);
        pic.set_line(5, true);
        pic.set_line(5, false);
        assert_eq!(pic.acknowledge(), 0x37);
        pic.port_write(0x20, 1, 0x0b);
        assert_eq!(pic.port_read(0x20, 1), 0);

        pic.set_line(9, true);
        pic.set_line(9, false);
        assert_eq!(
            pic.acknowledge(),
            0x3f,
            "the primary saw the cascade's edge"
        );
        assert_eq!(
            pic.port_read(0x20, 1),
            4,
            "which asks for an EOI of the primary alone"
        );
    }

    #[test]
    fn masks_hold_requests_back_and_keep_them() {
        let mut pic = initialised(1);
        pic.port_write(0x21, 1, 0xfe);
        pulse(&mut pic, 3);
        assert!(!pic.output());
        assert_eq!(pic.port_read(0x20, 1), 0x08, "IRR");
        assert_eq!(pic.port_read(0x21, 1), 0xfe, "IMR");
        pic.port_write(0x21, 1, 0);
        assert_eq!(pic.acknowledge(), 0x33);
    }

    #[test]
    fn specific_eoi_ends_the_one_named() {
        let mut pic = initialised(1);
        pulse(&mut pic, 4);
        pic.acknowledge();
        pulse(&mut pic, 1);
        pic.acknowledge();
        pic.port_write(0x20, 1, 0x64);
        pic.port_write(0x20, 1, 0x0b);
        assert_eq!(pic.port_read(0x20, 1), 0x02);
    }

    #[test]
    fn automatic_eoi_leaves_nothing_in_service_and_may_rotate() {
        let mut pic = initialised(3);
        pic.port_write(0x20, 1, 0x80);
        pulse(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x30);
        pulse(&mut pic, 0);
        pulse(&mut pic, 7);
        assert_eq!(
            pic.acknowledge(),
            0x37,
            "0 was served and is the lowest now"
        );
        assert_eq!(pic.acknowledge(), 0x30);
        pulse(&mut pic, 8);
        pulse(&mut pic, 9);
        assert_eq!((pic.acknowledge(), pic.acknowledge()), (0x38, 0x39));
    }

    #[test]
    fn rotation_puts_the_served_or_named_input_last() {
        let mut pic = initialised(1);
        pulse(&mut pic, 2 + 1);
        pic.acknowledge();
        pic.port_write(0x20, 1, 0xa0);
        pulse(&mut pic, 3);
        pulse(&mut pic, 4);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.port_write(0x20, 1, EOI);
        pic.port_write(0x20, 1, 0xc0 | 5);
        pulse(&mut pic, 6);
        assert_eq!(
            pic.acknowledge(),
            0x36,
            "5 is the lowest, so 6 is the highest"
        );
    }

    #[test]
    fn special_mask_mode_lets_lower_inputs_pass_a_masked_service() {
        let mut pic = initialised(1);
        pulse(&mut pic, 1);
        pic.acknowledge();
        pic.port_write(0x21, 1, 0x02);
        pulse(&mut pic, 6);
        assert!(!pic.output());
        pic.port_write(0x20, 1, 0x68);
        assert_eq!(pic.acknowledge(), 0x36);
        pic.port_write(0x20, 1, EOI);
        pic.port_write(0x20, 1, EOI);
        pic.port_write(0x20, 1, 0x0b);
        assert_eq!(
            pic.port_read(0x20, 1),
            0x02,
            "the masked one needs a specific EOI"
        );
    }

    #[test]
    fn special_fully_nested_mode_lets_a_higher_secondary_input_interrupt() {
        let mut pic = initialised(0x11);
        pulse(&mut pic, 12);
        assert_eq!(pic.acknowledge(), 0x3c);
        pulse(&mut pic, 9);
        assert_eq!(pic.acknowledge(), 0x39);
    }

    #[test]
    fn a_poll_acknowledges_and_names_the_input() {
        let mut pic = initialised(1);
        pic.port_write(0x20, 1, 0x0c);
        assert_eq!(pic.port_read(0x20, 1), 0);
        pulse(&mut pic, 6);
        pic.port_write(0x20, 1, 0x0c);
        assert_eq!(pic.port_read(0x20, 1), 0x86);
        assert!(!pic.output());
    }

    #[test]
    fn initialisation_forgets_edges_and_services_but_not_levels() {
        let mut pic = initialised(1);
        pic.port_write(0x4d0, 1, 0x20);
        pic.set_line(3, true);
        pic.set_line(5, true);
        pic.acknowledge();
        pic.port_write(0x20, 1, 0x11);
        for icw in [0x40, 4, 1] {
            pic.port_write(0x21, 1, icw);
        }
        assert_eq!(pic.port_read(0x20, 1), 0x20);
        assert_eq!(pic.acknowledge(), 0x45);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Line(u8, bool),
        Acknowledge,
        Read(u16, u8),
        Write(u16, u8, u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let ports = [0x20u16, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
        let port = prop::sample::select(ports.to_vec());
        let size = prop::sample::select(vec![1u8, 2, 4]);
        let step = prop_oneof![
            (0u8..20, any::<bool>()).prop_map(|(irq, level)| Step::Line(irq, level)),
            Just(Step::Acknowledge),
            (port.clone(), size.clone()).prop_map(|(port, size)| Step::Read(port, size)),
            (port, size, any::<u32>()).prop_map(|(p, size, value)| Step::Write(p, size, value)),
        ];
        prop::collection::vec(step, 0..60)
    }

    fn run(pic: &mut Pic, steps: &[Step]) -> Vec<u32> {
        let one = |step: &Step| match *step {
            Step::Line(irq, level) => {
                pic.set_line(irq, level);
                pic.output().into()
            }
            Step::Acknowledge => pic.acknowledge().into(),
            Step::Read(port, size) => pic.port_read(port, size),
            Step::Write(port, size, value) => {
                pic.port_write(port, size, value);
                pic.output().into()
            }
        };
        steps.iter().map(one).collect()
    }

    proptest! {
        #[test]
        fn a_restored_pair_goes_on_as_the_saved_one(before in steps(), after in steps()) {
            let mut pic = Pic::new();
            run(&mut pic, &before);
            let record = saved(|w| pic.save(w));
            let mut twin = Pic::new();
            prop_assert_eq!(twin.restore(&mut StateReader::new(&record)), Ok(()));
            prop_assert_eq!(saved(|w| twin.save(w)), record);
            prop_assert_eq!(run(&mut twin, &after), run(&mut pic, &after));
        }

        #[test]
        fn an_acknowledge_leaves_at_most_what_it_named(before in steps()) {
            let mut pic = Pic::new();
            run(&mut pic, &before);
            let pending = pic.output();
            let vector = pic.acknowledge();
            prop_assert!(pending || vector == pic.primary.vector_base | 7);
        }

        #[test]
        fn a_damaged_record_is_restored_or_refused(
            before in steps(), at in 0usize..40, byte: u8, length in 0usize..60, after in steps(),
        ) {
            let mut pic = Pic::new();
            run(&mut pic, &before);
            let mut record = saved(|w| pic.save(w));
            if let Some(field) = record.get_mut(at) {
                *field = byte;
            }
            record.truncate(length);
            let _ = pic.restore(&mut StateReader::new(&record));
            run(&mut pic, &after);
        }
    }
}
