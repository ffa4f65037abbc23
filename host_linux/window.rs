// SPDX-License-Identifier: GPL-2.0
//! The window in which guests run: on one CPU with interrupts off, the FPU ours, host breakpoints quiet.

use crate::{cpus, ffi};
use core::marker::PhantomData;
use kernel::bindings;
use palacios_core::host::CpuId;

/// The scheduler wants this CPU for another thread.
pub(crate) fn cpu_wanted() -> bool {
    // SAFETY: Reads the flags of the current thread.
    unsafe { ffi::v3vee_cpu_wanted() }
}

/// An open window; closes when dropped, on the CPU where it was opened.
pub(crate) struct Window {
    pub(crate) cpu: CpuId,
    breakpoints: Option<[usize; 6]>,
    _here: PhantomData<*mut ()>,
}

impl Window {
    /// Opens one, after other threads had what they want of the CPU. Sleeps.
    pub(crate) fn open() -> Self {
        let cpu = Self::settle();
        let mut regs = [0; 6];
        // SAFETY: Interrupts are off until the window closes. With interrupts off the FPU section needs no more: it
        // neither nests (we are in thread context) nor can it be preempted.
        let breakpoints = unsafe {
            bindings::kernel_fpu_begin_mask(0);
            ffi::v3vee_speculate_less();
            ffi::v3vee_guest_time_begin();
            ffi::v3vee_breakpoints_off(&mut regs)
        };
        Self {
            cpu,
            breakpoints: breakpoints.then_some(regs),
            _here: PhantomData,
        }
    }

    /// Comes to rest on a CPU that no other thread wants and that is here to stay; returns with interrupts off.
    fn settle() -> CpuId {
        loop {
            // SAFETY: Thread context with interrupts on.
            unsafe { ffi::v3vee_irq_disable() };
            let cpu = cpus::current_cpu();
            let wanted = cpu_wanted();
            if !wanted && cpus::is_enabled(cpu) {
                return cpu;
            }
            // SAFETY: They were just switched off. Then an ordinary sleep or reschedule of a running thread.
            unsafe {
                ffi::v3vee_irq_enable();
                if wanted {
                    bindings::schedule();
                } else {
                    // This CPU is about to go: the scheduler will move us.
                    bindings::schedule_timeout_idle(1);
                }
            }
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: Undoes `open`, on the same CPU. The interrupts that waited are taken while time still counts as the
        // guest's: that is how a host which accounts by ticks learns of it.
        unsafe {
            if let Some(regs) = &self.breakpoints {
                ffi::v3vee_breakpoints_on(regs);
            }
            bindings::kernel_fpu_end();
            ffi::v3vee_irq_enable();
            ffi::v3vee_irq_disable();
            ffi::v3vee_guest_time_end();
            ffi::v3vee_irq_enable();
        }
    }
}
