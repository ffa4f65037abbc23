// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local APIC's timer, as deadlines on the VM's clock (SDM 3A: 10.5.4).
//!
//! The bus runs at 1 GHz: a count is a nanosecond, times the divider. A periodic timer that is served late does not
//! catch up: all periods missed make one interrupt, as on a processor that had interrupts off that long. Periods under
//! [`MIN_PERIOD_NS`] are merged too, so that a guest cannot make its host do nothing but serve its timer. A timer that is
//! held (`ApicTimer::hold`) is late in the same way: it counts on, and what expires meanwhile is one interrupt.
#![forbid(unsafe_code)]

use crate::clock::Ratio;
use crate::state_io::{StateError, StateReader, StateWriter};

/// Frequency of the bus before the divider, as told by CPUID or measured by the guest.
pub const BUS_HZ: u64 = 1_000_000_000;
/// The least time between two interrupts of a periodic timer.
pub const MIN_PERIOD_NS: u64 = 20_000;

/// How far a TSC deadline's estimate on the VM's clock may be off before it is corrected. The two clocks drift against
/// each other, and a deadline that moves with every look would have the host set its timer as often.
const SLACK_NS: u64 = 1_000;

/// The instant of a call, on both clocks that the timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The VM's clock.
    pub ns: u64,
    /// The time-stamp counter as the guest reads it.
    pub tsc: u64,
    /// Its rate.
    pub tsc_khz: u32,
}

/// Tells the instant of a call to those who ask: most registers have nothing to do with time, and to look at the clocks costs more than they do.
pub trait Instant {
    /// The instant.
    fn now(&self) -> Now;
}

impl Instant for Now {
    fn now(&self) -> Now {
        *self
    }
}

impl<F: Fn() -> Now> Instant for F {
    fn now(&self) -> Now {
        self()
    }
}

/// Bits 18:17 of the timer's LVT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// The encoding that means nothing: the timer never fires.
    Reserved,
}

impl TimerMode {
    pub(super) const fn of_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
    const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ApicTimer {
    mode: TimerMode,
    /// The divide-configuration register.
    divide: u8,
    initial_count: u32,
    /// When the count next makes an interrupt, while it counts.
    expires_ns: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    tsc_deadline: u64,
    /// When that will be on the VM's clock, as last told.
    tsc_deadline_ns: u64,
    /// It expired, and has not said so yet.
    expired: bool,
    /// It says so at this time at the earliest.
    held_until_ns: u64,
}

impl ApicTimer {
    pub(super) const fn new() -> Self {
        Self {
            mode: TimerMode::OneShot,
            divide: 0,
            initial_count: 0,
            expires_ns: None,
            tsc_deadline: 0,
            tsc_deadline_ns: 0,
            expired: false,
            held_until_ns: 0,
        }
    }

    pub(super) const fn divide(&self) -> u32 {
        self.divide as u32
    }
    pub(super) const fn initial_count(&self) -> u32 {
        self.initial_count
    }
    pub(super) const fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// The divider's base-2 logarithm: bits 3, 1 and 0 are 000 for 2 to 110 for 128, and 111 for 1.
    const fn shift(&self) -> u32 {
        let code = (self.divide & 3 | self.divide >> 1 & 4) as u32;
        (code + 1) & 7
    }

    const fn period_ns(&self) -> u64 {
        (self.initial_count as u64) << self.shift()
    }

    /// When a counter that started a period at `from_ns` expires next; a short period is lengthened to whole ones.
    fn next_expiry_ns(&self, from_ns: u64) -> Option<u64> {
        let period_ns = self.period_ns();
        let wait_ns = match self.mode {
            TimerMode::Periodic => MIN_PERIOD_NS.checked_next_multiple_of(period_ns)?,
            _ => 0,
        };
        (period_ns != 0).then(|| from_ns.saturating_add(wait_ns.max(period_ns)))
    }

    /// Makes no interrupt before `until_ns`.
    pub(super) fn hold(&mut self, until_ns: u64) {
        self.held_until_ns = until_ns;
    }

    /// Counts up to now; whether the timer fired since it was last asked.
    pub(super) fn settle(&mut self, now: Now) -> bool {
        self.expired |= self.count_to(now);
        let fired = self.expired && self.held_until_ns <= now.ns;
        self.expired &= !fired;
        fired
    }

