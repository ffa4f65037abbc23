// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real-time clock and CMOS memory of a PC (Motorola MC146818A datasheet).
//!
//! It shows the host's wall clock plus an offset, which changes when the guest sets the time. It ticks when the wall
//! clock's second does. Interrupts that are not acknowledged by a read of register C are not repeated: all periods that
//! went by meanwhile make one. A divider chain held in reset stops the events, not the time.
#![forbid(unsafe_code)]

mod calendar;
#[cfg(test)]
mod tests;

use self::calendar::{date_of, days_of, DAY_S};
use super::kind::{AcpiDevice, Kind, Place};
use super::links::{Line, Links};
use super::ticks::{Frequency, NS_PER_S};
use super::{read_bytewise, write_bytewise, Device, IoRegion, Timed};
use crate::alloc_ext::{try_box, NoMemory};
use crate::interfaces::Clock;
use crate::ram::RamLayout;
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "rtc",
    make: |wanted| Ok(try_box(Rtc::new(wanted.links, wanted.ram)?)?),
    ..Kind::OF_EVERY_PC
};

/// Where a PC wires it.
pub const IRQ: u32 = 8;
/// Selects one of 128 bytes; bit 7 would mask NMIs.
pub const INDEX_PORT: u16 = 0x70;
/// Reads and writes the byte selected.
pub const DATA_PORT: u16 = 0x71;
/// The byte that holds the century.
pub const CENTURY: u8 = 0x32;

/// What ACPI's tables say of it.
pub const ACPI: AcpiDevice = AcpiDevice {
    name: *b"RTC_",
    // PNP0B00, an MC146818.
    hid: [0x41, 0xd0, 0x0b, 0x00],
    uid: 0,
    place: Place {
        name: "rtc",
        port: 0x70,
        ports: 2,
        irq: 8,
    },
};

const STATE_VERSION: u32 = 1;
static REGIONS: [IoRegion; 1] = [IoRegion::ports(INDEX_PORT, 2)];
/// Where the ports lie in it.
const INDEX: u64 = 0;
const DATA: u64 = 1;
const CRYSTAL: Frequency = Frequency(32_768);
/// How long before a second ends the time must not be read: 244 µs of warning and 1,984 µs of update.
const UPDATE_NS: u64 = 2_228_000;
/// Seconds until an alarm that is further away is looked for again: the wall clock may be set, and nobody tells.
const ALARM_LOOK_S: u64 = 60;
const BYTES: usize = 128;

/// The bytes that are not memory.
mod register {
    pub const SECONDS_ALARM: u8 = 0x01;
    pub const MINUTES_ALARM: u8 = 0x03;
    pub const HOURS_ALARM: u8 = 0x05;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
}

/// The bytes that hold the time, in the order in which [`TimeBytes`] does.
const TIME: [u8; 8] = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, CENTURY];
/// Seconds, minutes, hours, weekday, day, month, year, century, as the guest encodes them.
type TimeBytes = [u8; 8];

/// Register A.
mod reg_a {
    pub const UPDATE_IN_PROGRESS: u8 = 1 << 7;
    pub const DIVIDER: u8 = 0x70;
    pub const DIVIDER_RUNS: u8 = 0x20;
    pub const RATE: u8 = 0x0f;
}

/// Register B.
mod reg_b {
    pub const SET: u8 = 1 << 7;
    pub const UPDATE_INTERRUPT: u8 = 1 << 4;
    pub const SQUARE_WAVE: u8 = 1 << 3;
    pub const BINARY: u8 = 1 << 2;
    pub const HOURS_24: u8 = 1 << 1;
}

/// Register C: the flags that, enabled by the same bits of register B, interrupt.
mod reg_c {
    pub const INTERRUPT: u8 = 1 << 7;
    pub const PERIODIC: u8 = 1 << 6;
    pub const ALARM: u8 = 1 << 5;
    pub const UPDATE: u8 = 1 << 4;
    pub const ALL: u8 = PERIODIC | ALARM | UPDATE;
}

/// Register D: the battery is good.
const VALID: u8 = 0x80;
/// Hours after noon, in 12-hour mode.
const PM: u8 = 0x80;
/// An alarm byte from here on matches any value.
const ANY: u8 = 0xc0;

