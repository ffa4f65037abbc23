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
use super::ticks::Frequency;
use super::{read_bytewise, write_bytewise, Cx, Device, IrqLine, PortIo, Timed};
use crate::state_io::{StateError, StateReader, StateWriter};
use core::ops::Range;

/// The crystal: a third of the colour burst's.
pub const CRYSTAL: Frequency = Frequency(1_193_182);
/// Where a PC wires counter 0.
pub const IRQ: IrqLine = IrqLine(0);
/// Ticks that a guest can be owed.
pub const MAX_OWED: u64 = 64;
/// The least distance of two interrupts, about 20 µs.
pub const MIN_SPACING_TICKS: u64 = 24;

const STATE_VERSION: u32 = 1;
static PORTS: [Range<u16>; 2] = [0x40..0x44, 0x61..0x62];

/// Bits of port 0x61, system control port B.
mod port_b {
    pub const GATE_2: u8 = 1 << 0;
    /// Speaker, parity and channel check enables: kept for software to read.
    pub const WRITABLE: u8 = 0x0f;
    pub const REFRESH: u8 = 1 << 4;
    pub const OUT_2: u8 = 1 << 5;
}

/// The timer.
#[derive(Debug)]
pub struct Pit {
    irq: IrqLine,
    counters: [Counter; 3],
    port_b: u8,
    /// Edges of counter 0 not delivered yet.
    owed: u64,
    last_irq_tick: u64,
}

impl Pit {
    /// A timer as firmware leaves it: counter 0 interrupts 18 times a second.
    pub const fn new(irq: IrqLine) -> Self {
        Self {
            irq,
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

    fn read(&mut self, port: u16, now_ns: u64) -> u8 {
        let tick = CRYSTAL.ticks_at(now_ns);
        match port {
            0x61 => self.read_port_b(tick, now_ns),
            _ => match self.counters.get_mut(usize::from(port.wrapping_sub(0x40))) {
                Some(counter) => counter.read(tick),
                None => 0xff,
            },
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

    fn write(&mut self, port: u16, value: u8, tick: u64) {
        match port {
            0x43 => self.write_control(value, tick),
            0x61 => {
                self.port_b = value & port_b::WRITABLE;
                let [_, _, two] = &mut self.counters;
                two.set_gate(value & port_b::GATE_2 != 0, tick);
            }
            _ => {
                if let Some(counter) = self.counters.get_mut(usize::from(port.wrapping_sub(0x40))) {
                    counter.write(value, tick);
                }
            }
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

impl Device for Pit {
    fn name(&self) -> &'static str {
        "pit"
    }

    fn reset(&mut self) {
        *self = Self::new(self.irq);
    }

    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.u8(self.port_b)?;
        to.u64(self.owed)?;
        to.u64(self.last_irq_tick)?;
        self.counters
            .iter()
            .try_for_each(|counter| counter.save(to))
    }

    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let mut new = Self::new(self.irq);
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
        *self = new;
        Ok(())
    }

    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PortIo for Pit {
    fn ports(&self) -> &'static [Range<u16>] {
        &PORTS
    }

    fn port_read(&mut self, cx: &Cx<'_>, port: u16, size: u8) -> u32 {
        let now_ns = cx.clock.now_ns();
        self.settle(CRYSTAL.ticks_at(now_ns));
        read_bytewise(port, size, |port| self.read(port, now_ns))
    }

    fn port_write(&mut self, cx: &Cx<'_>, port: u16, size: u8, value: u32) {
        let tick = CRYSTAL.ticks_at(cx.clock.now_ns());
        self.settle(tick);
        write_bytewise(port, size, value, |port, byte| self.write(port, byte, tick));
    }
}

impl Timed for Pit {
    fn deadline_ns(&self) -> Option<u64> {
        let [zero, ..] = &self.counters;
        let tick = if self.owed > 0 {
            self.next_delivery()
        } else {
            let least = self.last_irq_tick.saturating_add(MIN_SPACING_TICKS);
            zero.next_edge()?.max(least)
        };
        Some(CRYSTAL.ns_of(tick))
    }

    fn tick(&mut self, cx: &Cx<'_>) {
        let tick = CRYSTAL.ticks_at(cx.clock.now_ns());
        self.settle(tick);
        if self.owed > 0 && tick >= self.next_delivery() {
            self.owed = self.owed.wrapping_sub(1);
            self.last_irq_tick = tick;
            self.irq.pulse(cx);
        }
    }
}
