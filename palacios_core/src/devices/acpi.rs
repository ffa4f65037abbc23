// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fixed hardware of ACPI (ACPI 6.5: 4.8): the PM1a registers and the power-management timer.
//!
//! The machine has no legacy mode and no SMI command port, so SCI_EN is always set (4.8.2.5). It knows one sleep state,
//! S5: power off. The only fixed event is the timer's; there are no buttons. The ports are those of a PCI function, which moves them:
//! [`pci::pm`](super::pci::pm).
#![forbid(unsafe_code)]

use super::links::{Line, Links};
use super::ticks::Frequency;
use super::{read_bytewise, write_bytewise, Device, IoRegion, Timed};
use crate::alloc_ext::NoMemory;
use crate::interfaces::{Clock, PowerRequest, PowerSink};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// First port of the PM1a event registers: status and enable, 2 bytes each.
pub const PM1_EVENT_PORT: u16 = 0x600;
/// The PM1a control register, 2 bytes.
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// The power-management timer, 4 bytes.
pub const PM_TIMER_PORT: u16 = 0x608;
/// The line of the system control interrupt: active high, level-triggered.
pub const SCI_IRQ: u8 = 9;
/// The value of `SLP_TYP` in the control register that means S5, power off.
pub const S5_SLEEP_TYPE: u8 = 5;
/// The timer's crystal.
pub const CRYSTAL: Frequency = Frequency(3_579_545);

const STATE_VERSION: u32 = 1;
const REGIONS: [IoRegion; 2] = [
    IoRegion::ports(PM1_EVENT_PORT, 6),
    IoRegion::ports(PM_TIMER_PORT, 4),
];
/// The timer's number among them.
const TIMER_REGION: usize = 1;
/// How far it is from the first event register.
const TIMER_OFFSET: u64 = PM_TIMER_PORT as u64 - PM1_EVENT_PORT as u64;

/// The timer's event, in the status and the enable register.
const TIMER: u16 = 1 << 0;
/// Enable bits that can be set: timer, global lock, buttons, RTC. All but the first never have anything to tell.
const ENABLE_WRITABLE: u16 = 0x0721;

/// Bits of the control register (ACPI 6.5: table 4.15).
mod control {
    pub const SCI_EN: u16 = 1 << 0;
    pub const BM_RLD: u16 = 1 << 1;
    pub const SLP_TYP: u16 = 7 << 10;
    pub const SLP_EN: u16 = 1 << 13;
}

/// How many bits of the timer count: the FADT's TMR_VAL_EXT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerWidth {
    /// Wraps every 4.7 seconds.
    Bits24 = 24,
    /// Wraps every 20 minutes.
    Bits32 = 32,
}

/// The registers.
#[derive(Clone, Copy, Debug)]
struct State {
    status: u16,
    enable: u16,
    control: u16,
    /// How often the timer's highest bit had changed when it was last looked at.
    half_wraps: u64,
}

impl State {
    /// As they are after power-on.
    const fn new() -> Self {
        Self {
            status: 0,
            enable: 0,
            control: control::SCI_EN,
            half_wraps: 0,
        }
    }
}

/// The PM1a block and the timer.
pub struct AcpiPm {
    clock: Box<dyn Clock>,
    power: Box<dyn PowerSink>,
    line: Line,
    width: TimerWidth,
    state: State,
}

impl AcpiPm {
    /// Its regions, where firmware leaves them.
    pub const REGIONS: &'static [IoRegion; 2] = &REGIONS;

    /// The registers after a reset.
    pub fn new(links: &dyn Links, width: TimerWidth) -> Result<Self, NoMemory> {
        Ok(Self {
            clock: links.clock()?,
            power: links.power()?,
            line: links.line(SCI_IRQ.into())?,
            width,
            state: State::new(),
        })
    }

    const fn half_wrap_bits(&self) -> u32 {
        self.width as u32 - 1
    }

    /// Each change of the timer's highest bit is an event (ACPI 6.5: 4.8.2.3).
    fn settle(&mut self, now_ns: u64) {
        let half_wraps = CRYSTAL.ticks_at(now_ns) >> self.half_wrap_bits();
        if core::mem::replace(&mut self.state.half_wraps, half_wraps) != half_wraps {
            self.state.status |= TIMER;
        }
    }

