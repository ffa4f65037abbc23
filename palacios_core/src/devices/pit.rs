// SPDX-License-Identifier: MIT OR Apache-2.0
//! The 8254 interval timer of a PC, with the port that gates its third counter to the speaker.
//!
//! Counter 0 interrupts on IRQ 0; counter 1 refreshed memory once and only counts; counter 2 is gated and read back by
//! port 0x61, which is how kernels measure their time-stamp counter.
//!
//! **Missed ticks.** A host that is late owes the guest its ticks, for kernels that keep time by counting them. Up to
//! [`MAX_OWED`] are kept and delivered at twice the programmed rate until they are caught up; what is beyond is lost. No
//! two interrupts are closer than [`MIN_SPACING_TICKS`], whatever is programmed, so that a guest cannot keep its host busy.
#![forbid(unsafe_code)]

mod counter;
#[cfg(test)]
mod tests;

use self::counter::Counter;
use super::kind::Kind;
use super::links::{Line, Links};
use super::ticks::Frequency;
use super::{read_bytewise, write_bytewise, Device, IoRegion, Timed};
use crate::alloc_ext::{try_box, NoMemory};
use crate::interfaces::Clock;
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "pit",
    make: |wanted| Ok(try_box(Pit::new(wanted.links)?)?),
    ..Kind::OF_EVERY_PC
};

/// The crystal: a third of the colour burst's.
pub const CRYSTAL: Frequency = Frequency(1_193_182);
/// Where a PC wires counter 0.
pub const IRQ: u32 = 0;
/// Ticks that a guest can be owed.
pub const MAX_OWED: u64 = 64;
/// The least distance of two interrupts, about 20 µs.
pub const MIN_SPACING_TICKS: u64 = 24;

const STATE_VERSION: u32 = 1;
static REGIONS: [IoRegion; 2] = [IoRegion::ports(0x40, 4), IoRegion::ports(0x61, 1)];
/// Their numbers.
const TIMER: usize = 0;
const PORT_B: usize = 1;
/// Where the timer takes control words, behind a port for each counter.
const CONTROL: u64 = 3;

/// Bits of port 0x61, system control port B.
mod port_b {
    pub const GATE_2: u8 = 1 << 0;
    /// Speaker, parity and channel check enables: kept for software to read.
    pub const WRITABLE: u8 = 0x0f;
    pub const REFRESH: u8 = 1 << 4;
    pub const OUT_2: u8 = 1 << 5;
}

/// The counters, and what is due.
#[derive(Debug)]
struct State {
    counters: [Counter; 3],
    port_b: u8,
    /// Edges of counter 0 not delivered yet.
    owed: u64,
    last_irq_tick: u64,
}

impl State {
    /// As firmware leaves it: counter 0 interrupts 18 times a second.
    const fn new() -> Self {
        Self {
            counters: [Counter::periodic(), Counter::new(true), Counter::new(false)],
            port_b: 0,
            owed: 0,
            last_irq_tick: 0,
        }
    }

    fn settle(&mut self, tick: u64) {
        let [zero, one, two] = &mut self.counters;
        let edges = zero.settle(tick);
        self.owed = self.owed.saturating_add(edges).min(MAX_OWED);
        one.settle(tick);
        two.settle(tick);
    }

    /// The first tick at which an owed interrupt may be delivered.
    fn next_delivery(&self) -> u64 {
        let [zero, ..] = &self.counters;
        let catching_up = zero.period().map_or(0, |period| period / 2);
        let spacing = catching_up.max(MIN_SPACING_TICKS);
        self.last_irq_tick.saturating_add(spacing)
    }

    /// The counter whose port is the timer's at `offset`.
    fn counter(&mut self, offset: u64) -> Option<&mut Counter> {
        self.counters.get_mut(usize::try_from(offset).ok()?)
    }

    fn read(&mut self, region: usize, offset: u64, now_ns: u64) -> u8 {
        let tick = CRYSTAL.ticks_at(now_ns);
        match (region, offset) {
            (PORT_B, 0) => self.read_port_b(tick, now_ns),
            (TIMER, _) => match self.counter(offset) {
                Some(counter) => counter.read(tick),
                None => 0xff,
            },
            _ => 0xff,
        }
    }

    fn read_port_b(&self, tick: u64, now_ns: u64) -> u8 {
        let [_, _, two] = &self.counters;
        let mut value = self.port_b;
        if two.output(tick) {
            value |= port_b::OUT_2;
        }
        // It toggles with each refresh, every 15 µs; the nearest power of two does.
        if now_ns >> 14 & 1 != 0 {
            value |= port_b::REFRESH;
        }
        value
    }

