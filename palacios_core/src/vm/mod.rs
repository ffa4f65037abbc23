// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual machine: memory, devices and vCPUs around one image, and what its owner can ask of it.
//!
//! Lock order is that of [`LockClass`]. A VM is made whole or not at all, and gives everything back when it is dropped.

pub(crate) mod life;
mod pc;
mod route;
mod stuck;

use crate::addr::{Gpa, NotRam};
use crate::alloc_ext::TryPush;
use crate::backend::{Backend, BackendVcpu};
use crate::boot::{self, BootError};
use crate::clock::VmClock;
use crate::devices::bus::Bus;
use crate::devices::{ByteStream, Cx};
use crate::features::{self, FeatureSet, GuestFeatures, Judge};
use crate::host::{CpuId, Host, Level, Lock, LockClass, NoMemory, NoSuchCpu, Scope, Thread};
use crate::image::{Image, ImageError, Machine, OnTripleFault};
use crate::interrupts::chipset::Chipset;
use crate::memory::Memory;
use crate::state::CpuState;
use crate::stats::Snapshot;
use crate::vcpu::report::VcpuReport;
use crate::vcpu::{Vcpu, VcpuShared};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU8};
pub use life::{LifeError, State, StopReason, DEAD};

/// The bytes of an image, which the VM keeps: a reset starts it from them again.
pub type ImageBytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// Opens the byte stream of a name.
pub type OpenStream<'a> = dyn FnMut(&str) -> Result<Box<dyn ByteStream>, NoMemory> + 'a;

/// A VM's name: 1 to 63 letters, digits, `-`, `_` or `.`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VmName {
    bytes: [u8; 63],
    len: u8,
}

impl VmName {
    /// Checks a name.
    pub fn new(name: &str) -> Option<Self> {
        let good = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        let mut bytes = [0; 63];
        bytes
            .get_mut(..name.len())?
            .copy_from_slice(name.as_bytes());
        (!name.is_empty() && name.bytes().all(good)).then_some(Self {
            bytes,
            len: name.len() as u8,
        })
    }
    /// The name.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Debug for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the host adds to an image to make a VM.
pub struct Parts<H: Host> {
    /// Its name.
    pub name: VmName,
    /// guest.img.
    pub image: ImageBytes,
    /// Gives the frames behind its RAM.
    pub ram: H::Ram,
    /// Told when the VM's state has changed. Called on a vCPU's thread or the caller's own; must not call back.
    pub observer: Box<dyn Observer>,
}

/// Whoever waits for a VM.
pub trait Observer: Send + Sync {
    /// [`Vm::state`] answers something new, or [`Vm::is_dead`] does. *Thread.*
    fn state_changed(&self);
}

/// Why a VM could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// The host has no memory for it.
    NoMemory,
    /// The image is bad.
    Image(ImageError),
    /// The image is good, but its kernel cannot be started.
    Boot(BootError),
    /// A vCPU is pinned to a CPU that the host does not have, or that is offline.
    NoSuchCpu(CpuId),
}

impl From<NoMemory> for CreateError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => {
                f.write_str("the host has no memory for this VM: free some, or give the guest less")
            }
            Self::Image(error) => error.fmt(f),
            Self::Boot(error) => error.fmt(f),
            Self::NoSuchCpu(cpu) => write!(
                f,
                "a vCPU is pinned to CPU {}, which this host does not have, or which is offline",
                cpu.0
            ),
        }
    }
}

/// Why a vCPU was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveError {
    /// The VM has no vCPU of that number.
    NoSuchVcpu,
    /// The host has no such CPU, or it is not online.
    NoSuchCpu(CpuId),
    /// The VM has stopped, or is about to.
    Stopped,
}

impl From<NoSuchCpu> for MoveError {
    fn from(NoSuchCpu(cpu): NoSuchCpu) -> Self {
        Self::NoSuchCpu(cpu)
    }
}

/// A virtual machine on host `H`, run by backend `B`.
pub struct Vm<H: Host, B: Backend<H>> {
    name: VmName,
    host: H,
    backend: H::Shared<B>,
    image: ImageBytes,
    observer: Box<dyn Observer>,
    memory: Memory<H>,
    clock: VmClock<H>,
    chipset: H::SpinLock<Chipset>,
    bus: Bus<H>,
    vcpus: Vec<VcpuSlot<H, B>>,
    /// Features that its processors do not have, whatever the host's has.
    without: FeatureSet,
    /// [`life::RunState`], which vCPUs look at before each entry.
    run_state: AtomicU8,
    /// vCPU threads that have not ended.
    alive: AtomicU32,
    /// vCPU threads that wait for a reset or the end of a pause.
    waiting: AtomicU32,
    life: H::Mutex<life::Life>,
    /// Held over launch, stop and the like, one at a time.
    control: H::Mutex<()>,
    power: route::PowerSwitch,
    on_triple_fault: OnTripleFault,
    stuck: stuck::Stuck,
    /// The log has it that the VM is dead.
    told_dead: AtomicBool,
}