    fn timer(&self, now_ns: u64) -> u32 {
        let unused_bits = 32 - self.width as u32;
        CRYSTAL.ticks_at(now_ns) as u32 & u32::MAX >> unused_bits
    }

    /// The byte at `offset` from the first event register.
    fn register(&self, offset: u64, now_ns: u64) -> u8 {
        let [status, status_high] = self.state.status.to_le_bytes();
        let [enable, enable_high] = self.state.enable.to_le_bytes();
        let [control, control_high] = self.state.control.to_le_bytes();
        let block = [
            status,
            status_high,
            enable,
            enable_high,
            control,
            control_high,
        ];
        let timer = self.timer(now_ns).to_le_bytes();
        let in_block = block.get(offset as usize);
        let in_timer = timer.get(offset.wrapping_sub(TIMER_OFFSET) as usize);
        in_block.or(in_timer).copied().unwrap_or(0xff)
    }

    /// Writes the byte at `offset` from the first event register.
    fn set_register(&mut self, offset: u64, value: u8) {
        let state = &mut self.state;
        let (low, high) = (u16::from(value), u16::from(value) << 8);
        match offset {
            // Writing ones clears.
            0 => state.status &= !low,
            1 => state.status &= !high,
            2 => state.enable = state.enable & 0xff00 | low & ENABLE_WRITABLE,
            3 => state.enable = state.enable & 0x00ff | high & ENABLE_WRITABLE,
            4 => state.control = state.control & !control::BM_RLD | low & control::BM_RLD,
            5 => {
                state.control = state.control & !control::SLP_TYP | high & control::SLP_TYP;
                let sleep_type = (high & control::SLP_TYP) >> 10;
                if high & control::SLP_EN != 0 && sleep_type == u16::from(S5_SLEEP_TYPE) {
                    self.power.request(PowerRequest::Off);
                }
            }
            _ => {}
        }
    }

    fn drive_line(&mut self) {
        self.line.set(self.state.status & self.state.enable != 0);
    }
}

/// How far from the first event register an access begins: one may run from the PM1a block into the timer.
const fn block_offset(region: usize, offset: u64) -> u64 {
    match region {
        TIMER_REGION => TIMER_OFFSET.wrapping_add(offset),
        _ => offset,
    }
}

