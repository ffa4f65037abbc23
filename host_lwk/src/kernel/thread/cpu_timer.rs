// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one timer of each CPU. It is set for the end of the running thread's slice or for the earliest alarm, whichever comes first.
//!
//! Its interrupt is handled in `alarms.rs`; the registers of the hardware are in `apic.rs`.

use crate::kernel::per_cpu::PerCpu;
use crate::kernel::{apic, time};
use core::sync::atomic::{AtomicU64, Ordering};
use palacios_core::alloc_ext::NoMemory;

/// No time.
pub const NEVER: u64 = u64::MAX;

/// What the timer of a CPU is needed for.
pub struct CpuTimer {
    /// When the running thread's slice ends; [`NEVER`] while no other is ready.
    slice_end_ns: AtomicU64,
    /// The earliest time that a thread armed.
    first_armed_ns: AtomicU64,
    /// What the timer is set for; the CPU itself alone looks at it.
    set_for_ns: AtomicU64,
}

static CPU_TIMERS: PerCpu<CpuTimer> = PerCpu::new();

/// Makes the timers of all CPUs.
///
/// # Safety
/// Once, while only the first CPU runs.
pub unsafe fn init(cpus: u32) -> Result<(), NoMemory> {
    let timer = |_| {
        Ok(CpuTimer {
            slice_end_ns: AtomicU64::new(NEVER),
            first_armed_ns: AtomicU64::new(NEVER),
            set_for_ns: AtomicU64::new(NEVER),
        })
    };
    // SAFETY: the same contract.
    unsafe { CPU_TIMERS.fill(cpus, timer) }
}

/// The timer of the CPU that this runs on.
pub fn current() -> &'static CpuTimer {
    CPU_TIMERS.current()
}

/// The timer of a CPU.
pub fn of(cpu: u32) -> Option<&'static CpuTimer> {
    CPU_TIMERS.get(cpu)
}

impl CpuTimer {
    /// Whether the running thread's slice has an end.
    pub fn slice_ends(&self) -> bool {
        self.slice_end_ns.load(Ordering::Relaxed) != NEVER
    }

    /// Has the running thread's slice end at `at_ns`, or not at all. Then [`CpuTimer::set_timer`].
    pub fn end_slice_at(&self, at_ns: u64) {
        self.slice_end_ns.store(at_ns, Ordering::Relaxed);
    }

    /// The earliest armed time is `at_ns` now. Then, on the CPU itself, [`CpuTimer::set_timer`].
    pub fn set_first_armed(&self, at_ns: u64) {
        self.first_armed_ns.store(at_ns, Ordering::Relaxed);
    }

    /// The timer has fired: it is set for nothing now.
    pub fn fired(&self) {
        self.set_for_ns.store(NEVER, Ordering::Relaxed);
    }

    /// Whether the slice is over, which is told once.
    pub fn take_slice_end(&self, now_ns: u64) -> bool {
        let over = self.slice_end_ns.load(Ordering::Relaxed) <= now_ns;
        if over {
            self.end_slice_at(NEVER);
        }
        over
    }

    /// Sets the timer, if what it is to be set for changed. On its CPU, with interrupts off.
    pub fn set_timer(&self) {
        let slice = self.slice_end_ns.load(Ordering::Relaxed);
        let at_ns = slice.min(self.first_armed_ns.load(Ordering::Relaxed));
        if self.set_for_ns.load(Ordering::Relaxed) != at_ns {
            self.set_for_ns.store(at_ns, Ordering::Relaxed);
            let after_ns = (at_ns != NEVER).then(|| at_ns.saturating_sub(time::now_ns()));
            apic::set_timer(after_ns);
        }
    }
}
