// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's detection of split locks: with it, a locked access to two cache lines is an #AC(0), at any privilege level and
//! whatever CR0.AM and RFLAGS.AC say (SDM 3A: 8.1.2.3).
//!
//! Neither entry nor exit switches it, and no guest is told of it. So a guest's first split lock in a window, and no other
//! exit, switches it off until the window closes.

use super::super::cpu;
use super::caps::msr::MEMORY_CTRL;

/// MSR_MEMORY_CTRL: locked accesses to memory that is not cached are faults, and to two cache lines.
const UC_LOCKS_FAULT: u64 = 1 << 28;
const SPLIT_LOCKS_FAULT: u64 = 1 << 29;

/// What the register is to hold again, if the guest's split locks were let through.
#[derive(Debug, Default)]
pub(super) struct SplitLocks {
    host: Option<u64>,
}

impl SplitLocks {
    /// After an #AC that the guest did not ask for: lets its split locks through. `false`: it was none.
    ///
    /// The register may be one for all threads of a core. If another has switched detection off by now, the guest needs no
    /// more than to try again.
    ///
    /// # Safety
    /// In a window, which [`SplitLocks::unload`] ends.
    pub(super) unsafe fn allow(&mut self) -> bool {
        let Ok(control) = cpu::read_msr(MEMORY_CTRL) else {
            return false;
        };
        if control & SPLIT_LOCKS_FAULT == 0 {
            return control & UC_LOCKS_FAULT == 0;
        }
        self.host.get_or_insert(control);
        // SAFETY: the host has no split locks, and its value back when the window closes.
        unsafe { cpu::write_msr(MEMORY_CTRL, control & !SPLIT_LOCKS_FAULT) }.is_ok()
    }

    /// Puts the host's value back.
    ///
    /// # Safety
    /// In the same window.
    pub(super) unsafe fn unload(&mut self) {
        if let Some(control) = self.host.take() {
            // SAFETY: what it held before.
            let _ = unsafe { cpu::write_msr(MEMORY_CTRL, control) };
        }
    }
}
