// SPDX-License-Identifier: GPL-2.0
//! `/dev/v3-vmN`: one VM, and what is done with it. Its ioctls are dispatched in `vm_file.rs`.
//!
//! The node outlives its VM: a file that is open when the VM is freed answers `ENODEV`. Whoever uses the VM for the length of
//! a call counts a reference to [`Held`]; a call that waits does so without one.
//!
//! Lock order: the table of VMs, `VmNode::vm`, the core's locks, `Waiters::streams`.

use crate::counters::VMS;
use crate::cpus::on_each_cpu;
use crate::ffi::THIS_MODULE;
use crate::hardware::{Hardware, SharedVm, Vm};
use crate::host::Linux;
use crate::memory::Ram;
use crate::misc_device::{Device, Operations};
use crate::payer::Payer;
use crate::queue::Until;
use crate::refusal::Refusal;
use crate::stream::Stream;
use crate::waiters::{Teller, Waiters};
use crate::{error, info};
use alloc::boxed::Box;
use core::sync::atomic::Ordering;
use kernel::{
    bindings, new_mutex,
    prelude::*,
    str::CString,
    sync::{Arc, ArcBorrow, Mutex},
};
use palacios_core::alloc_ext::try_box;
use palacios_core::host::Host;
use palacios_core::image::Image;
use palacios_core::vm::{
    CreateError, HoldReason, ImageBytes, LifeError, Observer, Parts, State, StopReason, VmName,
};
use v3_abi as abi;

/// A VM, as long as it is not freed. Its fields are dropped in this order.
pub(crate) struct Held {
    pub(crate) vm: SharedVm,
    /// Who pays for its memory.
    pub(crate) payer: Arc<Payer>,
    _gone: Gone,
    _module: ModuleReference,
}

/// Says that a VM is gone.
struct Gone(Arc<Waiters>);

impl Drop for Gone {
    fn drop(&mut self) {
        VMS.sub(1);
        self.0.gone.store(true, Ordering::Release);
        self.0.wake();
    }
}

/// Keeps the module.
struct ModuleReference;

impl ModuleReference {
    fn new() -> Self {
        // SAFETY: The module is in use: the caller comes from one of its files.
        unsafe { bindings::__module_get(THIS_MODULE) };
        Self
    }
}

impl Drop for ModuleReference {
    fn drop(&mut self) {
        // SAFETY: The reference that `new` took.
        unsafe { bindings::module_put(THIS_MODULE) };
    }
}

/// The image of a VM, in the module's memory.
pub(crate) struct ImageCopy(pub(crate) VVec<u8>);