/// When an access or a tick is: all of it, so that no event comes between a read of register C and its effect on the line.
/// What came then would keep the line up, and an edge would be lost for ever.
#[derive(Clone, Copy)]
struct Instant {
    now_ns: u64,
    wall_ns: u64,
}

impl Instant {
    fn of(clock: &dyn Clock) -> Self {
        Self {
            now_ns: clock.now_ns(),
            wall_ns: clock.wall_ns(),
        }
    }
}

/// Registers, memory and time.
#[derive(Clone, Debug)]
struct State {
    index: u8,
    a: u8,
    b: u8,
    c: u8,
    memory: [u8; BYTES],
    /// What the guest's time is ahead of the wall clock.
    offset_s: i64,
    /// The time as it stood, or was written, since SET stopped it.
    stopped: Option<TimeBytes>,
    /// The wall clock's second when events were last looked for; 0 is never.
    settled_s: u64,
    /// The same in ticks of the crystal.
    settled_tick: u64,
    /// When the VM's clock ends the present second, and when it comes to the alarm, if that interrupts, or to the next look
    /// for it.
    update_at_ns: u64,
    alarm_at_ns: Option<u64>,
}

impl State {
    /// With the sizes of this RAM in CMOS.
    fn new(ram: RamLayout) -> Self {
        let mut state = Self {
            index: 0,
            // 1,024 Hz; BCD and 24 hours.
            a: reg_a::DIVIDER_RUNS | 6,
            b: reg_b::HOURS_24,
            c: 0,
            memory: [0; BYTES],
            offset_s: 0,
            stopped: None,
            settled_s: 0,
            settled_tick: 0,
            update_at_ns: 0,
            alarm_at_ns: None,
        };
        state.describe_memory(ram);
        state
    }

    /// The memory sizes as PC firmware writes them, each in little-endian units with a limit.
    fn describe_memory(&mut self, ram: RamLayout) {
        const MIB: u64 = 1 << 20;
        let (below_4g, high) = (ram.low().end, ram.high());
        let kib_above_1m = (below_4g.saturating_sub(MIB) >> 10).min(0xffff);
        let blocks_above_16m = (below_4g.saturating_sub(16 * MIB) >> 16).min(0xffff);
        let blocks_above_4g = (high.end.saturating_sub(high.start) >> 16).min(0xff_ffff);
        // Equipment: a coprocessor.
        self.put(0x14, 1, 0x02);
        self.put(0x15, 2, 640);
        self.put(0x17, 2, kib_above_1m);
        self.put(0x30, 2, kib_above_1m);
        self.put(0x34, 2, blocks_above_16m);
        self.put(0x5b, 3, blocks_above_4g);
        let summed = self.memory.iter().take(0x2e).skip(0x10);
        let sum: u16 = summed.fold(0, |sum, byte| sum.wrapping_add((*byte).into()));
        self.put(0x2e, 2, sum.swap_bytes().into());
    }

    fn put(&mut self, at: usize, bytes: usize, value: u64) {
        let room = self.memory.iter_mut().skip(at).take(bytes);
        for (slot, byte) in room.zip(value.to_le_bytes()) {
            *slot = byte;
        }
    }

    const fn runs(&self) -> bool {
        self.a & reg_a::DIVIDER == reg_a::DIVIDER_RUNS
    }

