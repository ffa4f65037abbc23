// SPDX-License-Identifier: MIT OR Apache-2.0
//! The high-precision event timer of a PC (IA-PC HPET Specification 1.0a): a counter of 100 MHz with 64 bits, and three timers.
//!
//! Timers interrupt through the I/O APIC, at the inputs 20 to 23. With *legacy replacement* on, the first two drive the lines
//! of the 8254 and of the real-time clock instead, which are cut off from them. Messages (FSB delivery) are not offered.
//!
//! A comparator fires once each time that it is written; a chip's would do so again when the counter has come around.
//!
//! **Missed ticks.** A periodic timer keeps its phase however late it is served, and what became due meanwhile is one interrupt. No
//! timer interrupts more often than every 20 µs, whatever is programmed. A comparator that the counter has just passed
//! fires at once, as if it had been written in time: writing it takes long on a busy host, and real chips would wait for the
//! counter to come around.
#![forbid(unsafe_code)]

use super::kind::Kind;
use super::links::{Line, Links};
use super::ticks::Frequency;
use super::{Device, IoRegion, Timed};
use crate::alloc_ext::{try_box, NoMemory};
use crate::interfaces::{Clock, InterruptLines};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "hpet",
    make: |wanted| Ok(try_box(Hpet::new(wanted.links)?)?),
    ..Kind::OF_EVERY_PC
};

/// Where the registers are.
pub const BASE_GPA: u64 = 0xfed0_0000;
const WINDOW_BYTES: u64 = 0x400;
/// The counter's rate.
pub const COUNTER: Frequency = Frequency(100_000_000);
/// The lines of the first two timers under legacy replacement: see [`InterruptLines::set_legacy_replacement`].
pub const LEGACY_LINES: [u32; 2] = [0x100, 0x101];
/// The inputs of the I/O APIC that a timer can be routed to.
pub const INPUTS: [u32; 4] = [20, 21, 22, 23];
/// The least distance of two interrupts of a timer: 20 µs.
pub const MIN_SPACING_TICKS: u64 = 2_000;

const STATE_VERSION: u32 = 1;
const TIMERS: usize = 3;
static REGIONS: [IoRegion; 1] = [IoRegion::memory(BASE_GPA, WINDOW_BYTES)];

/// Registers, by their offset (2.3.1).
mod register {
    pub const CAPABILITIES: u64 = 0x000;
    pub const CONFIGURATION: u64 = 0x010;
    pub const STATUS: u64 = 0x020;
    pub const COUNTER: u64 = 0x0f0;
    pub const TIMERS: u64 = 0x100;
    pub const TIMER_BYTES: u64 = 0x20;
    // Of a timer.
    pub const TIMER_CONFIGURATION: u64 = 0x00;
    pub const COMPARATOR: u64 = 0x08;
}

/// General capabilities (2.3.4): a period of 10,000,000 fs; Intel; legacy replacement; 64 bits; three timers; revision 1.
pub const CAPABILITIES: u64 = 10_000_000 << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | 2 << 8 | 1;

/// General configuration (2.3.5).
mod configuration {
    pub const ENABLE: u64 = 1 << 0;
    pub const LEGACY: u64 = 1 << 1;
    pub const WRITABLE: u64 = ENABLE | LEGACY;
}

/// A timer's configuration and capabilities (2.3.8).
mod timer {
    pub const LEVEL: u64 = 1 << 1;
    pub const INTERRUPTS: u64 = 1 << 2;
    pub const PERIODIC: u64 = 1 << 3;
    /// The next write of the comparator sets when it fires next, too, and not its period alone.
    pub const SET_VALUE: u64 = 1 << 6;
    pub const NARROW: u64 = 1 << 8;
    pub const ROUTE: u64 = 0x1f << 9;
    pub const WRITABLE: u64 = LEVEL | INTERRUPTS | PERIODIC | SET_VALUE | NARROW | ROUTE;
    /// It can be periodic, and it has 64 bits.
    pub const CAPABLE: u64 = 1 << 4 | 1 << 5;
}

