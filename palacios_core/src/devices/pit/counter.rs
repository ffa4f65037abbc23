// SPDX-License-Identifier: MIT OR Apache-2.0
//! One counter of an 8254 (Intel 8254 datasheet, 231164).
//!
//! Nothing counts: the state is what was programmed and the tick at which it began, and what software reads is worked out
//! from the tick of the read. Two simplifications cannot be told apart by software that reads at human speed: a count is
//! loaded with its last byte and not at the next clock, and in mode 3 a new count waits for the end of the whole period.

use crate::state_io::{StateError, StateReader, StateWriter};

/// Which bytes of a count the port moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low = 1,
    High = 2,
    /// The low byte, then the high one.
    Both = 3,
}

impl Access {
    const fn of_control(value: u8) -> Option<Self> {
        match value >> 4 & 3 {
            1 => Some(Self::Low),
            2 => Some(Self::High),
            3 => Some(Self::Both),
            _ => None,
        }
    }
}

/// What the counting element does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// Waits for a count or for a trigger.
    Idle,
    /// Counts since this tick; in the periodic modes, since the period began.
    Since(u64),
    /// The gate stopped it after that many ticks.
    Stopped(u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Counter {
    /// The mode as it was written, 0 to 7: a read-back shows it so.
    written_mode: u8,
    access: Access,
    bcd: bool,
    gate: bool,
    /// The count in use, 1 to 0x10000.
    count: u32,
    /// A count written and not in use yet.
    next: Option<u32>,
    run: Run,
    /// The one rising edge of a mode that has one was told.
    edge_told: bool,
    /// The low byte written, while the high one is awaited.
    low_byte: Option<u8>,
    /// The next read gives the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            written_mode: 0,
            access: Access::Both,
            bcd: false,
            gate,
            count: 0x1_0000,
            next: None,
            run: Run::Idle,
            edge_told: false,
            low_byte: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// In mode 2 with the longest period, as firmware leaves counter 0. It starts when it is first looked at.
    pub(super) const fn periodic() -> Self {
        Self {
            written_mode: 2,
            next: Some(0x1_0000),
            ..Self::new(true)
        }
    }

    /// The mode it is in. The highest bit does not count in modes 2 and 3.
    const fn mode(&self) -> u8 {
        match self.written_mode {
            6.. => self.written_mode & 3,
            mode => mode,
        }
    }
    const fn is_periodic(&self) -> bool {
        matches!(self.mode(), 2 | 3)
    }
    /// A rising gate starts it, and nothing else does.
    const fn is_triggered(&self) -> bool {
        matches!(self.mode(), 1 | 5)
    }

    fn elapsed(&self, tick: u64) -> Option<u64> {
        match self.run {
            Run::Idle => None,
            Run::Since(start) => Some(tick.saturating_sub(start)),
            Run::Stopped(elapsed) => Some(elapsed),
        }
    }

    /// Counts up to `tick`; how many rising edges OUT has had since it was last asked. Comes before all other calls.
    pub(super) fn settle(&mut self, tick: u64) -> u64 {
        if self.starts_when_looked_at() {
            self.start(tick);
        }
        let Run::Since(start) = self.run else {
            return 0;
        };
        if !self.is_periodic() {
            let risen = self.next_edge().is_some_and(|edge| edge <= tick);
            self.edge_told |= risen;
            return risen.into();
        }
        let mut start = start;
        let mut edges = 0;
        if let Some(next) = self.next {
            if tick.saturating_sub(start) < self.count.into() {
                return 0;
            }
            // The count written during a period is used from its end on.
            start = start.saturating_add(self.count.into());
            edges = 1;
            self.count = next;
            self.next = None;
        }
        let count = u64::from(self.count.max(1));
        let periods = tick.saturating_sub(start) / count;
        self.run = Run::Since(start.saturating_add(periods.wrapping_mul(count)));
        periods.saturating_add(edges)
    }

    /// It has a count, and nobody has told it the time yet: see [`Counter::periodic`].
    const fn starts_when_looked_at(&self) -> bool {
        self.is_periodic() && self.next.is_some() && matches!(self.run, Run::Idle)
    }

    /// The tick of OUT's next rising edge, or one at which to look at it.
    pub(super) fn next_edge(&self) -> Option<u64> {
        if self.starts_when_looked_at() {
            return Some(0);
        }
        let Run::Since(start) = self.run else {
            return None;
        };
        let after = match self.mode() {
            2 | 3 => self.count,
            0 | 1 if !self.edge_told => self.count,
            // The strobe is low for one clock.
            4 | 5 if !self.edge_told => self.count.saturating_add(1),
            _ => return None,
        };
        Some(start.saturating_add(after.into()))
    }

    /// Ticks of a whole period, for the modes that have periods.
    pub(super) fn period(&self) -> Option<u64> {
        self.is_periodic().then_some(self.count.into())
    }

    /// The level of OUT.
    pub(super) fn output(&self, tick: u64) -> bool {
        let count = u64::from(self.count.max(1));
        match (self.mode(), self.elapsed(tick)) {
            (0, None) => false,
            (_, None) => true,
            (0 | 1, Some(elapsed)) => elapsed >= count,
            (2, Some(elapsed)) => !self.gate || elapsed % count != count - 1,
            (3, Some(elapsed)) => !self.gate || elapsed % count < count.div_ceil(2),
            (_, Some(elapsed)) => elapsed != count,
        }
    }

    /// What the counting element holds, in the counter's own digits.
    fn value(&self, tick: u64) -> u16 {
        let count = u64::from(self.count.max(1));
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let elapsed = self.elapsed(tick).unwrap_or(0);
        let value = match self.mode() {
            2 => count.wrapping_sub(elapsed % count),
            3 => {
                // It counts by twos, once for each half; an odd count is one too many.
                let (at, half) = (elapsed % count, count.div_ceil(2));
                let into = at.checked_sub(half).unwrap_or(at);
                (count & !1).saturating_sub(into.wrapping_mul(2))
            }
            _ => count.wrapping_add(modulus).wrapping_sub(elapsed % modulus),
        };
        let value = (value % modulus) as u16;
        if self.bcd {
            to_bcd(value)
        } else {
            value
        }
    }

    /// A control word that programs this counter. The caller has seen that it is no latch command.
    pub(super) fn program(&mut self, control: u8) {
        let Some(access) = Access::of_control(control) else {
            return;
        };
        *self = Self {
            written_mode: control >> 1 & 7,
            access,
            bcd: control & 1 != 0,
            count: self.count,
            ..Self::new(self.gate)
        };
    }

    /// A latch command; a count already latched stays.
    pub(super) fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(tick));
        }
    }

    /// A read-back command for the status.
    pub(super) fn latch_status(&mut self, tick: u64) {
        let null_count = self.next.is_some() || self.run == Run::Idle;
        let status = u8::from(self.output(tick)) << 7
            | u8::from(null_count) << 6
            | (self.access as u8) << 4
            | self.written_mode << 1
            | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    pub(super) fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched_count.unwrap_or_else(|| self.value(tick));
        let high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.read_high = !self.read_high;
                !self.read_high
            }
        };
        if high || self.access == Access::Low {
            self.latched_count = None;
        }
        let [low_byte, high_byte] = value.to_le_bytes();
        if high {
            high_byte
        } else {
            low_byte
        }
    }

    pub(super) fn write(&mut self, value: u8, tick: u64) {
        let written = match (self.access, self.low_byte.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Both, None) => {
                self.low_byte = Some(value);
                if self.mode() == 0 {
                    // The first byte stops mode 0, and OUT goes low.
                    self.run = Run::Idle;
                }
                return;
            }
        };
        let count = match (written, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (_, false) => written.into(),
            (_, true) => of_bcd(written),
        };
        self.next = Some(count);
        let waits = self.is_triggered() || self.is_periodic() && self.run != Run::Idle;
        if !waits {
            self.start(tick);
        }
    }

    /// Starts counting from the top, with the count written last.
    fn start(&mut self, tick: u64) {
        if let Some(next) = self.next.take() {
            self.count = next;
        }
        self.edge_told = false;
        self.run = if self.gate || self.is_triggered() {
            Run::Since(tick)
        } else {
            Run::Stopped(0)
        };
    }

    pub(super) const fn gate(&self) -> bool {
        self.gate
    }

    /// Drives the gate (8254 datasheet: figure 21).
    pub(super) fn set_gate(&mut self, level: bool, tick: u64) {
        let was = core::mem::replace(&mut self.gate, level);
        match (was, level, self.run) {
            (false, true, Run::Stopped(elapsed)) if !self.is_periodic() => {
                self.run = Run::Since(tick.saturating_sub(elapsed));
            }
            (false, true, Run::Stopped(_)) => self.start(tick),
            (false, true, _) if self.is_triggered() && self.is_loaded() => self.start(tick),
            (true, false, Run::Since(start)) if !self.is_triggered() => {
                self.run = Run::Stopped(tick.saturating_sub(start));
            }
            _ => {}
        }
    }

    const fn is_loaded(&self) -> bool {
        self.next.is_some() || !matches!(self.run, Run::Idle)
    }

    pub(super) fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        let (run, at) = match self.run {
            Run::Idle => (0, 0),
            Run::Since(start) => (1, start),
            Run::Stopped(elapsed) => (2, elapsed),
        };
        to.bytes(&[self.written_mode, self.access as u8, run])?;
        to.u64(at)?;
        for flag in [self.bcd, self.gate, self.edge_told, self.read_high] {
            to.bool(flag)?;
        }
        to.u32(self.count)?;
        to.u32(self.next.unwrap_or(0))?;
        save_option(to, self.low_byte.map(u16::from))?;
        save_option(to, self.latched_count)?;
        save_option(to, self.latched_status.map(u16::from))
    }

    pub(super) fn restored(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let [written_mode, access, run] = from.bytes()?;
        let at = from.u64()?;
        let mut counter = Self {
            written_mode,
            access: Access::of_control(access << 4).ok_or(StateError::Value("pit.access"))?,
            bcd: from.bool("pit.bcd")?,
            gate: from.bool("pit.gate")?,
            edge_told: from.bool("pit.edge_told")?,
            read_high: from.bool("pit.read_high")?,
            run: match (run, at) {
                (0, 0) => Run::Idle,
                (1, start) => Run::Since(start),
                (2, elapsed) => Run::Stopped(elapsed),
                _ => return Err(StateError::Value("pit.run")),
            },
            ..Self::new(false)
        };
        counter.count = from.u32()?;
        let next = from.u32()?;
        counter.next = (next != 0).then_some(next);
        let one_byte = |v: u16| u8::try_from(v).map_err(|_| StateError::Value("pit.byte"));
        counter.low_byte = restore_option(from)?.map(one_byte).transpose()?;
        counter.latched_count = restore_option(from)?;
        counter.latched_status = restore_option(from)?.map(one_byte).transpose()?;
        let counts = 1..=0x1_0000;
        if written_mode > 7 || access > 3 || !counts.contains(&counter.count) || next > 0x1_0000 {
            return Err(StateError::Value("pit.count"));
        }
        Ok(counter)
    }
}

fn save_option(to: &mut StateWriter<'_>, value: Option<u16>) -> Result<(), StateError> {
    to.bool(value.is_some())?;
    to.u16(value.unwrap_or(0))
}

fn restore_option(from: &mut StateReader<'_>) -> Result<Option<u16>, StateError> {
    let there = from.bool("pit.latch")?;
    let value = from.u16()?;
    if !there && value != 0 {
        return Err(StateError::Value("pit.latch"));
    }
    Ok(there.then_some(value))
}

/// Four decimal digits; a digit over 9 weighs what it says.
fn of_bcd(digits: u16) -> u32 {
    let digit = |at: u32| u32::from(digits >> (4 * at) & 0xf);
    digit(3) * 1000 + digit(2) * 100 + digit(1) * 10 + digit(0)
}

/// The digits of a value below 10,000.
fn to_bcd(value: u16) -> u16 {
    let digit = |weight: u16| value / weight % 10;
    digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
}
