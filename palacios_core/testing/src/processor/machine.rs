// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is around the processors. The test host is the one that forgives nothing; a host of somebody else can have the same
//! processors, to run guests in its own tests.

use super::Processors;
use palacios_core::addr::Hpa;
use palacios_core::host::CpuId;
use std::ptr::NonNull;

/// A host, as far as its processors see it: its memory, and its interrupts.
pub trait HostMachine: Send + Sync {
    /// The processors themselves.
    fn processors(&self) -> &Processors;
    /// Where a physical address is in this program's memory.
    fn phys_to_virt(&self, at: Hpa) -> NonNull<u8>;
    /// How often a page has changed hands; always 0 where nobody counts that, and then no stale translation is seen.
    fn owner(&self, _page: Hpa) -> u32 {
        0
    }
    /// The CPU on which the calling thread has interrupts off, in a window or a cross-call.
    fn window_cpu(&self) -> Option<CpuId>;
    /// In a window: an interrupt of the host waits, and would end guest mode.
    fn interrupted(&self) -> bool;
    /// A pseudo-random number, for what a processor may do or leave.
    fn random(&self) -> u64;
}
