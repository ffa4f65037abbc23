// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises that a test host can be told to break, so that the checks of the contract are seen to fail.

use super::Inner;

/// A promise to break. Those that say *often* keep it most of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// `alloc_pages` leaves a byte in a page.
    PagesNotZeroed,
    /// `alloc_pages` leaves a byte in a page that was freed before.
    PagesRemember,
    /// `alloc_pages` ignores the alignment.
    PagesNotAligned,
    /// `alloc_pages` ignores that all are to lie below 4 GiB.
    PagesAbove4g,
    /// `alloc_pages` gives one page over and over.
    PagesGivenTwice,
    /// `alloc_pages` gives one page where more are asked for than there are.
    PagesFewer,
    /// `free_pages` keeps them.
    PagesNotFreed,
    /// `phys_to_virt` ignores the offset in the page.
    OffsetsIgnored,
    /// `cpu_limit` is one too small.
    CpuLimitTooSmall,
    /// `on_each_cpu` calls twice.
    CpuCalledTwice,
    /// `current_cpu` names the next one.
    CurrentCpuWrong,
    /// `thread` ignores the CPU to which it is to pin.
    PinIgnored,
    /// Windows on one CPU are open side by side.
    WindowShared,
    /// `now_ns` goes back.
    ClockOftenGoesBack,
    /// `now_ns` is always the same.
    ClockStandsStill,
    /// `wall_ns` counts microseconds.
    WallClockInMicroseconds,
    /// `tsc_hz` is in MHz.
    TscRateInMhz,
    /// `tsc_stable` is promised where `tsc_hz` is not known.
    TscStableWithoutRate,
    /// `start` does nothing.
    NeverStarts,
    /// `start` does nothing the second time.
    StartsOnce,
    /// `join` returns at once.
    JoinTooEarly,
    /// `join` of a thread that was started does not return.
    JoinNeverReturns,
    /// `join` waits for a thread that was never started.
    JoinWaitsForStart,
    /// A thread that drops its own handle sleeps for ever.
    DropSleeps,
    /// `park` returns at once.
    ParkReturns,
    /// `unpark` of a thread that does not sleep is forgotten.
    UnparkLostBeforePark,
    /// `unpark` does nothing.
    UnparkOftenLost,
    /// `move_to` does nothing.
    MoveIgnored,
    /// `move_to` a CPU that is not there is no error.
    MoveToNowhere,
    /// `pin` names no CPU.
    PinForgotten,
    /// `arm` does nothing.
    TimerNeverComes,
    /// An armed time comes early.
    TimerEarly,
    /// An armed time comes once more.
    TimerTwice,
    /// `arm` leaves the time armed before.
    TimerNotReplaced,
    /// Of the times that are armed, the last comes first.
    TimersOutOfOrder,
    /// An armed time unparks, and does not kick.
    TimerDoesNotKick,
    /// `waited_ns` stays 0.
    WaitNotCounted,
    /// `waited_ns` counts sleeps.
    SleepIsWaiting,
    /// `yield_to` says that it did.
    YieldsToNobody,
    /// A lock is not had though it is free.
    LockOftenStuck,
    /// `kick` does nothing.
    KickOftenLost,
    /// `page` leaves a byte in a frame.
    RamNotZeroed,
    /// `release` forgets what a revoked page held.
    RamForgets,
    /// `release` keeps what an ended guest's page held.
    RamRemembers,
    /// `holds` knows nothing of a revoked page.
    RamHoldsNothing,
}

impl Inner {
    pub fn breaks(&self, what: Broken) -> bool {
        self.config.broken == Some(what)
    }
    /// Once in eight times.
    pub fn often_breaks(&self, what: Broken) -> bool {
        self.breaks(what) && self.random() % 8 == 0
    }
}
