// SPDX-License-Identifier: GPL-2.0
//! `/dev/v3-vmN`: one VM, and the files through which it is run.
//!
//! The node outlives its VM: a file that is open when the VM is freed answers `ENODEV`. Whoever uses the VM for the length of
//! a call counts a reference to [`Held`]; a call that waits does so without one.
//!
//! What files do is in [`file`].
//!
//! Lock order: [`Awake`], `VmNode::vm`, the core's locks, `Watch::streams`.

mod file;

use crate::counters::VMS;
use crate::ffi::THIS_MODULE;
use crate::host::Linux;
use crate::machine::{Hardware, Machine};
use crate::memory::Ram;
use crate::misc::{Device, Operations};
use crate::queue::{Queue, Until};
use crate::sleep::Awake;
use crate::stream::{DeviceEnd, Stream};
use crate::user::{self, must_be_zero, Text};
use crate::{error, info, report};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, Ordering};
use file::VmFile;
use kernel::{
    bindings, new_mutex,
    prelude::*,
    static_lock_class,
    str::CString,
    sync::{Arc, Mutex},
};
use palacios_core::addr::{Gpa, PAGE_SIZE};
use palacios_core::alloc_ext::try_box;
use palacios_core::devices::ByteStream;
use palacios_core::host::{CpuId, Host, NoMemory};
use palacios_core::image::Image;
use palacios_core::vm::{
    CreateError, ImageBytes, LifeError, Observer, Parts, State, StopReason, VmName,
};
use v3_abi as abi;

/// What learns of a VM's changes.
#[pin_data]
struct Watch {
    /// The VM's state changed, or the VM is gone.
    #[pin]
    changed: Queue,
    /// All that the VM held is back.
    gone: AtomicBool,
    /// Its streams. Only added to.
    #[pin]
    streams: Mutex<KVec<Arc<Stream>>>,
}

