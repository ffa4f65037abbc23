// SPDX-License-Identifier: MIT OR Apache-2.0
//! The run state of a VM, the holds on it, and how often its machine was reset: one word, so that whoever looks sees all three of
//! the same moment, and nobody who changes one of them misses a change of another.
//!
//! ```text
//!  63          40 39     32 31      24 23         16 15    8 7      0
//! +--------------+---------+----------+-------------+-------+--------+
//! | resets       | saving  | debugger | host sleeps | user  | state  |
//! +--------------+---------+----------+-------------+-------+--------+
//!
//!                      .--- hold ------>.
//!  New --- launch -> Running          Paused          held: launch and reset lead to Paused
//!                      |  '<-- go_on ---'  |
//!                      '- begin_reset -> Resetting -- reset_done -> Running or Paused
//!  all three --- stop -> Stopping -- the last vCPU ends -> Stopped --- launch -> …
//! ```
//!
//! A vCPU looks at the word before each entry. Whoever changes the state then calls all vCPUs. `palacios_core/models` proves
//! that a hold is never missed.
#![forbid(unsafe_code)]

use crate::atomic::{AtomicU64, Ordering};

/// What vCPUs are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RunState {
    /// Never launched. No vCPU runs.
    New,
    /// They enter the guest.
    Running,
    /// They wait, out of the guest.
    Paused,
    /// They gather outside of the guest; the last one to arrive resets the machine.
    Resetting,
    /// They end.
    Stopping,
    /// All have ended.
    Stopped,
}

impl RunState {
    fn of(word: u64) -> Self {
        match word as u8 {
            0 => Self::New,
            1 => Self::Running,
            2 => Self::Paused,
            3 => Self::Resetting,
            4 => Self::Stopping,
            _ => Self::Stopped,
        }
    }
}

/// Why a VM is held. It stands still as long as anybody holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HoldReason {
    /// Its user asked for it. There is one such hold however often they ask, and it ends with the VM.
    User,
    /// The host sleeps.
    HostSleep,
    /// Somebody looks into it, or changes it.
    Debugger,
    /// It is being saved, or loaded.
    Saving,
}

/// So many hold the VM for this reason that no more can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyHolds;

const STATE: u64 = 0xff;
const HOLDS: u64 = 0xff_ffff_ff00;
const USER: u64 = 0xff00;
const RESET: u64 = 1 << 40;

/// The word.
pub(crate) struct RunWord(AtomicU64);

/// How often a machine was reset, of which the last 24 bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resets(u32);

impl Resets {
    /// Before the first launch.
    pub(crate) const NONE: Self = Self(0);
}

impl RunWord {
    /// Of a VM that was never launched.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(RunState::New as u64))
    }

    fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// What vCPUs are to do.
    pub(crate) fn state(&self) -> RunState {
        RunState::of(self.load())
    }
    /// The same, and how often the machine was reset.
    pub(crate) fn state_and_resets(&self) -> (RunState, Resets) {
        let word = self.load();
        (RunState::of(word), Resets((word >> 40) as u32))
    }
    /// Whether anybody holds the VM.
    pub(crate) fn is_held(&self) -> bool {
        self.load() & HOLDS != 0
    }

    /// Changes it in one step, if `change` says to what. Gives what it was before.
    fn update(&self, change: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        self.0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, change)
    }

    /// From one of these states to the one that `to` gives; nothing if it is in another. Gives that state.
    fn change(&self, from: &[RunState], to: impl Fn(u64) -> (RunState, u64)) -> Option<RunState> {
        let changed = |word| {
            let allowed = from.contains(&RunState::of(word));
            let (state, word) = to(word);
            allowed.then_some(word & !STATE | state as u64)
        };
        let before = self.update(changed).ok()?;
        Some(to(before).0)
    }

    /// The machine was made ready: its vCPUs begin, running unless somebody holds it. They are reset first, unless they go on from what was
    /// loaded. Gives the state.
    pub(crate) fn launch(&self, resets: bool) -> Option<RunState> {
        let from = [RunState::New, RunState::Stopped];
        let more = if resets { RESET } else { 0 };
        self.change(&from, |word| (go(word), word.wrapping_add(more)))
    }
    /// Its vCPUs are to gather. `false`: it does not run.
    pub(crate) fn begin_reset(&self) -> bool {
        let to = |word| (RunState::Resetting, word);
        self.change(&[RunState::Running], to).is_some()
    }
    /// The machine was reset. Gives the state: its vCPUs go on, unless somebody holds it or has it stop.
    pub(crate) fn reset_done(&self) -> Option<RunState> {
        let to = |word: u64| (go(word), word.wrapping_add(RESET));
        self.change(&[RunState::Resetting], to)
    }
    /// Its vCPUs are to end. `false`: it does not run.
    pub(crate) fn stop(&self) -> bool {
        let from = [RunState::Running, RunState::Paused, RunState::Resetting];
        let to = |word| (RunState::Stopping, word);
        self.change(&from, to).is_some()
    }
    /// It is stopped, and was never launched. `false`: it was.
    pub(crate) fn stop_new(&self) -> bool {
        let to = |word| (RunState::Stopped, word & !USER);
        self.change(&[RunState::New], to).is_some()
    }
    /// All vCPUs have ended. The user's hold ends with them.
    pub(crate) fn ended(&self) {
        let _ = self.change(&[RunState::Stopping], |word| {
            (RunState::Stopped, word & !USER)
        });
    }

    /// One more holds it; if it runs, it is paused from now on. `true`: it was just now.
    pub(crate) fn hold(&self, why: HoldReason) -> Result<bool, TooManyHolds> {
        let held = |word: u64| {
            let paused = match RunState::of(word) {
                RunState::Running => word & !STATE | RunState::Paused as u64,
                _ => word,
            };
            match (count(word, why), why) {
                (1, HoldReason::User) => Some(paused),
                (0xff, _) => None,
                _ => Some(paused.wrapping_add(one(why))),
            }
        };
        let before = self.update(held).map_err(|_| TooManyHolds)?;
        Ok(RunState::of(before) == RunState::Running)
    }
    /// One who held it no longer does. A paused one stays so until [`RunWord::go_on`]. `false`: nobody held it for this reason.
    pub(crate) fn release(&self, why: HoldReason) -> bool {
        let released = |word| (count(word, why) != 0).then(|| word.wrapping_sub(one(why)));
        self.update(released).is_ok()
    }
    /// One that is paused and that nobody holds runs again. `false`: it is another state's, or held.
    pub(crate) fn go_on(&self) -> bool {
        let from = RunState::Paused as u64;
        let goes_on = |word: u64| {
            let released = word & (STATE | HOLDS) == from;
            released.then_some(word & !STATE | RunState::Running as u64)
        };
        self.update(goes_on).is_ok()
    }
}

