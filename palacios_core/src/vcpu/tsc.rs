// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU's time stamp counter: the VM's ([`VmClock::tsc`](crate::clock::VmClock::tsc)), so that all vCPUs show the same, plus what the
//! guest itself put on top by writing the register.
#![forbid(unsafe_code)]

/// Where a vCPU's counter stands against others.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tsc {
    /// What it is ahead of the host's, on the CPU where it was last loaded, as the backend knows it.
    pub(super) offset: u64,
    /// What it is ahead of the VM's, because the guest wrote it: IA32_TSC_ADJUST.
    pub(super) ahead: u64,
    /// The VM's, when this vCPU last ran: it does not go back.
    pub(super) last: u64,
}

impl Tsc {
    /// After power-on it shows what the VM's does. The backend still has the offset.
    pub(super) fn reset(&mut self) {
        self.ahead = 0;
    }
}