    fn write(&mut self, region: usize, offset: u64, value: u8, tick: u64) {
        match (region, offset) {
            (TIMER, CONTROL) => self.write_control(value, tick),
            (TIMER, _) => {
                if let Some(counter) = self.counter(offset) {
                    counter.write(value, tick);
                }
            }
            (PORT_B, 0) => {
                self.port_b = value & port_b::WRITABLE;
                let [_, _, two] = &mut self.counters;
                two.set_gate(value & port_b::GATE_2 != 0, tick);
            }
            _ => {}
        }
    }

    fn write_control(&mut self, value: u8, tick: u64) {
        let selected = usize::from(value >> 6);
        let Some(counter) = self.counters.get_mut(selected) else {
            self.read_back(value, tick);
            return;
        };
        if value & 0x30 == 0 {
            counter.latch_count(tick);
            return;
        }
        counter.program(value);
        if selected == 0 {
            self.owed = 0;
        }
    }

    /// The read-back command: bits 1 to 3 select counters, bits 4 and 5 what not to latch.
    fn read_back(&mut self, value: u8, tick: u64) {
        for (at, counter) in (1..).zip(self.counters.iter_mut()) {
            if value >> at & 1 == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                counter.latch_count(tick);
            }
            if value & 0x10 == 0 {
                counter.latch_status(tick);
            }
        }
    }
}

/// The timer.
pub struct Pit {
    clock: Box<dyn Clock>,
    /// Low whenever nobody calls: each interrupt is a pulse.
    line: Line,
    state: State,
}

impl Pit {
    /// A timer as firmware leaves it.
    pub fn new(links: &dyn Links) -> Result<Self, NoMemory> {
        Ok(Self {
            clock: links.clock()?,
            line: links.line(IRQ)?,
            state: State::new(),
        })
    }
}

impl Device for Pit {
    fn name(&self) -> &'static str {
        KIND.name
    }

    fn reset(&mut self) {
        self.state = State::new();
    }

    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        let state = &self.state;
        to.u32(STATE_VERSION)?;
        to.u8(state.port_b)?;
        to.u64(state.owed)?;
        to.u64(state.last_irq_tick)?;
        state
            .counters
            .iter()
            .try_for_each(|counter| counter.save(to))
    }

    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let mut new = State::new();
        new.port_b = from.u8()?;
        new.owed = from.u64()?;
        new.last_irq_tick = from.u64()?;
        for counter in &mut new.counters {
            *counter = Counter::restored(from)?;
        }
        let [zero, one, two] = &new.counters;
        let gated = new.port_b & port_b::GATE_2 != 0;
        if new.port_b & !port_b::WRITABLE != 0 || new.owed > MAX_OWED {
            return Err(StateError::Value("pit"));
        }
        if !zero.gate() || !one.gate() || two.gate() != gated {
            return Err(StateError::Value("pit.gate"));
        }
        self.state = new;
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        &REGIONS
    }

    fn answers_in_window(&self, _region: usize, _offset: u64, write: bool) -> bool {
        !write
    }
    fn read(&mut self, region: usize, offset: u64, size: u8) -> u64 {
        let now_ns = self.clock.now_ns();
        let state = &mut self.state;
        state.settle(CRYSTAL.ticks_at(now_ns));
        read_bytewise(offset, size, |offset| state.read(region, offset, now_ns))
    }

    fn write(&mut self, region: usize, offset: u64, size: u8, value: u64) {
        let tick = CRYSTAL.ticks_at(self.clock.now_ns());
        let state = &mut self.state;
        state.settle(tick);
        write_bytewise(offset, size, value, |offset, byte| {
            state.write(region, offset, byte, tick)
        });
    }

    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl Timed for Pit {
    fn deadline_ns(&self) -> Option<u64> {
        let state = &self.state;
        let [zero, ..] = &state.counters;
        let tick = if state.owed > 0 {
            state.next_delivery()
        } else {
            let least = state.last_irq_tick.saturating_add(MIN_SPACING_TICKS);
            zero.next_edge()?.max(least)
        };
        Some(CRYSTAL.ns_of(tick))
    }

    fn tick(&mut self) {
        let tick = CRYSTAL.ticks_at(self.clock.now_ns());
        let state = &mut self.state;
        state.settle(tick);
        if state.owed > 0 && tick >= state.next_delivery() {
            state.owed = state.owed.wrapping_sub(1);
            state.last_irq_tick = tick;
            self.line.pulse();
        }
    }
}