struct VcpuSlot<H: Host, B: Backend<H>> {
    shared: VcpuShared<H>,
    /// Out of its slot while its thread runs it.
    vcpu: H::Mutex<Option<Box<Vcpu<H, B>>>>,
}

impl<H: Host, B: Backend<H>> Vm<H, B> {
    /// Makes a VM and loads its kernel; launches nothing. `stream` opens the byte stream of a name. *Thread.*
    ///
    /// A kernel's stack is small. So each step is a function of its own that leaves nothing there, and the VM is where it
    /// stays, and not on the stack, before its kernel is loaded.
    ///
    /// # Errors
    /// What is wrong with the image, or what this host does not have. Nothing of the VM is left then.
    #[inline(never)]
    pub fn new(
        host: &H,
        backend: H::Shared<B>,
        parts: Parts<H>,
        stream: &mut OpenStream<'_>,
    ) -> Result<H::Shared<Self>, CreateError> {
        let vm = Self::assemble(host, backend, parts, stream)?;
        vm.load_image()?;
        Ok(vm)
    }

    /// Makes the machine that the image describes.
    #[inline(never)]
    fn assemble(
        host: &H,
        backend: H::Shared<B>,
        parts: Parts<H>,
        stream: &mut OpenStream<'_>,
    ) -> Result<H::Shared<Self>, CreateError> {
        let machine = machine_of(Image::parse((*parts.image).as_ref()))?;
        let format = backend.table_format();
        let memory = Memory::new(host, parts.ram, machine.ram, format)?;
        let without = machine.without;
        let vcpus = VcpuSlot::all(host, &*backend, &memory, &parts.name, &machine)?;
        let bus = pc::build(host, &machine, stream)?;
        Ok(host.share(Self {
            chipset: host.spin_lock(LockClass::Chipset, Chipset::new())?,
            bus,
            life: host.mutex(LockClass::VmState, life::Life::new())?,
            control: host.mutex(LockClass::VmControl, ())?,
            run_state: AtomicU8::new(life::RunState::Stopped as u8),
            alive: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            power: route::PowerSwitch::new(),
            on_triple_fault: machine.on_triple_fault,
            stuck: stuck::Stuck::new(),
            told_dead: AtomicBool::new(false),
            name: parts.name,
            host: host.clone(),
            backend,
            observer: parts.observer,
            memory,
            clock: VmClock::new(host),
            vcpus,
            without,
            image: parts.image,
        })?)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
    /// Its RAM.
    pub fn memory(&self) -> &Memory<H> {
        &self.memory
    }
    /// How many vCPUs it has.
    pub fn vcpus(&self) -> u32 {
        self.vcpus.len() as u32
    }
    /// Which features its processors have, and why not the others: gives what `read` makes of it.
    pub fn judge_features<T>(&self, read: impl FnOnce(&Judge<'_>) -> T) -> T {
        features::judge(&*self.backend, self.without, read)
    }
    /// The thread of a vCPU.
    pub fn thread(&self, vcpu: u32) -> Option<&H::Thread> {
        self.vcpus
            .get(vcpu as usize)
            .map(|slot| slot.shared.thread())
    }
    /// The CPU to which a vCPU is pinned; `None` if it may run on any. *Thread.*
    pub fn pin(&self, vcpu: u32) -> Option<CpuId> {
        self.thread(vcpu)?.pin()
    }
    /// Moves a vCPU, running or not, to `cpu`, where it then stays; with `None` it may run on any. The guest sees nothing
    /// of it. *Thread.*
    ///
    /// # Errors
    /// If there is no such vCPU or no such CPU, or if the VM has stopped.
    pub fn move_vcpu(&self, vcpu: u32, cpu: Option<CpuId>) -> Result<(), MoveError> {
        let thread = self.thread(vcpu).ok_or(MoveError::NoSuchVcpu)?;
        match self.state() {
            State::Stopping | State::Stopped(_) => Err(MoveError::Stopped),
            State::Created | State::Running | State::Paused => Ok(thread.move_to(cpu)?),
        }
    }
    /// A vCPU's counters now, of which those of its time are all of its time. *Thread.*
    pub fn counters(&self, vcpu: u32) -> Snapshot {
        self.vcpus
            .get(vcpu as usize)
            .map_or(Snapshot::ZERO, |slot| slot.shared.counters(&self.host))
    }
    /// What a vCPU of a VM looks like inside that has stopped or was not launched yet; else `None`, and if there is no such
    /// vCPU. *Thread.*
    pub fn report(&self, vcpu: u32) -> Option<VcpuReport> {
        if !matches!(self.state(), State::Created | State::Stopped(_)) {
            return None;
        }
        let slot = self.vcpus.get(vcpu as usize)?;
        let vcpu = slot.vcpu.lock();
        vcpu.as_ref().map(|vcpu| vcpu.report(&self.memory))
    }
    /// The devices' saved state, with the interrupt controllers' first.
    pub fn bus(&self) -> &Bus<H> {
        &self.bus
    }

    /// New input waits in a stream. *Thread.*
    pub fn input_ready(&self) {
        let nearer = self.bus.input_ready(&self.cx());
        self.tell_of_deadline(None, nearer);
    }

    /// Takes the frames behind a range away from the guest and gives them to their provider; each comes back when it is
    /// next touched. Returns how many went. *Thread.*
    pub fn revoke(&self, from: Gpa, bytes: u64) -> u64 {
        self.memory.revoke(from, bytes, || self.wait_for_flush())
    }

    /// Returns when no vCPU is in the guest with translations older than the memory's generation.
    fn wait_for_flush(&self) {
        let generation = self.memory.generation();
        for slot in &self.vcpus {
            slot.shared.leave_guest(&self.host, generation);
        }
    }

    pub(crate) fn host(&self) -> &H {
        &self.host
    }
    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }
    pub(crate) fn chipset(&self) -> &H::SpinLock<Chipset> {
        &self.chipset
    }
    pub(crate) fn clock(&self) -> &VmClock<H> {
        &self.clock
    }
    pub(crate) fn shared(&self, vcpu: u32) -> Option<&VcpuShared<H>> {
        self.vcpus.get(vcpu as usize).map(|slot| &slot.shared)
    }
    pub(crate) fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        self.host.log(level, Scope::Vm(self.name()), line);
    }