    /// Whether the timer expired since it was last asked.
    fn count_to(&mut self, now: Now) -> bool {
        if self.tsc_deadline != 0 && self.tsc_deadline <= now.tsc {
            self.tsc_deadline = 0;
            return true;
        }
        let Some(expired_ns) = self.expires_ns.filter(|at| *at <= now.ns) else {
            return false;
        };
        self.expires_ns = match self.mode {
            // The phase stays that of the first period, however late this is.
            TimerMode::Periodic => {
                let late_ns = now.ns.wrapping_sub(expired_ns);
                let into_period_ns = late_ns.checked_rem(self.period_ns()).unwrap_or(0);
                self.next_expiry_ns(now.ns.wrapping_sub(into_period_ns))
            }
            _ => None,
        };
        true
    }

    /// When [`Self::settle`] will next say that it fired.
    pub(super) fn deadline_ns(&mut self, now: Now) -> Option<u64> {
        match self.expired {
            true => Some(self.held_until_ns),
            false => self.expiry_ns(now).map(|at| at.max(self.held_until_ns)),
        }
    }

    /// When it next expires.
    fn expiry_ns(&mut self, now: Now) -> Option<u64> {
        if self.tsc_deadline == 0 {
            return self.expires_ns;
        }
        let cycles = self.tsc_deadline.saturating_sub(now.tsc);
        let estimate_ns = now.ns.saturating_add(ns_of_cycles(cycles, now.tsc_khz));
        let told_ns = self.tsc_deadline_ns;
        if told_ns <= now.ns || told_ns.abs_diff(estimate_ns) > SLACK_NS {
            self.tsc_deadline_ns = estimate_ns;
        }
        Some(self.tsc_deadline_ns)
    }

    /// The current-count register. The timer must be settled.
    pub(super) fn current_count(&self, now: Now) -> u32 {
        let Some(expires_ns) = self.expires_ns else {
            return 0;
        };
        let mut left_ns = expires_ns.saturating_sub(now.ns);
        if self.mode == TimerMode::Periodic && left_ns > self.period_ns() {
            // Several periods make one interrupt.
            left_ns = left_ns.checked_rem(self.period_ns()).unwrap_or(0);
        }
        let step_ns = 1u64 << self.shift();
        let has_rest = left_ns & step_ns.wrapping_sub(1) != 0;
        let count = (left_ns >> self.shift()).wrapping_add(has_rest.into());
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    pub(super) fn write_initial_count(&mut self, count: u32, now: Now) {
        if self.mode.counts() {
            self.initial_count = count;
            self.expires_ns = self.next_expiry_ns(now.ns);
        }
    }

    /// What is left to count goes on at the new rate. The timer must be settled.
    pub(super) fn write_divide(&mut self, divide: u32, now: Now) {
        let left = u64::from(self.current_count(now));
        self.divide = (divide & 0b1011) as u8;
        if self.expires_ns.is_some() {
            self.expires_ns = Some(now.ns.saturating_add(left << self.shift()));
        }
    }

    /// Going to or from the TSC deadline disarms; between the counting modes the count goes on (SDM 3A: 10.5.4.1).
    pub(super) fn set_mode(&mut self, mode: TimerMode) {
        if mode.counts() != self.mode.counts() || mode == TimerMode::Reserved {
            self.initial_count = 0;
            self.expires_ns = None;
            self.tsc_deadline = 0;
            self.expired = false;
        }
        self.mode = mode;
    }

    /// Ignored in the other modes.
    pub(super) fn write_tsc_deadline(&mut self, tsc: u64) {
        if self.mode == TimerMode::TscDeadline {
            self.tsc_deadline = tsc;
        }
    }

    /// The counter, which stands at `now_tsc`, no longer runs at `khz`: a deadline stays as far away in time.
    pub(super) fn change_tsc_rate(&mut self, now_tsc: u64, khz: u32, new_khz: u32) {
        if let Some(ticks) = self.tsc_deadline.checked_sub(now_tsc) {
            let ticks = Ratio::new(khz.into(), new_khz.into()).of(ticks);
            self.tsc_deadline = now_tsc.saturating_add(ticks);
        }
    }

    pub(super) fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u8(self.divide)?;
        to.u32(self.initial_count)?;
        to.bool(self.expires_ns.is_some())?;
        to.u64(self.expires_ns.unwrap_or(0))?;
        to.u64(self.tsc_deadline)?;
        to.bool(self.expired)
    }

