// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many vCPUs are stuck: waiting for what only another vCPU can send, an NMI or a start-up message. When all are, the VM
//! is dead.
//!
//! A vCPU says that it is stuck after all that it sent was posted, and that it no longer is before it takes what came. So
//! if all are stuck, nothing is posted to any, and still none has moved, then nothing is on its way.
//! `palacios_core/models` proves it.
#![forbid(unsafe_code)]

use crate::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire},
};

/// The low half counts the vCPUs that are stuck, the high half how often that number has changed.
pub(crate) struct Stuck(AtomicU64);

const CHANGE: u64 = 1 << 32;

impl Stuck {
    /// None is.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }
    /// One more is.
    pub(crate) fn enter(&self) {
        self.0.fetch_add(CHANGE + 1, AcqRel);
    }
    /// One that was is no longer.
    pub(crate) fn leave(&self) {
        // The count's carry is the change.
        self.0.fetch_add(CHANGE - 1, AcqRel);
    }
    /// Whether all of `vcpus` are stuck, and `nothing_waits` holds, and no vCPU moved between the two looks.
    pub(crate) fn all(&self, vcpus: u32, nothing_waits: impl FnOnce() -> bool) -> bool {
        let before = self.0.load(Acquire);
        before as u32 == vcpus && nothing_waits() && self.0.load(Acquire) == before
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn all_are_stuck_only_if_none_moved_meanwhile() {
        let stuck = Stuck::new();
        stuck.enter();
        assert!(!stuck.all(2, || true));
        stuck.enter();
        assert!(stuck.all(2, || true));
        assert!(!stuck.all(2, || false));
        let moves = || {
            stuck.leave();
            stuck.enter();
            true
        };
        assert!(!stuck.all(2, moves));
        stuck.leave();
        assert!(!stuck.all(2, || true));
    }
}
