// SPDX-License-Identifier: MIT OR Apache-2.0
//! The doorbells of a device: regions whose writes do nothing but have its worker look.
#![forbid(unsafe_code)]

use crate::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Relaxed},
};

/// Those of one device that rang. `palacios_core/models` proves that no ring is lost.
pub(super) struct Doorbells(AtomicU64);

impl Doorbells {
    /// None rang.
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The bell of a region rings. `true`: the worker is to be woken. Else somebody has woken it since it last looked.
    pub(super) fn ring(&self, region: u16) -> bool {
        let bit = 1 << (region & 63);
        self.0.fetch_or(bit, AcqRel) & bit == 0
    }

    /// Those that rang and were not taken yet.
    pub(super) fn rung(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Takes those that rang, a bit for each region. What was written before they rang is seen from here on.
    pub(super) fn take(&self) -> u64 {
        // Most often none did, and a read costs less than an exchange.
        match self.0.load(Relaxed) {
            0 => 0,
            _ => self.0.swap(0, AcqRel),
        }
    }
}