impl Device for AcpiPm {
    fn name(&self) -> &'static str {
        "acpi"
    }

    fn reset(&mut self) {
        // The timer runs on, so that which half it is in is no event.
        self.state = State {
            half_wraps: self.state.half_wraps,
            ..State::new()
        };
        self.drive_line();
    }

    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.u16(self.state.status)?;
        to.u16(self.state.enable)?;
        to.u16(self.state.control)?;
        to.u64(self.state.half_wraps)
    }

    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let new = State {
            status: from.u16()?,
            enable: from.u16()?,
            control: from.u16()?,
            half_wraps: from.u64()?,
        };
        let kept = control::SCI_EN | control::BM_RLD | control::SLP_TYP;
        let control_legal = new.control & !kept == 0 && new.control & control::SCI_EN != 0;
        if new.status & !TIMER != 0 || new.enable & !ENABLE_WRITABLE != 0 || !control_legal {
            return Err(StateError::Value("acpi"));
        }
        self.state = new;
        self.drive_line();
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        Self::REGIONS
    }

    fn answers_in_window(&self, region: usize, offset: u64, write: bool) -> bool {
        !write && block_offset(region, offset) >= TIMER_OFFSET
    }
    fn read(&mut self, region: usize, offset: u64, size: u8) -> u64 {
        let now_ns = self.clock.now_ns();
        self.settle(now_ns);
        self.drive_line();
        let first = block_offset(region, offset);
        read_bytewise(first, size, |at| self.register(at, now_ns))
    }

    fn write(&mut self, region: usize, offset: u64, size: u8, value: u64) {
        self.settle(self.clock.now_ns());
        let first = block_offset(region, offset);
        write_bytewise(first, size, value, |at, byte| self.set_register(at, byte));
        self.drive_line();
    }

    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl Timed for AcpiPm {
    fn deadline_ns(&self) -> Option<u64> {
        let wanted = self.state.enable & !self.state.status & TIMER != 0;
        let next = self.state.half_wraps.saturating_add(1);
        // What lies beyond the end of time never comes.
        let tick = next.checked_mul(1 << self.half_wrap_bits());
        wanted.then(|| CRYSTAL.ns_of(tick.unwrap_or(u64::MAX)))
    }

    fn tick(&mut self) {
        self.settle(self.clock.now_ns());
        self.drive_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
    use proptest::prelude::*;

    fn bench(width: TimerWidth) -> (TestMachine, AcpiPm) {
        let machine = TestMachine::new();
        let pm = AcpiPm::new(&machine, width).unwrap();
        (machine, pm)
    }

    #[test]
    fn s5_powers_off_and_nothing_else_does() {
        let (machine, mut pm) = bench(TimerWidth::Bits24);
        let control = machine.port_read(&mut pm, PM1_CONTROL_PORT, 2);
        assert_eq!(control, 1, "ACPI mode");
        for sleep_type in 0..8 {
            machine.port_write(&mut pm, PM1_CONTROL_PORT, 2, sleep_type << 10);
            assert!(machine.power.borrow().is_empty());
            machine.port_write(&mut pm, PM1_CONTROL_PORT, 2, sleep_type << 10 | 1 << 13);
            let expected = (sleep_type == 5).then_some(PowerRequest::Off);
            assert_eq!(machine.power.take(), Vec::from_iter(expected));
            let control = machine.port_read(&mut pm, PM1_CONTROL_PORT, 2);
            assert_eq!(control, sleep_type << 10 | 1);
        }
    }

    #[test]
    fn the_timer_counts_3579545_times_a_second() {
        let (machine, mut pm) = bench(TimerWidth::Bits24);
        for seconds in [1u32, 2, 5, 3600] {
            machine.now_ns.set(u64::from(seconds) * 1_000_000_000);
            let expected = seconds.wrapping_mul(3_579_545) & 0xff_ffff;
            assert_eq!(machine.port_read(&mut pm, PM_TIMER_PORT, 4), expected);
        }
        let (machine, mut pm) = bench(TimerWidth::Bits32);
        machine.now_ns.set(5_000_000_000);
        let timer = machine.port_read(&mut pm, PM_TIMER_PORT, 4);
        assert_eq!(timer, 5 * 3_579_545);
    }

    #[test]
    fn a_read_runs_from_the_block_into_the_timer() {
        let (machine, mut pm) = bench(TimerWidth::Bits32);
        machine.now_ns.set(CRYSTAL.ns_of(0x1234));
        machine.port_write(&mut pm, PM1_CONTROL_PORT, 2, 3 << 10);
        let read = machine.port_read(&mut pm, PM1_CONTROL_PORT + 1, 4);
        assert_eq!(read, 0x34ff_ff0c);
        let read = machine.port_read(&mut pm, PM_TIMER_PORT + 1, 4);
        assert_eq!(read, 0xff00_0012);
    }

    #[test]
    fn the_highest_bit_interrupts_when_it_changes() {
        let (machine, mut pm) = bench(TimerWidth::Bits24);
        machine.outb(&mut pm, PM1_EVENT_PORT + 2, 1);
        for half in 1..4 {
            let due = CRYSTAL.ns_of(half << 23);
            machine.run_until(&mut pm, due - 1);
            assert!(!machine.line(9));
            machine.run_until(&mut pm, due);
            assert!(machine.line(9));
            assert_eq!(machine.inb(&mut pm, PM1_EVENT_PORT), 1);
            machine.outb(&mut pm, PM1_EVENT_PORT, 1);
            assert!(!machine.line(9), "writing a one clears");
        }
    }

    /// A read that comes before the tick that is due finds the event, and there will be no such tick then.
    #[test]
    fn a_read_that_finds_the_event_interrupts() {
        let (machine, mut pm) = bench(TimerWidth::Bits24);
        machine.outb(&mut pm, PM1_EVENT_PORT + 2, 1);
        machine.now_ns.set(CRYSTAL.ns_of(1 << 23));
        machine.port_read(&mut pm, PM_TIMER_PORT, 4);
        assert_eq!(pm.deadline_ns(), None);
        assert!(machine.line(9));
    }

    #[test]
    fn nobody_is_woken_for_an_event_that_is_not_enabled() {
        let (machine, mut pm) = bench(TimerWidth::Bits24);
        assert_eq!(pm.deadline_ns(), None);
        machine.now_ns.set(3_000_000_000);
        assert_eq!(machine.inb(&mut pm, PM1_EVENT_PORT), 1, "but it shows");
        assert!(!machine.line(9));
    }

    #[test]
    fn reset_clears_the_registers() {
        let (machine, mut pm) = bench(TimerWidth::Bits24);
        machine.port_write(&mut pm, PM1_EVENT_PORT, 4, 0xffff_ffff);
        machine.port_write(&mut pm, PM1_CONTROL_PORT, 2, 0xdfff);
        pm.reset();
        let (_, fresh) = bench(TimerWidth::Bits24);
        assert_eq!(saved(|w| pm.save(w)), saved(|w| fresh.save(w)));
    }

    #[test]
    fn reset_lowers_the_line() {
        let (machine, mut pm) = bench(TimerWidth::Bits24);
        machine.outb(&mut pm, PM1_EVENT_PORT + 2, 1);
        machine.run_until(&mut pm, CRYSTAL.ns_of(1 << 23));
        assert!(machine.line(9));
        pm.reset();
        assert!(!machine.line(9));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Read(u16, u8),
        Write(u16, u8, u32),
        Wait(u64),
        CatchUp,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let size = prop::sample::select(vec![1u8, 2, 4]);
        let port = 0x600u16..0x60c;
        let step = prop_oneof![
            (port.clone(), size.clone()).prop_map(|(port, size)| Step::Read(port, size)),
            (port, size, any::<u32>()).prop_map(|(p, size, value)| Step::Write(p, size, value)),
            prop_oneof![0u64..1 << 34, any::<u64>()].prop_map(Step::Wait),
            Just(Step::CatchUp),
        ];
        prop::collection::vec(step, 0..40)
    }

    /// The bus has it tick if a deadline is past, and else never.
    fn catch_up(machine: &TestMachine, pm: &mut AcpiPm) {
        if pm
            .deadline_ns()
            .is_some_and(|at| at <= machine.now_ns.get())
        {
            pm.tick();
        }
    }

    fn run(machine: &TestMachine, pm: &mut AcpiPm, steps: &[Step]) -> Vec<(u32, Option<u64>)> {
        let one = |step: &Step| {
            let mut read = 0;
            match *step {
                Step::Read(port, size) => read = machine.port_read(pm, port, size),
                Step::Write(port, size, value) => machine.port_write(pm, port, size, value),
                Step::Wait(ns) => machine.advance_ns(ns),
                Step::CatchUp => catch_up(machine, pm),
            }
            (read, pm.deadline_ns())
        };
        steps.iter().map(one).collect()
    }

    proptest! {
        #[test]
        fn a_restored_one_goes_on_as_the_saved_one(before in steps(), after in steps()) {
            let (machine, mut pm) = bench(TimerWidth::Bits24);
            run(&machine, &mut pm, &before);
            let (other, mut twin) = bench(TimerWidth::Bits24);
            other.now_ns.set(machine.now_ns.get());
            assert_restores(&saved(|w| pm.save(w)), &mut twin);
            prop_assert_eq!(other.line(9), machine.line(9));
            prop_assert_eq!(run(&other, &mut twin, &after), run(&machine, &mut pm, &after));
            prop_assert_eq!(other.line(9), machine.line(9));
        }

        #[test]
        fn the_line_is_up_while_an_enabled_event_is_set(before in steps()) {
            let (machine, mut pm) = bench(TimerWidth::Bits24);
            run(&machine, &mut pm, &before);
            catch_up(&machine, &mut pm);
            let both = machine.inb(&mut pm, PM1_EVENT_PORT) & machine.inb(&mut pm, PM1_EVENT_PORT + 2);
            prop_assert_eq!(both != 0, machine.line(9));
        }

        #[test]
        fn a_damaged_record_is_restored_or_refused(
            before in steps(), at in 0usize..18, byte: u8, length in 0usize..20, after in steps(),
        ) {
            let (machine, mut pm) = bench(TimerWidth::Bits24);
            run(&machine, &mut pm, &before);
            let mut record = saved(|w| pm.save(w));
            if let Some(field) = record.get_mut(at) {
                *field = byte;
            }
            record.truncate(length);
            assert_survives(&record, &mut pm);
            run(&machine, &mut pm, &after);
        }
    }
}