    /// Crystal ticks between periodic events, if there are any (MC146818A: table 5).
    const fn period_ticks(&self) -> Option<u64> {
        match self.a & reg_a::RATE {
            0 => None,
            _ if !self.runs() => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Looks whether a period has ended since it last did.
    fn settle_periods(&mut self, now_ns: u64) {
        let tick = CRYSTAL.ticks_at(now_ns);
        if let Some(period) = self.period_ticks() {
            // A power of two.
            if tick / period != self.settled_tick / period {
                self.c |= reg_c::PERIODIC;
            }
        }
        self.settled_tick = tick;
    }

    /// Looks for events of the wall clock since it last did, and when the next will be.
    fn settle(&mut self, at: Instant) {
        let Instant { now_ns, wall_ns } = at;
        let (wall_s, into_ns) = (wall_ns / NS_PER_S, wall_ns % NS_PER_S);
        let from_s = match self.settled_s {
            0 => wall_s,
            settled_s => settled_s,
        };
        let passed_s = wall_s.saturating_sub(from_s);
        if passed_s > 0 && self.stopped.is_none() && self.runs() {
            self.c |= reg_c::UPDATE;
            if self
                .alarm_after(from_s)
                .is_some_and(|wait_s| wait_s <= passed_s)
            {
                self.c |= reg_c::ALARM;
            }
        }
        self.settled_s = wall_s;
        self.update_at_ns = now_ns.saturating_add(NS_PER_S.wrapping_sub(into_ns));
        self.alarm_at_ns = None;
        if self.wants(reg_c::ALARM) && self.stopped.is_none() && self.runs() {
            let look_s = |wait_s: u64| wait_s.min(ALARM_LOOK_S).saturating_sub(1);
            let further_ns = |wait_s| look_s(wait_s).wrapping_mul(NS_PER_S);
            let wait_s = self.alarm_after(wall_s);
            self.alarm_at_ns =
                wait_s.map(|wait_s| self.update_at_ns.saturating_add(further_ns(wait_s)));
        }
    }

    /// The flag would interrupt, and is not set.
    const fn wants(&self, flag: u8) -> bool {
        self.b & !self.c & flag != 0
    }

    /// Seconds of the guest's clock.
    fn guest_s(&self, wall_s: u64) -> i64 {
        i64::try_from(wall_s)
            .unwrap_or(i64::MAX)
            .saturating_add(self.offset_s)
    }

    /// How many seconds after a second of the wall clock the alarm comes: 1 to 86,400, or never.
    fn alarm_after(&self, wall_s: u64) -> Option<u64> {
        let byte = |at: u8| self.memory.get(usize::from(at)).copied().unwrap_or(0);
        let (h, m, s) = (
            byte(register::HOURS_ALARM),
            byte(register::MINUTES_ALARM),
            byte(register::SECONDS_ALARM),
        );
        let field = |byte: u8, value: u8, below: u8| match byte {
            ANY.. => Some(None),
            _ => (value < below).then_some(Some(i64::from(value))),
        };
        let hour = field(h, self.decode_hour(h), 24)?;
        let minute = field(m, self.decode(m), 60)?;
        let second = field(s, self.decode(s), 60)?;
        let misses = |field: Option<i64>, is: i64| field.is_some_and(|wanted| wanted != is);

        let now = self.guest_s(wall_s).rem_euclid(DAY_S);
        let mut wait_s = 1;
        while wait_s <= DAY_S {
            let then = now.wrapping_add(wait_s).rem_euclid(DAY_S);
            // On to where the first field that does not match changes: at most 24 + 60 + 60 steps.
            let step_s = if misses(hour, then / 3600) {
                3600 - then % 3600
            } else if misses(minute, then / 60 % 60) {
                60 - then % 60
            } else if misses(second, then % 60) {
                1
            } else {
                return Some(wait_s.unsigned_abs());
            };
            wait_s = wait_s.wrapping_add(step_s);
        }
        None
    }

    fn decode(&self, byte: u8) -> u8 {
        if self.b & reg_b::BINARY != 0 {
            byte
        } else {
            // A digit over 9 weighs what it says; 165 at most.
            (byte >> 4).wrapping_mul(10).wrapping_add(byte & 0xf)
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b & reg_b::BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode_hour(&self, byte: u8) -> u8 {
        if self.b & reg_b::HOURS_24 != 0 {
            return self.decode(byte);
        }
        let hour = self.decode(byte & !PM) % 12;
        hour.wrapping_add(if byte & PM != 0 { 12 } else { 0 })
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b & reg_b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let of_twelve = match hour % 12 {
            0 => 12,
            hour => hour,
        };
        self.encode(of_twelve) | if hour >= 12 { PM } else { 0 }
    }

    /// The time at a second of the wall clock, or as it was stopped.
    fn time(&self, wall_s: u64) -> TimeBytes {
        if let Some(stopped) = self.stopped {
            return stopped;
        }
        let guest_s = self.guest_s(wall_s);
        let date = date_of(guest_s.div_euclid(DAY_S));
        let of_day = guest_s.rem_euclid(DAY_S);
        [
            self.encode((of_day % 60) as u8),
            self.encode((of_day / 60 % 60) as u8),
            self.encode_hour((of_day / 3600) as u8),
            self.encode(date.weekday),
            self.encode(date.day),
            self.encode(date.month),
            self.encode(date.year.rem_euclid(100) as u8),
            self.encode((date.year / 100).rem_euclid(100) as u8),
        ]
    }

    /// Sets the time: the offset that makes the clock show it. The weekday follows from the date.
    fn set_time(&mut self, time: TimeBytes, wall_s: u64) {
        let [second, minute, hour, _, day, month, year, century] = time;
        let part = |byte: u8, most: u8| i64::from(self.decode(byte).min(most));
        let year = part(century, 99)
            .wrapping_mul(100)
            .wrapping_add(part(year, 99));
        let (month, day) = (
            self.decode(month).clamp(1, 12),
            self.decode(day).clamp(1, 31),
        );
        let hour = i64::from(self.decode_hour(hour).min(23));
        let of_day = hour
            .wrapping_mul(60)
            .wrapping_add(part(minute, 59))
            .wrapping_mul(60)
            .wrapping_add(part(second, 59));
        let guest_s = days_of(year, month, day)
            .wrapping_mul(DAY_S)
            .wrapping_add(of_day);
        let wall_s = i64::try_from(wall_s).unwrap_or(i64::MAX);
        self.offset_s = guest_s.saturating_sub(wall_s);
    }

    /// The end of a period shows in register C when that is read, but interrupts when [`Timed::tick`] comes: whoever holds
    /// the timers back does so for a guest that looks at other registers, too.
    fn read_data(&mut self, at: Instant) -> u8 {
        let Instant { now_ns, wall_ns } = at;
        let index = self.index & 0x7f;
        match index {
            register::A => {
                let into_ns = wall_ns % NS_PER_S;
                let updating = self.stopped.is_none()
                    && self.runs()
                    && into_ns >= NS_PER_S.wrapping_sub(UPDATE_NS);
                self.a
                    | if updating {
                        reg_a::UPDATE_IN_PROGRESS
                    } else {
                        0
                    }
            }
            register::B => self.b,
            register::C => {
                self.settle_periods(now_ns);
                let interrupts = self.interrupts();
                core::mem::take(&mut self.c) | if interrupts { reg_c::INTERRUPT } else { 0 }
            }
            register::D => VALID,
            _ => {
                let mut time = TIME.iter().zip(self.time(wall_ns / NS_PER_S));
                let shown = time.find(|(at, _)| **at == index);
                let stored = self.memory.get(usize::from(index)).copied();
                shown.map(|(_, byte)| byte).or(stored).unwrap_or(0xff)
            }
        }
    }

    fn write_data(&mut self, value: u8, at: Instant) {
        let wall_s = at.wall_ns / NS_PER_S;
        let index = self.index & 0x7f;
        if matches!(index, register::A | register::B) {
            // Periods may be others from now on.
            self.settle_periods(at.now_ns);
        }
        match index {
            register::A => self.a = value & !reg_a::UPDATE_IN_PROGRESS,
            register::B => self.write_b(value, wall_s),
            register::C | register::D => {}
            _ if TIME.contains(&index) => {
                let mut time = self.time(wall_s);
                for (at, byte) in TIME.iter().zip(time.iter_mut()) {
                    if *at == index {
                        *byte = value;
                    }
                }
                match &mut self.stopped {
                    Some(stopped) => *stopped = time,
                    None => self.set_time(time, wall_s),
                }
            }
            _ => {
                if let Some(slot) = self.memory.get_mut(usize::from(index)) {
                    *slot = value;
                }
            }
        }
    }

    fn write_b(&mut self, value: u8, wall_s: u64) {
        let time = self.time(wall_s);
        self.b = value;
        if value & reg_b::SET != 0 {
            // Stopped, it has no update to tell of (MC146818A: register B).
            self.b &= !reg_b::UPDATE_INTERRUPT;
            self.stopped = Some(time);
        } else if self.stopped.take().is_some() {
            self.set_time(time, wall_s);
        }
    }

    const fn interrupts(&self) -> bool {
        self.b & self.c & reg_c::ALL != 0
    }
}

/// The clock and its memory.
pub struct Rtc {
    clock: Box<dyn Clock>,
    line: Line,
    state: State,
}

impl Rtc {
    /// The clock of a machine with this RAM, of which firmware leaves the sizes in CMOS.
    pub fn new(links: &dyn Links, ram: RamLayout) -> Result<Self, NoMemory> {
        Ok(Self {
            clock: links.clock()?,
            line: links.line(IRQ)?,
            state: State::new(ram),
        })
    }

    fn drive_line(&mut self) {
        self.line.set(self.state.interrupts());
    }
}

impl Device for Rtc {
    fn name(&self) -> &'static str {
        KIND.name
    }

    /// The battery keeps time and memory; only interrupts are off.
    fn reset(&mut self) {
        let state = &mut self.state;
        state.index = 0;
        state.b &= !(reg_c::ALL | reg_b::SQUARE_WAVE);
        state.c = 0;
        state.alarm_at_ns = None;
        self.drive_line();
    }

    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        let state = &self.state;
        to.u32(STATE_VERSION)?;
        to.bytes(&[state.index, state.a, state.b, state.c])?;
        to.bytes(&state.memory)?;
        to.u64(state.offset_s as u64)?;
        to.bytes(&state.stopped.unwrap_or_default())?;
        to.u64(state.settled_s)?;
        to.u64(state.settled_tick)?;
        to.u64(state.update_at_ns)?;
        to.bool(state.alarm_at_ns.is_some())?;
        to.u64(state.alarm_at_ns.unwrap_or(0))
    }

    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let mut new = self.state.clone();
        [new.index, new.a, new.b, new.c] = from.bytes()?;
        new.memory = from.bytes()?;
        new.offset_s = from.u64()? as i64;
        let time = from.bytes()?;
        new.settled_s = from.u64()?;
        new.settled_tick = from.u64()?;
        new.update_at_ns = from.u64()?;
        let alarmed = from.bool("rtc.alarm")?;
        let alarm_at_ns = from.u64()?;
        let set = new.b & reg_b::SET != 0;
        if new.a & reg_a::UPDATE_IN_PROGRESS != 0 || new.c & !reg_c::ALL != 0 {
            return Err(StateError::Value("rtc.registers"));
        }
        if !set && time != TimeBytes::default() || !alarmed && alarm_at_ns != 0 {
            return Err(StateError::Value("rtc.time"));
        }
        new.stopped = set.then_some(time);
        new.alarm_at_ns = alarmed.then_some(alarm_at_ns);
        self.state = new;
        self.drive_line();
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        &REGIONS
    }

    fn answers_in_window(&self, _region: usize, offset: u64, write: bool) -> bool {
        !write || offset == INDEX
    }
    fn read(&mut self, _region: usize, offset: u64, size: u8) -> u64 {
        let at = Instant::of(self.clock.as_ref());
        let state = &mut self.state;
        state.settle(at);
        let value = read_bytewise(offset, size, |offset| match offset {
            DATA => state.read_data(at),
            // The index is write-only.
            _ => 0xff,
        });
        state.settle(at);
        self.drive_line();
        value
    }

    fn write(&mut self, _region: usize, offset: u64, size: u8, value: u64) {
        let at = Instant::of(self.clock.as_ref());
        let state = &mut self.state;
        state.settle(at);
        write_bytewise(offset, size, value, |offset, byte| match offset {
            INDEX => state.index = byte,
            DATA => state.write_data(byte, at),
            _ => {}
        });
        state.settle(at);
        self.drive_line();
    }

    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl Timed for Rtc {
    fn deadline_ns(&self) -> Option<u64> {
        let state = &self.state;
        let ticks = |period: u64| {
            (state.settled_tick / period)
                .saturating_add(1)
                .saturating_mul(period)
        };
        let periodic = state
            .period_ticks()
            .filter(|_| state.wants(reg_c::PERIODIC))
            .map(|period| CRYSTAL.ns_of(ticks(period)));
        let updates = state.wants(reg_c::UPDATE) && state.stopped.is_none() && state.runs();
        let update = updates.then_some(state.update_at_ns);
        let alarm = state.alarm_at_ns.filter(|_| state.wants(reg_c::ALARM));
        [periodic, update, alarm].into_iter().flatten().min()
    }

    fn tick(&mut self) {
        let at = Instant::of(self.clock.as_ref());
        self.state.settle_periods(at.now_ns);
        self.state.settle(at);
        self.drive_line();
    }
}
