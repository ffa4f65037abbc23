// SPDX-License-Identifier: MIT OR Apache-2.0
//! The power switch: it keeps what the guest asked for until a vCPU has done it.
#![forbid(unsafe_code)]

use crate::interfaces::{PowerRequest, PowerSink};
use core::sync::atomic::{AtomicU64, Ordering};

/// Keeps the guest's power request until a vCPU has done it.
pub(super) struct PowerSwitch(AtomicU64);

const NONE: u64 = 0;
const OFF: u64 = 1;
const RESET: u64 = 2;
const EXIT: u64 = 3;

impl PowerSwitch {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(NONE))
    }
    pub(super) fn waiting(&self) -> Option<PowerRequest> {
        decode(self.0.load(Ordering::SeqCst))
    }
    pub(super) fn clear(&self) {
        self.0.store(NONE, Ordering::SeqCst);
    }
}

impl PowerSink for PowerSwitch {
    fn request(&self, what: PowerRequest) {
        let word = match what {
            PowerRequest::Off => OFF,
            PowerRequest::Reset => RESET,
            PowerRequest::Exit(status) => EXIT | u64::from(status) << 32,
        };
        let _ = self
            .0
            .compare_exchange(NONE, word, Ordering::SeqCst, Ordering::SeqCst);
    }
}

fn decode(word: u64) -> Option<PowerRequest> {
    match word & 3 {
        OFF => Some(PowerRequest::Off),
        RESET => Some(PowerRequest::Reset),
        EXIT => Some(PowerRequest::Exit((word >> 32) as u32)),
        _ => None,
    }
}