    /// The machine as devices see it.
    pub(crate) fn cx(&self) -> Cx<'_> {
        Cx {
            clock: &self.clock,
            irqs: self,
            memory: &self.memory,
            power: &self.power,
            translations: self,
        }
    }

    /// Loads the kernel, and notes the first vCPU's state at its entry.
    #[inline(never)]
    fn load_image(&self) -> Result<(), CreateError> {
        let machine = machine_of(Image::parse_again((*self.image).as_ref()))?;
        let boot_state = boot::load(&machine, &self.memory).map_err(|error| match error {
            // Not the machine's memory is too small, but the host's.
            BootError::NotRam(NotRam(at)) if self.memory.is_ram(at) => CreateError::NoMemory,
            error => CreateError::Boot(error),
        })?;
        self.life.lock().boot_state = boot_state;
        Ok(())
    }

    /// What the first vCPU starts with.
    pub(crate) fn boot_state(&self) -> CpuState {
        self.life.lock().boot_state
    }
}

/// The machine that an image describes.
#[inline(never)]
fn machine_of(image: Result<Image<'_>, ImageError>) -> Result<Machine<'_>, CreateError> {
    image
        .and_then(|image| image.machine())
        .map_err(CreateError::Image)
}

impl<H: Host, B: Backend<H>> VcpuSlot<H, B> {
    /// All vCPUs of a machine.
    #[inline(never)]
    fn all(
        host: &H,
        backend: &B,
        memory: &Memory<H>,
        name: &VmName,
        machine: &Machine<'_>,
    ) -> Result<Vec<Self>, CreateError> {
        let features = features::judge(backend, machine.without, |judge| judge.features());
        let mut vcpus = Vec::new();
        for index in 0..machine.vcpus {
            let pin = machine.pin(index).map(CpuId);
            if let Some(cpu) = pin.filter(|cpu| cpu.0 >= host.cpu_limit()) {
                return Err(CreateError::NoSuchCpu(cpu));
            }
            let whose = (name, index, machine.vcpus);
            vcpus.try_push(Self::new(host, (backend, &features), memory, whose, pin)?)?;
        }
        Ok(vcpus)
    }

    #[inline(never)]
    fn new(
        host: &H,
        (backend, features): (&B, &GuestFeatures),
        memory: &Memory<H>,
        (name, index, count): (&VmName, u32, u32),
        pin: Option<CpuId>,
    ) -> Result<Self, CreateError> {
        let thread = host.thread(format_args!("v3-{}/{index}", name.as_str()), pin)?;
        if pin.is_some() {
            let moved = thread.move_to(pin);
            moved.map_err(|NoSuchCpu(cpu)| CreateError::NoSuchCpu(cpu))?;
        }
        let mut arch = backend.vcpu(host, features)?;
        arch.set_table_root(memory.root());
        let vcpu = crate::alloc_ext::try_box(Vcpu::new(arch, backend, features, (index, count)))?;
        Ok(Self {
            shared: VcpuShared::new(index, thread),
            vcpu: host.mutex(LockClass::VcpuSlot, Some(vcpu))?,
        })
    }
}