/// An instant: of the VM's clock, in ticks of the counter's rate, and what the counter shows then.
#[derive(Clone, Copy)]
struct Instant {
    tick: u64,
    counter: u64,
}

/// A timer.
#[derive(Clone, Copy, Debug)]
struct Timer {
    configuration: u64,
    comparator: u64,
    /// Of a periodic timer, in ticks.
    period: u64,
    /// It has not fired for this comparator yet.
    armed: bool,
    /// The tick at which it fires, while the counter counts.
    due: Option<u64>,
    /// The tick at which it last fired.
    last: Option<u64>,
}

impl Timer {
    const fn new() -> Self {
        Self {
            configuration: 0,
            comparator: u64::MAX,
            period: 0,
            armed: false,
            due: None,
            last: None,
        }
    }

    const fn has(&self, bit: u64) -> bool {
        self.configuration & bit != 0
    }
    /// The bits of the counter that are compared.
    const fn mask(&self) -> u64 {
        match self.has(timer::NARROW) {
            true => u32::MAX as u64,
            false => u64::MAX,
        }
    }

    /// Finds out when it fires. `now` is `None` while the counter stands.
    fn schedule(&mut self, now: Option<Instant>) {
        let Some(now) = now.filter(|_| self.armed) else {
            self.due = None;
            return;
        };
        let mask = self.mask();
        let ahead = self.comparator.wrapping_sub(now.counter) & mask;
        // Half of the range ahead lies behind.
        let left = if ahead > mask >> 1 { 0 } else { ahead };
        let spaced = self
            .last
            .map_or(0, |last| last.saturating_add(MIN_SPACING_TICKS));
        self.due = Some(now.tick.saturating_add(left).max(spaced));
    }

    /// It fires if that is due: a periodic one gets its next time, in phase and ahead of the counter.
    fn settle(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|due| due > now.tick) {
            return false;
        }
        self.last = Some(now.tick);
        self.armed = self.has(timer::PERIODIC) && self.period != 0;
        if self.armed {
            let mask = self.mask();
            let late = now.counter.wrapping_sub(self.comparator) & mask;
            let periods = late.checked_div(self.period).unwrap_or(0).wrapping_add(1);
            let ahead = periods.wrapping_mul(self.period);
            self.comparator = self.comparator.wrapping_add(ahead) & mask;
        }
        self.schedule(Some(now));
        true
    }

    fn write_configuration(&mut self, value: u64) {
        let before = self.configuration;
        self.configuration = value & timer::WRITABLE;
        if route(value).is_none() {
            // An input that it cannot reach is not taken (2.3.8, bits 9 to 13).
            self.configuration = self.configuration & !timer::ROUTE | before & timer::ROUTE;
        }
        self.comparator &= self.mask();
        self.period &= self.mask();
    }

    /// Writes the bits of `written`.
    fn write_comparator(&mut self, written: u64, value: u64) {
        let (mask, value) = (self.mask(), value & written);
        if !self.has(timer::PERIODIC) || self.has(timer::SET_VALUE) {
            self.comparator = (self.comparator & !written | value) & mask;
            self.armed = true;
        }
        if self.has(timer::PERIODIC) {
            self.period = (self.period & !written | value) & mask;
        }
        self.configuration &= !timer::SET_VALUE;
    }

    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        for word in [self.configuration, self.comparator, self.period] {
            to.u64(word)?;
        }
        to.bool(self.armed)?;
        for tick in [self.due, self.last] {
            to.bool(tick.is_some())?;
            to.u64(tick.unwrap_or(0))?;
        }
        Ok(())
    }

    fn restored(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let mut new = Self::new();
        new.configuration = from.u64()?;
        new.comparator = from.u64()?;
        new.period = from.u64()?;
        new.armed = from.bool("hpet.armed")?;
        for tick in [&mut new.due, &mut new.last] {
            let there = from.bool("hpet.tick")?;
            let value = from.u64()?;
            if !there && value != 0 {
                return Err(StateError::Value("hpet.tick"));
            }
            *tick = there.then_some(value);
        }
        let fits = new.configuration & !timer::WRITABLE == 0
            && (new.comparator | new.period) & !new.mask() == 0
            && (new.armed || new.due.is_none());
        fits.then_some(new).ok_or(StateError::Value("hpet.timer"))
    }
}

