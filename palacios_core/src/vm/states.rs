// SPDX-License-Identifier: MIT OR Apache-2.0
//! The states in a VM's life, as its owner sees them and as its vCPUs do.
#![forbid(unsafe_code)]

use super::stop_reason::StopReason;
use crate::host::NoMemory;

/// What vCPU threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RunState {
    /// No thread runs.
    Stopped,
    /// They enter the guest.
    Running,
    /// They wait, out of the guest.
    Paused,
    /// They gather outside of the guest; the last one to arrive resets the machine.
    Resetting,
    /// They end.
    Stopping,
}

impl RunState {
    /// The state that the byte stands for.
    pub(super) fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Running,
            2 => Self::Paused,
            3 => Self::Resetting,
            4 => Self::Stopping,
            _ => Self::Stopped,
        }
    }
}

/// What the owner of a VM sees of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not yet launched.
    Created,
    /// Runs.
    Running,
    /// Waits to be continued.
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
}

impl From<NoMemory> for LifeError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// What a vCPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunDecision {
    /// Run the guest.
    Run,
    /// Look at the run state again.
    LookAgain,
    /// Stop here until the machine was reset.
    Reset,
    /// End its thread.
    End,
}

/// Why a vCPU left its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunEnd {
    /// The machine is to be reset.
    Reset,
    /// The VM stops.
    Stop,
}
