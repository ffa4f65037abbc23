// SPDX-License-Identifier: GPL-2.0
//! The switch of SVM or VMX: on for every CPU that is online, as CPUs come and go, again after a suspend, and off when the host goes down.

use crate::cpus::{current_cpu, on_each_cpu, set_enabled};
use crate::host::Linux;
use crate::{error, ffi};
use core::cell::UnsafeCell;
use kernel::{bindings, error::to_result, prelude::*};
use palacios_core::backend::any::Hardware;
use palacios_core::backend::Unsupported;
use palacios_core::host::CpuId;

/// The switch, for callbacks that carry no pointer of ours.
struct Slot(UnsafeCell<Option<Hardware<Linux>>>);

// SAFETY: Written only by `Virtualization`, of which there is one, while no callback is registered.
unsafe impl Sync for Slot {}

static SWITCH: Slot = Slot(UnsafeCell::new(None));

fn with_switch<R>(f: impl FnOnce(&Hardware<Linux>) -> R) -> Option<R> {
    // SAFETY: Called from callbacks only, while they are registered: nobody writes it.
    unsafe { &*SWITCH.0.get() }.as_ref().map(f)
}

/// Switches this CPU on; atomic. Says why, if it cannot.
fn switch_on() -> Result<(), Unsupported> {
    let cpu = current_cpu();
    let result = with_switch(|switch| switch.enable_cpu(cpu)).unwrap_or(Ok(()));
    if let Err(why) = &result {
        pr_err!("{}\n", format_args!("cannot use CPU {}: {why}", cpu.0));
    }
    result
}

/// Switches this CPU off; atomic.
fn switch_off() {
    let cpu = current_cpu();
    with_switch(|switch| switch.disable_cpu(cpu));
    // SAFETY: On this CPU, atomic.
    unsafe { ffi::v3vee_speculate_as_before() };
}

/// Runs `f` with interrupts off.
fn atomic<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: The flags are put back below, on the same CPU.
    let flags = unsafe { ffi::v3vee_irq_save() };
    let result = f();
    // SAFETY: As above.
    unsafe { ffi::v3vee_irq_restore(flags) };
    result
}

/// A CPU comes; on that CPU.
///
/// # Safety
/// For the hotplug core to call.
unsafe extern "C" fn cpu_online(cpu: u32) -> i32 {
    let result = atomic(switch_on);
    set_enabled(CpuId(cpu), result.is_ok());
    result.map_or_else(|why| error::of_backend(why).to_errno(), |()| 0)
}

/// A CPU goes; on that CPU.
///
/// # Safety
/// For the hotplug core to call.
unsafe extern "C" fn cpu_offline(cpu: u32) -> i32 {
    set_enabled(CpuId(cpu), false);
    atomic(switch_off);
    0
}

/// The last CPU, before a suspend; interrupts are off.
#[no_mangle]
extern "C" fn v3vee_cpu_suspend() {
    switch_off();
}

/// The first CPU, after a suspend; interrupts are off. If it fails, VMs that run there find virtualization gone.
#[no_mangle]
extern "C" fn v3vee_cpu_resume() {
    let _ = switch_on();
}

/// Reboot, power-off, kexec: processors that have virtualization on may ignore INIT. No guest runs when this returns, and
/// VMs end as soon as they try.
#[no_mangle]
extern "C" fn v3vee_shutdown() {
    on_each_cpu(&|_| switch_off());
}

/// Virtualization is on, until this is dropped.
pub(crate) struct Virtualization {
    state: bindings::cpuhp_state,
}

impl Virtualization {
    /// Switches it on. There may be one `Virtualization` at a time.
    pub(crate) fn enable(backend: Hardware<Linux>) -> Result<Self> {
        // SAFETY: No callback is registered yet.
        unsafe { *SWITCH.0.get() = Some(backend) };
        // SAFETY: The callbacks stay until `drop`. They are called on each CPU that is online, before this returns.
        let state = unsafe {
            bindings::__cpuhp_setup_state(
                bindings::cpuhp_state_CPUHP_AP_ONLINE_DYN,
                c"v3vee:online".as_char_ptr(),
                true,
                Some(cpu_online),
                Some(cpu_offline),
                false,
            )
        };
        if let Err(error) = to_result(state) {
            // SAFETY: It was not registered.
            unsafe { *SWITCH.0.get() = None };
            return Err(error);
        }
        // SAFETY: Once, and undone in `drop`.
        unsafe { ffi::v3vee_syscore_register() };
        Ok(Self {
            state: state as bindings::cpuhp_state,
        })
    }
}

impl Drop for Virtualization {
    fn drop(&mut self) {
        // SAFETY: Registered in `enable`. After this no callback is running or will run.
        unsafe {
            ffi::v3vee_syscore_unregister();
            bindings::__cpuhp_remove_state(self.state, true);
            *SWITCH.0.get() = None;
        }
    }
}