/// What a timer's configuration says of [`INPUTS`], one bit each, in its upper half.
fn routes() -> u64 {
    let bits = INPUTS.map(|input| 1u64.wrapping_shl(input));
    bits.into_iter().fold(0, |all, bit| all | bit) << 32
}

/// The input of the I/O APIC that a timer's configuration names, if it can reach that.
fn route(configuration: u64) -> Option<u32> {
    let input = ((configuration & timer::ROUTE) >> 9) as u32;
    INPUTS.contains(&input).then_some(input)
}

/// Everything a guest can observe.
#[derive(Clone, Copy, Debug)]
struct State {
    configuration: u64,
    /// Level-triggered interrupts that wait to be cleared, one bit a timer.
    status: u64,
    /// While the counter stands, what it shows; else that less the ticks of the VM's clock.
    counter: u64,
    timers: [Timer; TIMERS],
}

impl State {
    /// A counter that stands at zero.
    const fn new() -> Self {
        Self {
            configuration: 0,
            status: 0,
            counter: 0,
            timers: [Timer::new(); TIMERS],
        }
    }

    const fn is_enabled(&self) -> bool {
        self.configuration & configuration::ENABLE != 0
    }
    const fn is_legacy(&self) -> bool {
        self.configuration & configuration::LEGACY != 0
    }
    fn counter_at(&self, tick: u64) -> u64 {
        match self.is_enabled() {
            true => self.counter.wrapping_add(tick),
            false => self.counter,
        }
    }
    /// Sets what the counter shows at `tick`.
    fn set_counter(&mut self, value: u64, tick: u64) {
        self.counter = match self.is_enabled() {
            true => value.wrapping_sub(tick),
            false => value,
        };
        let counter = self.counter_at(tick);
        let now = self.is_enabled().then_some(Instant { tick, counter });
        for timer in &mut self.timers {
            timer.schedule(now);
        }
    }

    /// The line of a timer. `None`: it is routed nowhere.
    fn line(&self, index: usize) -> Option<u32> {
        let legacy = LEGACY_LINES.get(index).filter(|_| self.is_legacy());
        let timer = self.timers.get(index)?;
        legacy.copied().or_else(|| route(timer.configuration))
    }

    /// The line that a timer holds high: that of a level-triggered one that interrupts and was not cleared.
    fn held_line(&self, index: usize) -> Option<u32> {
        let timer = self.timers.get(index)?;
        let waits = self.status & bit(index) != 0;
        let holds = waits && timer.has(timer::LEVEL) && timer.has(timer::INTERRUPTS);
        self.line(index).filter(|_| holds)
    }

    /// The timer that a register at `offset` belongs to, and the register's offset in it.
    fn timer_at(offset: u64) -> Option<(usize, u64)> {
        let offset = offset.checked_sub(register::TIMERS)?;
        let index = (offset / register::TIMER_BYTES) as usize;
        (index < TIMERS).then_some((index, offset % register::TIMER_BYTES))
    }

    /// A register of 64 bits.
    fn read(&self, offset: u64, tick: u64) -> u64 {
        match offset {
            register::CAPABILITIES => CAPABILITIES,
            register::CONFIGURATION => self.configuration,
            register::STATUS => self.status,
            register::COUNTER => self.counter_at(tick),
            _ => match Self::timer_at(offset) {
                Some((index, register)) => self.read_timer(index, register),
                None => 0,
            },
        }
    }