impl AsRef<[u8]> for ImageCopy {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// One node.
#[pin_data]
pub(crate) struct VmNode {
    id: u32,
    pub(crate) waiters: Arc<Waiters>,
    /// The name of the stream that the image makes the console.
    console: Option<CString>,
    #[pin]
    vm: Mutex<Option<Arc<Held>>>,
    #[pin]
    device: Device,
}

impl VmNode {
    /// Makes a VM and its node, whose files have these operations.
    pub(crate) fn new(
        hardware: &Hardware,
        operations: &'static Operations,
        id: u32,
        name: VmName,
        image: ImageCopy,
    ) -> Result<Arc<Self>, Refusal> {
        let waiters = Waiters::new()?;
        VMS.add(1);
        let (gone, module) = (Gone(waiters.clone()), ModuleReference::new());
        let console = console_of(image.as_ref())?;
        let image: ImageBytes = try_box(image)?;
        let observer: Box<dyn Observer> = try_box(Teller(waiters.clone()))?;
        let payer = Payer::of_caller()?;
        let parts = Parts {
            name,
            image,
            ram: Ram::new(payer.clone())?,
            observer,
        };
        let vm = hardware
            .vm(parts, &mut |name| waiters.open(name))
            .map_err(Refusal::Core)?;
        let held = Held {
            vm,
            payer,
            _gone: gone,
            _module: module,
        };
        let held = Arc::new(held, GFP_KERNEL_ACCOUNT).map_err(Error::from)?;
        let file_name = CString::try_from_fmt(fmt!("v3-vm{id}"))?;
        let node = Arc::pin_init(
            pin_init!(Self {
                id,
                waiters,
                console,
                vm <- new_mutex!(Some(held), "v3vee_vm_node"),
                device <- Device::new(file_name, operations),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        node.device.register()?;
        Ok(node)
    }

    /// The node of the device that a file is opened on.
    ///
    /// # Safety
    /// `misc` is what the misc core gave to the `open` of a file of a node of this kind.
    pub(crate) unsafe fn of(misc: *const bindings::miscdevice) -> Arc<Self> {
        // SAFETY: By the contract above the device is a node's, which lives in an `Arc`, and the misc core keeps it
        // registered until the call of `open` returns.
        unsafe {
            let device = Device::of(misc);
            let node = device
                .byte_sub(core::mem::offset_of!(VmNode, device))
                .cast::<VmNode>();
            Arc::from(ArcBorrow::from_raw(node))
        }
    }

    /// Ends a VM that does not run. Returns when all it held is back, unless the caller is killed before.
    pub(crate) fn free(&self) -> Result {
        let held = {
            let mut vm = self.vm.lock();
            match vm.as_ref().ok_or(ENOENT)?.vm.state() {
                State::Created | State::Stopped(_) => vm.take(),
                State::Running | State::Paused | State::Stopping => return Err(EBUSY),
            }
        };
        self.device.unregister();
        if let Some(held) = held {
            held.vm.join();
        }
        self.waiters.wake();
        self.wait_until(
            || self.waiters.gone.load(Ordering::Acquire).then_some(Ok(())),
            None,
        )
    }

    /// The VM, for the length of a call.
    pub(crate) fn held(&self) -> Result<Arc<Held>> {
        self.vm.lock().clone().ok_or(ENODEV)
    }

    /// Sleeps, killable, until `ready` has an answer.
    fn wait_until<T>(
        &self,
        ready: impl Fn() -> Option<Result<T>>,
        deadline_ns: Option<u64>,
    ) -> Result<T> {
        let changed = &self.waiters.changed;
        loop {
            let seen = changed.event_count();
            if let Some(answer) = ready() {
                return answer;
            }
            if deadline_ns.is_some_and(|deadline_ns| Linux.now_ns() >= deadline_ns) {
                return Err(ETIMEDOUT);
            }
            changed.wait(seen, Until::Killed, deadline_ns)?;
        }
    }

    /// Sleeps, killable, until the VM is stopped.
    pub(crate) fn wait_stopped(&self, deadline_ns: Option<u64>) -> Result<StopReason> {
        let stopped = || match self.held().map(|held| held.vm.state()) {
            Ok(State::Stopped(reason)) => Some(Ok(reason)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        };
        self.wait_until(stopped, deadline_ns)
    }

    /// Sets it running, which is done once.
    pub(crate) fn launch(&self) -> Result {
        // Locked, so that it is not freed meanwhile.
        let vm = self.vm.lock();
        let held = vm.as_ref().ok_or(ENODEV)?;
        match held.vm.state() {
            State::Created => Vm::launch(&held.vm).map_err(error::of_life),
            // The core would launch one that has stopped again.
            _ => Err(error::wrong_state()),
        }
    }

    /// Has it stop, and waits for that, killable.
    pub(crate) fn stop(&self) -> Result {
        let held = {
            let vm = self.vm.lock();
            let held = vm.as_ref().ok_or(ENODEV)?;
            // What is not running any more needs no stopping.
            let _ = held.vm.stop();
            held.clone()
        };
        // Who waits for its end may free it at once: it is stopped nevertheless.
        let stopped = || matches!(held.vm.state(), State::Stopped(_)).then_some(Ok(()));
        self.wait_until(stopped, None)?;
        held.vm.join();
        Ok(())
    }

    /// Has it stand still.
    pub(crate) fn pause(&self) -> Result {
        let held = self.held()?;
        held.vm.pause().map_err(error::of_life)?;
        end_windows();
        Ok(())
    }

    /// Has it go on.
    pub(crate) fn resume(&self) -> Result {
        let held = self.held()?;
        match held.vm.state() {
            State::Running => Ok(()),
            _ => held.vm.resume().map_err(error::of_life),
        }
    }

    /// The host falls asleep: the VM stands still until [`VmNode::host_wakes`].
    pub(crate) fn host_sleeps(&self) -> Result {
        let Ok(held) = self.held() else {
            return Ok(());
        };
        match held.vm.hold(HoldReason::HostSleep) {
            // One that a device keeps from resting stops.
            Ok(()) | Err(LifeError::WrongState(_)) => end_windows(),
            Err(why) => return Err(error::of_life(why)),
        }
        Ok(())
    }

    /// The host is awake.
    pub(crate) fn host_wakes(&self) {
        if let Ok(held) = self.held() {
            // If the host did not fall asleep after all, not all were held.
            let _ = held.vm.release(HoldReason::HostSleep);
        }
    }

    /// What `V3_VM_INFO` and `V3_LIST` say.
    pub(crate) fn info(&self) -> Result<abi::v3_info> {
        Ok(info::of(self.id, &self.held()?.vm))
    }

    /// The stream of a name; the console's without one.
    pub(crate) fn find_stream(&self, name: &[u8]) -> Option<Arc<Stream>> {
        let console = self.console.as_ref().map(|name| name.to_bytes());
        let name = if name.is_empty() { console? } else { name };
        let streams = self.waiters.streams.lock();
        let found = streams
            .iter()
            .find(|stream| stream.name().as_bytes() == name);
        found.cloned()
    }

    /// No more output will come, and no more input will be taken.
    pub(crate) fn is_over(&self) -> bool {
        self.held()
            .map_or(true, |held| matches!(held.vm.state(), State::Stopped(_)))
    }
}

/// An interrupt on every CPU is taken behind the window of the guest that is there: when this returns, nothing of a VM that is held runs on.
fn end_windows() {
    on_each_cpu(&|_| {});
}

/// The name of the console in an image. What else the image holds is looked at when the VM is made.
fn console_of(image: &[u8]) -> Result<Option<CString>, Refusal> {
    let refused = |why| Refusal::Core(CreateError::Image(why));
    let image = Image::parse_again(image).map_err(refused)?;
    let console = image.machine().map_err(refused)?.console;
    let name = console.map(|name| CString::try_from_fmt(fmt!("{name}")));
    Ok(name.transpose()?)
}
