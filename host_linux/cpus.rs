// SPDX-License-Identifier: GPL-2.0
//! The host's CPUs, for everybody: which one this is, work on each, and those on which guests may be entered.

use core::sync::atomic::{AtomicU64, Ordering};
use kernel::{bindings, prelude::*};
use palacios_core::host::CpuId;

/// More than any x86 kernel is built for.
const MAX_CPUS: usize = 8192;
/// The CPUs on which guests may be entered, a bit each: all that are online and not about to go. On a host that goes down
/// they stay, and an entry finds virtualization gone.
static ENABLED: [AtomicU64; MAX_CPUS / 64] = [const { AtomicU64::new(0) }; MAX_CPUS / 64];

/// The CPU this runs on.
pub(crate) fn current_cpu() -> CpuId {
    // SAFETY: Reads a number.
    CpuId(unsafe { bindings::raw_smp_processor_id() } as u32)
}

/// Calls `f` on each CPU that is online, with interrupts off there, and waits until all calls have returned.
pub(crate) fn on_each_cpu(f: &(dyn Fn(CpuId) + Sync)) {
    /// # Safety
    /// `f` points to such a closure's reference.
    unsafe extern "C" fn call(f: *mut c_void) {
        // SAFETY: The closure that `on_each_cpu` points to, for the length of the call below.
        let f = unsafe { *f.cast::<&(dyn Fn(CpuId) + Sync)>() };
        f(current_cpu());
    }
    let f: *const &(dyn Fn(CpuId) + Sync) = &f;
    // SAFETY: Waits until all have returned, so `f` outlives the calls.
    unsafe {
        let online = &raw const bindings::__cpu_online_mask;
        bindings::on_each_cpu_cond_mask(None, Some(call), f.cast_mut().cast(), true, online);
    }
}

/// Guests may be entered on `cpu`. Stable while interrupts are off there.
pub(crate) fn is_enabled(cpu: CpuId) -> bool {
    let word = ENABLED.get(cpu.0 as usize / 64);
    word.is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (cpu.0 % 64)) != 0)
}

/// Guests may be entered on `cpu` from now on, or no longer.
pub(crate) fn set_enabled(cpu: CpuId, on: bool) {
    let Some(word) = ENABLED.get(cpu.0 as usize / 64) else {
        return;
    };
    let bit = 1 << (cpu.0 % 64);
    match on {
        true => word.fetch_or(bit, Ordering::Relaxed),
        false => word.fetch_and(!bit, Ordering::Relaxed),
    };
}