    fn read_timer(&self, index: usize, register: u64) -> u64 {
        match (self.timers.get(index), register) {
            (Some(timer), register::TIMER_CONFIGURATION) => {
                routes() | timer::CAPABLE | timer.configuration
            }
            (Some(timer), register::COMPARATOR) => timer.comparator,
            _ => 0,
        }
    }

    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        for word in [self.configuration, self.status, self.counter] {
            to.u64(word)?;
        }
        self.timers.iter().try_for_each(|timer| timer.save(to))
    }

    fn restored(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let mut new = Self::new();
        new.configuration = from.u64()?;
        new.status = from.u64()?;
        new.counter = from.u64()?;
        for timer in &mut new.timers {
            *timer = Timer::restored(from)?;
        }
        let levels = (0..).zip(&new.timers).filter(|(_, t)| t.has(timer::LEVEL));
        let possible = levels.fold(0, |bits, (index, _)| bits | bit(index));
        let stands = !new.is_enabled() && new.timers.iter().any(|t| t.due.is_some());
        if stands
            || new.configuration & !configuration::WRITABLE != 0
            || new.status & !possible != 0
        {
            return Err(StateError::Value("hpet"));
        }
        Ok(new)
    }
}

/// The timers.
pub struct Hpet {
    clock: Box<dyn Clock>,
    /// Switches the legacy replacement.
    interrupts: Box<dyn InterruptLines>,
    /// One a timer, low unless a level-triggered interrupt waits. It follows the timer's route when it is raised.
    lines: [Line; TIMERS],
    state: State,
}

impl Hpet {
    /// A counter that stands at zero.
    pub fn new(links: &dyn Links) -> Result<Self, NoMemory> {
        let [first, ..] = INPUTS;
        Ok(Self {
            clock: links.clock()?,
            interrupts: links.interrupt_lines()?,
            lines: [links.line(first)?, links.line(first)?, links.line(first)?],
            state: State::new(),
        })
    }

    /// The tick of the VM's clock.
    fn now(&self) -> u64 {
        COUNTER.ticks_at(self.clock.now_ns())
    }

    /// Fires those timers that are due and do not interrupt: so they show themselves to an access. Another one fires at its
    /// deadline alone, which may be held.
    fn settle(&mut self, tick: u64) {
        self.fire(tick, |timer| !timer.has(timer::INTERRUPTS));
    }

    /// Fires those of `which` timers that are due.
    fn fire(&mut self, tick: u64, which: impl Fn(&Timer) -> bool) {
        let Self { state, lines, .. } = self;
        let counter = state.counter_at(tick);
        for (index, line) in lines.iter_mut().enumerate() {
            let number = state.line(index);
            let Some(timer) = state.timers.get_mut(index).filter(|timer| which(timer)) else {
                continue;
            };
            if !timer.settle(Instant { tick, counter }) {
                continue;
            }
            if timer.has(timer::LEVEL) {
                state.status |= bit(index);
            } else if let (true, Some(number)) = (timer.has(timer::INTERRUPTS), number) {
                line.move_to(number);
                line.pulse();
            }
        }
        self.drive_lines();
    }

    /// Drives the lines by the state. An edge-triggered timer's is low: it was pulsed.
    fn drive_lines(&mut self) {
        for (index, line) in self.lines.iter_mut().enumerate() {
            match self.state.held_line(index) {
                Some(number) => {
                    line.move_to(number);
                    line.set(true);
                }
                None => line.set(false),
            }
        }
    }

    /// Lowers them all, before their routes change.
    fn lower_lines(&mut self) {
        for line in &mut self.lines {
            line.set(false);
        }
    }

    /// Takes another state, and drives the lines by it.
    fn replace(&mut self, state: State) {
        if state.is_legacy() != self.state.is_legacy() {
            self.lower_lines();
            self.interrupts.set_legacy_replacement(state.is_legacy());
        }
        self.state = state;
        self.drive_lines();
    }

