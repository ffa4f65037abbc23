// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's event samples (PEBS): a counter that has them on writes a record at a linear address, that in IA32_DS_AREA
//! (SDM 3B: 17.4.9), and in a guest by the guest's own page tables. So in a guest they are off, and their counters stand.
//!
//! NMI handlers of the host may switch them at any time. So it is the entry that has them off in the guest, and the exit that
//! gives them back before any handler runs: by lists of MSRs to load (SDM 3C: 24.7.2, 24.8.2), filled in for each entry.
//! Where the host has no such samples on when a window opens, the lists are empty, and that look is all it costs.

use super::super::cpu;
use super::super::pages::Pages;
use super::caps::msr::{PEBS_ENABLE, PERF_GLOBAL_CTRL};
use super::field::*;
use super::vmcs::Vmcs;
use crate::host::{Host, NoMemory};

/// Where the entry's list is in the page, and behind it the exit's.
const AT_ENTRY: usize = 0;
const AT_EXIT: usize = 32;
/// The registers in each.
const LENGTH: u32 = 2;

/// The samples, and where the lists are.
pub(super) struct Samples<H: Host> {
    lists: Pages<H>,
    /// The host had samples on when the window opened.
    on: bool,
    /// What PEBS_ENABLE is to hold again.
    host: u64,
}

impl<H: Host> Samples<H> {
    /// With empty lists.
    pub(super) fn new(host: &H, vmcs: &mut Vmcs<H>) -> Result<Self, NoMemory> {
        let lists = Pages::new(host, 1)?;
        let list = |at| lists.at().wrapping_add(at as u64).0;
        vmcs.set(ENTRY_MSR_LOAD_LIST, list(AT_ENTRY));
        vmcs.set(EXIT_MSR_LOAD_LIST, list(AT_EXIT));
        Ok(Self {
            lists,
            on: false,
            host: 0,
        })
    }

    /// Looks whether the host has samples on, when a window opens.
    pub(super) fn open(&mut self, vmcs: &mut Vmcs<H>) {
        self.on = cpu::read_msr(PEBS_ENABLE).is_ok_and(|enabled| enabled != 0);
        let length = if self.on { LENGTH } else { 0 };
        vmcs.set(ENTRY_MSR_LOADS, length);
        vmcs.set(EXIT_MSR_LOADS, length);
    }

    /// Switches them off for an entry. Not by the entry alone: a record may be under way, and gets the time to be written.
    ///
    /// # Safety
    /// In a window. An entry follows, or [`Samples::not_entered`].
    pub(super) unsafe fn before_entry(&mut self) {
        if !self.on {
            return;
        }
        let read = |index| cpu::read_msr(index).unwrap_or(0);
        let (enabled, running) = (read(PEBS_ENABLE), read(PERF_GLOBAL_CTRL));
        self.host = enabled;
        // Bits 32 and above are of fixed counters in both, or ask for latencies.
        self.list(
            AT_ENTRY,
            [(PERF_GLOBAL_CTRL, running & !enabled), (PEBS_ENABLE, 0)],
        );
        self.list(
            AT_EXIT,
            [(PEBS_ENABLE, enabled), (PERF_GLOBAL_CTRL, running)],
        );
        // SAFETY: the exit, or `not_entered`, puts it back.
        let _ = unsafe { cpu::write_msr(PEBS_ENABLE, 0) };
    }

    /// The entry failed before it loaded anything: no exit gives the samples back.
    ///
    /// # Safety
    /// In a window, after [`Samples::before_entry`].
    pub(super) unsafe fn not_entered(&mut self) {
        if self.on {
            // SAFETY: what it held before.
            let _ = unsafe { cpu::write_msr(PEBS_ENABLE, self.host) };
        }
    }

    /// Fills in a list (SDM 3C: table 24-12).
    fn list(&mut self, mut at: usize, entries: [(u32, u64); LENGTH as usize]) {
        for (index, value) in &entries {
            for word in &[u64::from(*index), *value] {
                self.lists.write(at, &word.to_le_bytes());
                at = at.wrapping_add(8);
            }
        }
    }
}
