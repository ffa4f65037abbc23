// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises that a test host can be told to break, so that the checks of the contract are seen to fail.

use super::Inner;

/// A promise to break. Those that say *often* keep it most of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Broken {
    PagesNotZeroed,
    PagesNotAligned,
    PagesAbove4g,
    PagesNotFreed,
    CpuCalledTwice,
    CurrentCpuWrong,
    PinIgnored,
    WindowShared,
    ClockOftenGoesBack,
    ClockStandsStill,
    JoinTooEarly,
    ParkReturns,
    UnparkLostBeforePark,
    UnparkOftenLost,
    MoveIgnored,
    MoveToNowhere,
    TimerEarly,
    TimerTwice,
    TimerNotReplaced,
    TimersOutOfOrder,
    WaitNotCounted,
    SleepIsWaiting,
    YieldsToNobody,
    KickOftenLost,
    RamNotZeroed,
    RamForgets,
    RamRemembers,
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