impl Watch {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                changed <- Queue::new(c"v3vee_vm_changed", static_lock_class!()),
                gone: AtomicBool::new(false),
                streams <- new_mutex!(KVec::new(), "v3vee_vm_streams"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Opens the stream of a name, for a device.
    fn open(&self, name: &str) -> Result<Box<dyn ByteStream>, NoMemory> {
        let stream = Stream::new(name).map_err(|_| NoMemory)?;
        let mut streams = self.streams.lock();
        streams
            .push(stream.clone(), GFP_KERNEL_ACCOUNT)
            .map_err(|_| NoMemory)?;
        Ok(try_box(DeviceEnd(stream))?)
    }

    fn wake(&self) {
        self.changed.wake();
        for stream in self.streams.lock().iter() {
            stream.queue.wake();
        }
    }
}

/// The core's hold on a [`Watch`].
struct Teller(Arc<Watch>);

impl Observer for Teller {
    fn state_changed(&self) {
        self.0.wake();
    }
}

/// A VM, as long as it is not freed. Its fields are dropped in this order.
pub(crate) struct Held {
    pub(crate) machine: Machine,
    /// It was launched, or stopped before it ever was; neither comes twice.
    spent: AtomicBool,
    _gone: Gone,
    _module: ModuleReference,
}

/// Says that a VM is gone.
struct Gone(Arc<Watch>);

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

impl Held {
    /// The state. A VM that was stopped before it was launched counts as stopped.
    pub(crate) fn state(&self) -> State {
        match self.machine.state() {
            State::Created if self.spent.load(Ordering::Relaxed) => {
                State::Stopped(StopReason::Requested)
            }
            state => state,
        }
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
    watch: Arc<Watch>,
    awake: Arc<Awake>,
    /// It stands still because the host sleeps, and goes on when it wakes.
    sleeps: AtomicBool,
    /// The name of the stream that the image makes the console.
    console: Option<CString>,
    #[pin]
    vm: Mutex<Option<Arc<Held>>>,
    #[pin]
    device: Device,
}

static OPERATIONS: Operations = Operations::with_poll::<VmFile>();

/// Why there is no new VM.
pub(crate) enum NoVm {
    Host(Error),
    Core(CreateError),
}

impl From<NoMemory> for NoVm {
    fn from(_: NoMemory) -> Self {
        Self::Host(ENOMEM)
    }
}

impl From<Error> for NoVm {
    fn from(error: Error) -> Self {
        Self::Host(error)
    }
}

impl VmNode {
    /// Makes a VM and its node.
    pub(crate) fn new(
        hardware: &Hardware,
        awake: Arc<Awake>,
        id: u32,
        name: VmName,
        image: ImageCopy,
    ) -> Result<Arc<Self>, NoVm> {
        let watch = Watch::new()?;
        VMS.add(1);
        let (gone, module) = (Gone(watch.clone()), ModuleReference::new());
        let console = console_of(image.as_ref())?;
        let image: ImageBytes = try_box(image)?;
        let observer: Box<dyn Observer> = try_box(Teller(watch.clone()))?;
        let parts = Parts {
            name,
            image,
            ram: Ram::new()?,
            observer,
        };
        let machine = hardware
            .machine(parts, &mut |name| watch.open(name))
            .map_err(NoVm::Core)?;
        let held = Held {
            machine,
            spent: AtomicBool::new(false),
            _gone: gone,
            _module: module,
        };
        let held = Arc::new(held, GFP_KERNEL_ACCOUNT).map_err(Error::from)?;
        let file_name = CString::try_from_fmt(fmt!("v3-vm{id}"))?;
        let node = Arc::pin_init(
            pin_init!(Self {
                id,
                watch,
                awake,
                sleeps: AtomicBool::new(false),
                console,
                vm <- new_mutex!(Some(held), "v3vee_vm_node"),
                device <- Device::new(file_name, &OPERATIONS),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        node.device.register()?;
        Ok(node)
    }

    /// Ends a VM that does not run. Returns when all it held is back, unless the caller is killed before.
    pub(crate) fn free(&self) -> Result {
        let held = {
            let mut vm = self.vm.lock();
            match vm.as_ref().ok_or(ENOENT)?.state() {
                State::Created | State::Stopped(_) => vm.take(),
                State::Running | State::Paused | State::Stopping => return Err(EBUSY),
            }
        };
        self.device.unregister();
        if let Some(held) = held {
            held.machine.join();
        }
        self.watch.wake();
        self.wait_until(
            || self.watch.gone.load(Ordering::Acquire).then_some(Ok(())),
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
        let changed = &self.watch.changed;
        loop {
            let seen = changed.seen();
            if let Some(answer) = ready() {
                return answer;
            }
            if deadline_ns.is_some_and(|deadline_ns| now_ns() >= deadline_ns) {
                return Err(ETIMEDOUT);
            }
            changed.wait(seen, Until::Killed, deadline_ns)?;
        }
    }

    /// Sleeps, killable, until the VM is stopped.
    fn wait_stopped(&self, deadline_ns: Option<u64>) -> Result<StopReason> {
        let stopped = || match self.held().map(|held| held.state()) {
            Ok(State::Stopped(reason)) => Some(Ok(reason)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        };
        self.wait_until(stopped, deadline_ns)
    }

    fn launch(&self) -> Result {
        // Locked, so that it is not freed meanwhile.
        let vm = self.vm.lock();
        let held = vm.as_ref().ok_or(ENODEV)?;
        if held.spent.swap(true, Ordering::Relaxed) {
            return Err(error::wrong_state());
        }
        held.machine.launch().map_err(error::of_life)
    }

    fn stop(&self) -> Result {
        let held = {
            let vm = self.vm.lock();
            let held = vm.as_ref().ok_or(ENODEV)?;
            if held.machine.state() == State::Created {
                held.spent.store(true, Ordering::Relaxed);
                self.watch.wake();
                return Ok(());
            }
            // What is not running any more needs no stopping.
            let _ = held.machine.stop();
            held.clone()
        };
        // Who waits for its end may free it at once: it is stopped nevertheless.
        let stopped = || matches!(held.state(), State::Stopped(_)).then_some(Ok(()));
        self.wait_until(stopped, None)?;
        held.machine.join();
        Ok(())
    }

    fn pause(&self) -> Result {
        let held = self.held()?;
        let paused = match held.machine.state() {
            State::Paused => Ok(()),
            _ => stand_still(&held.machine),
        };
        // If it was for the host's sleep that it stands still, it is for longer now.
        self.sleeps.store(false, Ordering::SeqCst);
        match held.machine.state() {
            State::Paused => Ok(()),
            _ => paused,
        }
    }

    fn resume(&self) -> Result {
        let held = self.held()?;
        match held.machine.state() {
            State::Running => Ok(()),
            _ => held.machine.resume().map_err(error::of_life),
        }
    }

    /// The host falls asleep: a VM that runs stands still until [`VmNode::host_wakes`].
    pub(crate) fn host_sleeps(&self) -> Result {
        let running = |held: &Held| held.machine.state() == State::Running;
        let Some(held) = self.held().ok().filter(|held| running(held)) else {
            return Ok(());
        };
        self.sleeps.store(true, Ordering::SeqCst);
        stand_still(&held.machine).or_else(|why| {
            self.sleeps.store(false, Ordering::SeqCst);
            // It may have stopped meanwhile, or been paused by somebody else.
            if running(&held) {
                Err(why)
            } else {
                Ok(())
            }
        })
    }

    /// The host is awake.
    pub(crate) fn host_wakes(&self) {
        if self.sleeps.swap(false, Ordering::SeqCst) {
            // One that was stopped or freed meanwhile does not mind.
            let _ = self.resume();
        }
    }

    fn wait(&self, arg: usize) -> Result {
        let mut wait: abi::v3_wait = user::read(arg)?;
        must_be_zero(wait.pad)?;
        let timeout_ns = u64::try_from(wait.timeout_ns).ok();
        let deadline_ns = timeout_ns.map(|ns| now_ns().saturating_add(ns));
        let reason = self.wait_stopped(deadline_ns)?;
        wait.state = abi::V3_STATE_STOPPED;
        (wait.reason, wait.exit_status) = info::reason(reason);
        user::write(arg, &wait)
    }

    /// What `V3_VM_INFO` and `V3_LIST` say.
    pub(crate) fn info(&self) -> Result<abi::v3_info> {
        Ok(info::of(self.id, &*self.held()?))
    }

    fn stats(&self, arg: usize) -> Result {
        let mut stats: abi::v3_stats = user::read(arg)?;
        must_be_zero(stats.pad)?;
        let all = info::stats(&*self.held()?, &self.watch.streams.lock())?;
        let fit = all.get(..stats.count as usize).unwrap_or(&all);
        user::write_all(stats.entries, fit)?;
        stats.count = all.len() as u32;
        user::write(arg, &stats)
    }

    fn relocate(&self, arg: usize) -> Result {
        let range: abi::v3_relocate = user::read(arg)?;
        if range.len == 0 || (range.gpa | range.len) % PAGE_SIZE != 0 {
            return Err(EINVAL);
        }
        let held = self.held()?;
        if let State::Stopped(_) = held.state() {
            return Err(error::wrong_state());
        }
        let ram = held.machine.memory().layout();
        if !ram.contains_all(Gpa(range.gpa), range.len) {
            return Err(ERANGE);
        }
        held.machine.revoke(Gpa(range.gpa), range.len);
        Ok(())
    }

    /// Moves a vCPU.
    fn move_vcpu(&self, arg: usize) -> Result {
        let to: abi::v3_vcpu = user::read(arg)?;
        let held = self.held()?;
        // A VM that was stopped before it was launched is no longer `Created`, which the core does not know.
        if let State::Stopped(_) = held.state() {
            return Err(error::wrong_state());
        }
        let cpu = (to.cpu != abi::V3_CPU_ANY).then_some(CpuId(to.cpu));
        let moved = held.machine.move_vcpu(to.vcpu, cpu);
        moved.map_err(error::of_move)
    }

    /// Says where a vCPU may run.
    fn vcpu(&self, arg: usize) -> Result {
        let mut vcpu: abi::v3_vcpu = user::read(arg)?;
        let held = self.held()?;
        if vcpu.vcpu >= held.machine.vcpus() {
            return Err(ENOENT);
        }
        let pin = held.machine.pin(vcpu.vcpu);
        vcpu.cpu = pin.map_or(abi::V3_CPU_ANY, |cpu| cpu.0);
        user::write(arg, &vcpu)
    }

    fn vcpu_report(&self, arg: usize) -> Result {
        let wanted: abi::v3_vcpu_report = user::read(arg)?;
        must_be_zero(wanted.pad)?;
        let held = self.held()?;
        if wanted.vcpu >= held.machine.vcpus() {
            return Err(ENOENT);
        }
        let report = held.machine.report(wanted.vcpu);
        let report = report.ok_or_else(error::wrong_state)?;
        user::write(arg, &report::of(wanted.vcpu, &report))
    }

    /// Lists the names of the streams.
    fn streams(&self, arg: usize) -> Result {
        let mut streams: abi::v3_streams = user::read(arg)?;
        must_be_zero(streams.pad)?;
        self.held()?;
        // Copied first: writing to the caller's memory may sleep for long.
        let mut all = KVec::new();
        for stream in self.watch.streams.lock().iter() {
            let name = Text::of(format_args!("{}", stream.name())).field;
            all.push(abi::v3_stream { name }, GFP_KERNEL)?;
        }
        let fit = all.get(..streams.count as usize).unwrap_or(&all);
        user::write_all(streams.entries, fit)?;
        streams.count = all.len() as u32;
        user::write(arg, &streams)
    }

    fn features(&self, arg: usize) -> Result {
        let all = self.held()?.machine.judge_features(info::features)?;
        info::write_features(arg, &all)
    }

    /// The stream of a name; the console's without one.
    fn find_stream(&self, name: &[u8]) -> Option<Arc<Stream>> {
        let console = self.console.as_ref().map(|name| name.to_bytes());
        let name = if name.is_empty() { console? } else { name };
        let streams = self.watch.streams.lock();
        let found = streams
            .iter()
            .find(|stream| stream.name().as_bytes() == name);
        found.cloned()
    }

    /// No more output will come, and no more input will be taken.
    fn is_over(&self) -> bool {
        self.held()
            .map_or(true, |held| matches!(held.state(), State::Stopped(_)))
    }
}

/// Pauses a VM that runs. No guest code runs when this returns.
fn stand_still(machine: &Machine) -> Result {
    /// A guest that resets itself over and over can be paused in between only.
    const TRIES: u32 = 1000;
    for _ in 0..TRIES {
        match machine.pause() {
            Err(LifeError::WrongState(State::Running)) => {
                // SAFETY: An ordinary sleep, a tick long.
                unsafe { bindings::schedule_timeout_idle(1) };
            }
            result => {
                result.map_err(error::of_life)?;
                // An interrupt on every CPU ends what guest is there, and is taken after the guest's window: none runs on.
                Linux.on_each_cpu(&|_| {});
                return Ok(());
            }
        }
    }
    Err(EBUSY)
}

fn now_ns() -> u64 {
    // SAFETY: Reads a clock.
    unsafe { bindings::ktime_get() as u64 }
}

/// The name of the console in an image. What else the image holds is looked at when the VM is made.
fn console_of(image: &[u8]) -> Result<Option<CString>, NoVm> {
    let refused = |why| NoVm::Core(CreateError::Image(why));
    let image = Image::parse_again(image).map_err(refused)?;
    let console = image.machine().map_err(refused)?.console;
    let name = console.map(|name| CString::try_from_fmt(fmt!("{name}")));
    Ok(name.transpose()?)
}