/// What a machine that is ready does.
fn go(word: u64) -> RunState {
    match word & HOLDS {
        0 => RunState::Running,
        _ => RunState::Paused,
    }
}

fn shift(why: HoldReason) -> u32 {
    8u32.wrapping_mul(why as u32).wrapping_add(8)
}
fn one(why: HoldReason) -> u64 {
    1u64.wrapping_shl(shift(why))
}
fn count(word: u64, why: HoldReason) -> u8 {
    word.wrapping_shr(shift(why)) as u8
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_stands_still_as_long_as_anybody_holds_it() {
        let word = RunWord::new();
        assert_eq!(word.launch(true), Some(RunState::Running));
        assert_eq!(word.hold(HoldReason::User), Ok(true));
        assert_eq!(word.hold(HoldReason::Saving), Ok(false));
        assert_eq!(word.hold(HoldReason::Saving), Ok(false));
        for why in [HoldReason::Saving, HoldReason::User, HoldReason::Saving] {
            assert!(!word.go_on() && word.is_held());
            assert!(word.release(why));
        }
        assert_eq!(word.state(), RunState::Paused);
        assert!(word.go_on() && !word.go_on());
        assert_eq!(word.state(), RunState::Running);
        assert!(!word.release(HoldReason::HostSleep));
    }

    #[test]
    fn the_user_holds_once_and_others_up_to_255_times() {
        let word = RunWord::new();
        for _ in 0..300 {
            assert_eq!(word.hold(HoldReason::User), Ok(false));
        }
        assert!(word.release(HoldReason::User) && !word.is_held());
        for why in [
            HoldReason::HostSleep,
            HoldReason::Debugger,
            HoldReason::Saving,
        ] {
            for _ in 0..255 {
                assert_eq!(word.hold(why), Ok(false));
            }
            assert_eq!(word.hold(why), Err(TooManyHolds));
        }
        for why in [HoldReason::HostSleep, HoldReason::Saving] {
            (0..255).for_each(|_| assert!(word.release(why)));
            assert!(!word.release(why));
        }
        assert!(word.is_held());
        assert_eq!(word.state_and_resets(), (RunState::New, Resets::NONE));
    }

    #[test]
    fn launch_and_reset_lead_to_a_pause_if_it_is_held() {
        let word = RunWord::new();
        word.hold(HoldReason::Debugger).unwrap();
        assert_eq!(word.launch(true), Some(RunState::Paused));
        assert!(!word.begin_reset());
        assert!(word.release(HoldReason::Debugger) && word.go_on());
        assert!(word.begin_reset());
        assert_eq!(word.hold(HoldReason::User), Ok(false));
        assert_eq!(word.state(), RunState::Resetting);
        assert_eq!(word.reset_done(), Some(RunState::Paused));
        assert_eq!(word.state_and_resets().1, Resets(2));
    }

    #[test]
    fn the_users_hold_ends_with_the_vm() {
        let word = RunWord::new();
        word.launch(true);
        word.hold(HoldReason::User).unwrap();
        word.hold(HoldReason::HostSleep).unwrap();
        assert!(word.stop() && !word.stop());
        assert_eq!(word.launch(true), None);
        word.ended();
        assert_eq!(word.state(), RunState::Stopped);
        assert!(!word.release(HoldReason::User) && word.is_held());
        assert_eq!(word.launch(true), Some(RunState::Paused));
        assert!(word.release(HoldReason::HostSleep) && word.go_on());
    }

    #[test]
    fn one_that_stops_is_neither_reset_nor_launched() {
        let word = RunWord::new();
        assert!(!word.stop() && word.stop_new() && !word.stop_new());
        assert_eq!(word.launch(true), Some(RunState::Running));
        assert!(word.begin_reset() && word.stop());
        assert_eq!(word.reset_done(), None);
        assert!(!word.go_on());
        assert_eq!(word.state(), RunState::Stopping);
    }
}