    /// The timer of a record, whose LVT entry gave `mode`.
    pub(super) fn restored(
        mode: TimerMode,
        from: &mut StateReader<'_>,
    ) -> Result<Self, StateError> {
        let divide = from.u8()?;
        let initial_count = from.u32()?;
        let counting = from.bool("lapic.timer.counting")?;
        let expires_ns = from.u64()?;
        let tsc_deadline = from.u64()?;
        let expired = from.bool("lapic.timer.expired")?;
        let counts_right = mode.counts() || !counting && initial_count == 0;
        let deadline_right = mode == TimerMode::TscDeadline || tsc_deadline == 0;
        // It has an expiry exactly while it counts, and it cannot count from zero.
        let contradicts = !counting && expires_ns != 0 || counting && initial_count == 0;
        if divide & !0b1011 != 0 || !counts_right || !deadline_right || contradicts {
            return Err(StateError::Value("lapic.timer"));
        }
        Ok(Self {
            mode,
            divide,
            initial_count,
            expires_ns: counting.then_some(expires_ns),
            tsc_deadline,
            tsc_deadline_ns: 0,
            expired,
            held_until_ns: 0,
        })
    }
}

/// Nanoseconds that `cycles` of a counter take, rounded up.
fn ns_of_cycles(cycles: u64, khz: u32) -> u64 {
    let khz = u64::from(khz.max(1));
    let part = (cycles % khz).wrapping_mul(1_000_000).div_ceil(khz);
    (cycles / khz)
        .saturating_mul(1_000_000)
        .saturating_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::saved;
    use proptest::prelude::*;

    fn at(ns: u64) -> Now {
        Now {
            ns,
            tsc: ns.saturating_mul(3),
            tsc_khz: 3_000_000,
        }
    }

    fn timer(mode: TimerMode, divide: u32, count: u32) -> ApicTimer {
        let mut timer = ApicTimer::new();
        timer.set_mode(mode);
        timer.write_divide(divide, at(0));
        timer.write_initial_count(count, at(0));
        timer
    }

    #[test]
    fn a_deadline_stays_as_far_away_when_the_rate_changes() {
        for (deadline, now, expected) in [
            (1_000, 400, 400 + 300),
            (400, 400, 400),
            (300, 400, 300),
            (0, 0, 0),
        ] {
            let mut timer = ApicTimer::new();
            timer.set_mode(TimerMode::TscDeadline);
            timer.write_tsc_deadline(deadline);
            timer.change_tsc_rate(now, 2_000_000, 1_000_000);
            assert_eq!(timer.tsc_deadline(), expected);
        }
    }

    #[test]
    fn divides_by_powers_of_two() {
        let by = [2u64, 4, 8, 16, 32, 64, 128, 1];
        let code = [0u32, 1, 2, 3, 8, 9, 10, 11];
        for (code, by) in code.into_iter().zip(by) {
            let mut timer = timer(TimerMode::OneShot, code, 1000);
            assert_eq!(timer.deadline_ns(at(0)), Some(1000 * by));
        }
    }

    #[test]
    fn one_shot_fires_once() {
        let mut timer = timer(TimerMode::OneShot, 0b1011, 500);
        assert_eq!(timer.current_count(at(100)), 400);
        assert!(!timer.settle(at(499)));
        assert!(timer.settle(at(700)));
        assert!(!timer.settle(at(10_000)));
        assert_eq!(
            (
                timer.current_count(at(10_000)),
                timer.deadline_ns(at(10_000))
            ),
            (0, None)
        );
    }

    #[test]
    fn periodic_keeps_its_phase_and_merges_what_was_missed() {
        let mut timer = timer(TimerMode::Periodic, 0b1011, 100_000);
        assert!(timer.settle(at(730_000)));
        assert!(!timer.settle(at(799_999)));
        assert_eq!(timer.deadline_ns(at(730_000)), Some(800_000));
        assert_eq!(timer.current_count(at(730_000)), 70_000);
    }

    #[test]
    fn a_held_one_counts_on_and_fires_once_at_the_end() {
        let mut timer = timer(TimerMode::Periodic, 0b1011, 100_000);
        timer.hold(730_000);
        assert_eq!(timer.deadline_ns(at(0)), Some(730_000));
        assert!(!timer.settle(at(240_000)));
        assert_eq!(timer.current_count(at(240_000)), 60_000);
        assert_eq!(timer.deadline_ns(at(240_000)), Some(730_000));
        timer.hold(500_000);
        assert!(timer.settle(at(500_000)), "of all that it missed");
        assert!(!timer.settle(at(500_000)));
        assert_eq!(timer.deadline_ns(at(500_000)), Some(600_000));
    }

    #[test]
    fn what_expired_while_it_was_held_outlives_a_new_count_and_a_restore() {
        let mut held = timer(TimerMode::OneShot, 0b1011, 100_000);
        held.hold(400_000);
        assert!(!held.settle(at(200_000)));
        held.write_initial_count(500_000, at(200_000));
        let record = saved(|w| held.save(w));
        let from = &mut StateReader::new(&record);
        let mut restored = ApicTimer::restored(TimerMode::OneShot, from).unwrap();
        for timer in [&mut held, &mut restored] {
            assert!(timer.settle(at(400_000)));
            assert_eq!(timer.deadline_ns(at(400_000)), Some(700_000));
            assert!(timer.settle(at(700_000)));
        }
    }

    #[test]
    fn a_period_of_one_tick_does_not_flood_the_host() {
        let mut timer = timer(TimerMode::Periodic, 0b1011, 1);
        let fired = (0..1_000_000u64).filter(|ns| timer.settle(at(*ns)));
        assert_eq!(fired.count(), (1_000_000 / MIN_PERIOD_NS) as usize - 1);
    }

    #[test]
    fn a_new_divider_stretches_what_is_left() {
        let mut timer = timer(TimerMode::OneShot, 0b1011, 1000);
        timer.write_divide(0b0000, at(400));
        assert_eq!(timer.current_count(at(400)), 600);
        assert_eq!(timer.deadline_ns(at(400)), Some(400 + 1200));
    }

    #[test]
    fn tsc_deadline_follows_the_tsc() {
        let mut timer = timer(TimerMode::TscDeadline, 0, 77);
        assert_eq!(timer.initial_count(), 0, "the count is of the other modes");
        timer.write_tsc_deadline(9_000);
        assert_eq!(timer.deadline_ns(at(1_000)), Some(3_000));
        assert!(!timer.settle(at(2_999)));
        assert!(timer.settle(at(3_000)));
        assert_eq!(timer.tsc_deadline(), 0);
    }

    #[test]
    fn a_deadline_missed_fires_once_however_late() {
        let mut timer = timer(TimerMode::TscDeadline, 0, 0);
        timer.write_tsc_deadline(9_000);
        assert!(timer.settle(at(1_000_000)));
        assert!(!timer.settle(at(2_000_000)));
        timer.write_tsc_deadline(1);
        assert!(timer.settle(at(2_000_000)), "one in the past fires at once");
        assert_eq!(timer.deadline_ns(at(2_000_000)), None);
    }

    #[test]
    fn a_tsc_that_drifts_moves_the_deadline_only_when_it_must() {
        let mut timer = timer(TimerMode::TscDeadline, 0, 0);
        timer.write_tsc_deadline(3_000_000);
        let look = |timer: &mut ApicTimer, ns: u64, ahead: u64| {
            let now = Now {
                tsc: ns * 3 + ahead,
                ..at(ns)
            };
            (timer.deadline_ns(now), timer.settle(now))
        };
        assert_eq!(look(&mut timer, 0, 0), (Some(1_000_000), false));
        assert_eq!(look(&mut timer, 1_000, 300), (Some(1_000_000), false));
        assert_eq!(look(&mut timer, 2_000, 6_000), (Some(998_000), false));
        // Too early for the TSC after all: a little more.
        assert_eq!(look(&mut timer, 998_000, 5_400), (Some(998_200), false));
        assert_eq!(look(&mut timer, 998_200, 5_400), (Some(998_200), true));
    }

    #[test]
    fn a_change_between_counting_and_deadline_disarms() {
        let mut timer = timer(TimerMode::OneShot, 0, 77);
        timer.set_mode(TimerMode::Periodic);
        assert!(timer.deadline_ns(at(0)).is_some());
        timer.set_mode(TimerMode::TscDeadline);
        assert_eq!(timer.deadline_ns(at(0)), None);
        timer.write_tsc_deadline(9_000);
        timer.set_mode(TimerMode::OneShot);
        assert_eq!(timer.deadline_ns(at(0)), None);
    }

    proptest! {
        #[test]
        fn fires_at_its_deadline_and_not_before(
            periodic: bool, divide: u32, count in 1u32.., start in 0u64..1 << 50, late in 0u64..1 << 40,
        ) {
            let mut timer = ApicTimer::new();
            timer.set_mode(if periodic { TimerMode::Periodic } else { TimerMode::OneShot });
            timer.write_divide(divide, at(start));
            timer.write_initial_count(count, at(start));
            let due = timer.deadline_ns(at(start)).unwrap();
            prop_assert!(!timer.settle(at(due - 1)));
            prop_assert!(timer.settle(at(due + late)));
            prop_assert_eq!(timer.deadline_ns(at(due)).is_some(), periodic);
            if let Some(next) = timer.deadline_ns(at(due)) {
                prop_assert!(next > due + late);
                prop_assert_eq!((next - start) % timer.period_ns(), 0);
            }
        }

        #[test]
        fn cycles_are_never_rounded_early(cycles in 0u64..1 << 50, khz in 1u32..) {
            let exact = u128::from(cycles) * 1_000_000;
            let ns = u128::from(ns_of_cycles(cycles, khz));
            prop_assert!(ns * u128::from(khz) >= exact);
            prop_assert!(ns == 0 || (ns - 1) * u128::from(khz) < exact);
        }
    }
}