    /// Writes the bits of `written` of a register.
    fn write_register(&mut self, offset: u64, written: u64, value: u64, tick: u64) {
        let whole = self.state.read(offset, tick) & !written | value;
        match (offset, State::timer_at(offset)) {
            (register::CONFIGURATION, _) => self.write_configuration(whole, tick),
            (register::STATUS, _) => self.state.status &= !value,
            (register::COUNTER, _) => self.state.set_counter(whole, tick),
            (_, Some((index, register::TIMER_CONFIGURATION))) => {
                self.write_timer_configuration(index, whole);
            }
            (_, Some((index, register::COMPARATOR))) => {
                if let Some(timer) = self.state.timers.get_mut(index) {
                    timer.write_comparator(written, value);
                }
            }
            _ => {}
        }
        self.state.set_counter(self.state.counter_at(tick), tick);
    }

    fn write_configuration(&mut self, value: u64, tick: u64) {
        self.lower_lines();
        let state = &mut self.state;
        let counter = state.counter_at(tick);
        let before = state.configuration;
        state.configuration = value & configuration::WRITABLE;
        state.set_counter(counter, tick);
        if (before ^ state.configuration) & configuration::LEGACY != 0 {
            self.interrupts.set_legacy_replacement(state.is_legacy());
        }
    }

    fn write_timer_configuration(&mut self, index: usize, value: u64) {
        self.lower_lines();
        let Some(timer) = self.state.timers.get_mut(index) else {
            return;
        };
        timer.write_configuration(value);
        if !timer.has(timer::LEVEL) {
            self.state.status &= !bit(index);
        }
    }
}

/// A timer's bit in the status register.
const fn bit(index: usize) -> u64 {
    1 << (index % TIMERS)
}

/// Where a piece of `size` bytes lies in its register of 64 bits: the mask, and by how much it is shifted. Only whole and
/// half registers are read and written (2.2).
fn piece(offset: u64, size: u8) -> Option<(u64, u32)> {
    match (offset % 8, size) {
        (0, 8) => Some((u64::MAX, 0)),
        (0, 4) => Some((u32::MAX.into(), 0)),
        (4, 4) => Some((u32::MAX.into(), 32)),
        _ => None,
    }
}

impl Device for Hpet {
    fn name(&self) -> &'static str {
        KIND.name
    }

    fn reset(&mut self) {
        self.replace(State::new());
    }

    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        self.state.save(to)
    }

    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        self.replace(State::restored(from)?);
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        &REGIONS
    }

    fn read(&mut self, _region: usize, offset: u64, size: u8) -> u64 {
        let tick = self.now();
        self.settle(tick);
        let Some((mask, shift)) = piece(offset, size) else {
            return u64::MAX;
        };
        self.state.read(offset & !7, tick) >> shift & mask
    }

    fn write(&mut self, _region: usize, offset: u64, size: u8, value: u64) {
        let tick = self.now();
        self.settle(tick);
        let Some((mask, shift)) = piece(offset, size) else {
            return;
        };
        self.write_register(offset & !7, mask << shift, (value & mask) << shift, tick);
        self.settle(tick);
    }

    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl Timed for Hpet {
    fn deadline_ns(&self) -> Option<u64> {
        // What a timer does that makes no interrupt, or none before its last one is cleared, shows when somebody looks.
        let interrupt = |index, timer: &Timer| {
            timer.has(timer::INTERRUPTS)
                && !(timer.has(timer::LEVEL) && self.state.status & bit(index) != 0)
        };
        let timers = self.state.timers.iter().enumerate();
        let first = timers
            .filter(|(index, timer)| interrupt(*index, timer))
            .filter_map(|(_, timer)| timer.due)
            .min();
        first.map(|tick| COUNTER.ns_of(tick))
    }

    fn tick(&mut self) {
        self.fire(self.now(), |_| true);
    }
}

#[cfg(test)]
mod tests;
