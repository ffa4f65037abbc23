// SPDX-License-Identifier: MIT OR Apache-2.0
//! The states in a VM's life, as its owner sees them, and why a call may come at the wrong time.
#![forbid(unsafe_code)]

use super::run_word::TooManyHolds;
use super::stop_reason::StopReason;
use crate::host::NoMemory;

/// What the owner of a VM sees of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not yet launched.
    Created,
    /// Runs.
    Running,
    /// Stands still, because somebody holds it.
    Paused,
    /// Was asked to end, or is just ending.
    Stopping,
    /// Ended.
    Stopped(StopReason),
}

/// Why a call came at the wrong time, or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeError {
    /// Not in this state.
    WrongState(State),
    /// No memory for it.
    NoMemory,
    /// The kernel could not be loaded again.
    NotLoadable,
    /// Too many hold the VM for this reason.
    TooManyHolds,
}

impl From<NoMemory> for LifeError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl From<TooManyHolds> for LifeError {
    fn from(_: TooManyHolds) -> Self {
        Self::TooManyHolds
    }
}

/// What became of a step of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// There is more to do: step it again.
    Again,
    /// There is nothing to do until its thread is unparked, or the time has come for which it was armed.
    Idle,
    /// It has ended with its VM, and makes no step until the next launch.
    Ended,
}
