// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual machine: memory, devices and vCPUs around one image, and what its owner can ask of it.
//!
//! ```text
//!  Vm<H>               image, vCPUs and who steps them                          mod.rs, drive.rs
//!                      launch, hold, reset, stop                                life.rs, hold.rs
//!                      a look inside                                            look.rs
//!   └─ VmShared<H>     what the vCPUs share: the buses with the devices, state  shared.rs, run_word.rs, run_state.rs, io.rs
//!       └─ Board<H>    what devices are wired to: memory, clock, chipset,        board.rs, links.rs, route.rs
//!           └─ VcpuShared<H>   … and of each vCPU what the others may touch     vcpu/shared.rs
//! ```
//!
//! A vCPU knows `VmShared` and its backend, and not the [`Vm`]: so nothing below the `Vm` depends on what
//! the VM is made of above it. And a `Vm` does not know which backend runs its vCPUs, once it is made.
//!
//! Lock order is that of [`LockClass`]. A VM is made whole or not at all, and gives everything back when it is dropped.
#![forbid(unsafe_code)]

mod attach;
pub(crate) mod board;
mod drive;
mod error;
mod hold;
mod io;
mod life;
mod links;
mod look;
mod parts;
mod pc_devices;
mod power;
mod route;
mod run_state;
pub(crate) mod run_word;
mod saved;
mod saver;
mod seat;
pub(crate) mod shared;
pub(crate) mod states;
pub(crate) mod stop_reason;
mod stuck;

use crate::addr::{Gpa, NotRam};
use crate::alloc_ext::{try_box, TryPush};
use crate::backend::{Backend, BackendVcpu, HostProcessor};
use crate::boot::{self, BootError};
use crate::clock::VmClock;
use crate::devices::bus::{Bus, DetachError, NewSize, ResizeError};
use crate::devices::layout::AttachError;
use crate::devices::{self, Resources, WindowDevice};
use crate::features::{self, FeatureSet, GuestFeatures, Judge};
use crate::host::{CpuId, Host, Lock, LockClass, NoMemory, NoSuchCpu, Thread};
use crate::image::{Image, ImageError, Machine};
use crate::interrupts::chipset::Chipset;
use crate::memory::Memory;
use crate::names::DeviceId;
use crate::pump::Pump;
use crate::stats::Snapshot;
use crate::vcpu::report::VcpuReport;
use crate::vcpu::{AnyVcpu, OnBackend, ProcessorOf, Vcpu, VcpuShared};
use alloc::boxed::Box;
use alloc::vec::Vec;
use board::{Board, WindowBoard};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use io::OwnIo;
use links::ControllerPorts;
use power::PowerSwitch;
use run_word::{RunState, RunWord};
use seat::Seat;
use shared::{Life, VmShared};
use stuck::Stuck;

pub use crate::names::VmName;
pub use attach::{Attachment, Disk};
pub use error::{CreateError, MoveError};
pub use parts::{ImageBytes, Observer, OpenStream, Parts};
pub use run_state::DEAD;
pub use run_word::HoldReason;
pub use saved::{LoadError, LoadFault, SaveError, SavedMachine, TscRate};
pub use saver::Saver;
pub use states::{LifeError, State, Step};
pub use stop_reason::StopReason;

/// A virtual machine on host `H`.
pub struct Vm<H: Host> {
    /// What its vCPUs see of it.
    shared: VmShared<H>,
    processor: Box<dyn HostProcessor>,
    image: ImageBytes,
    seats: Vec<H::Mutex<Seat<H>>>,
    /// Features that its processors do not have, whatever the host's has.
    without: FeatureSet,
    /// vCPUs that have not ended.
    alive: AtomicU32,
    /// vCPUs that wait for a reset.
    waiting: AtomicU32,
    /// Its vCPUs are stepped by threads.
    has_threads: AtomicBool,
    /// The next launch goes on from what was loaded.
    loaded: AtomicBool,
    /// What the image had put into RAM is gone, for what is loaded.
    ram_is_empty: AtomicBool,
    /// Held over launch, hold and the like, one at a time.
    control: H::Mutex<()>,
}

impl<H: Host> Vm<H> {
    /// Makes a VM and loads its kernel; launches nothing. `stream` opens the byte stream of a name. *Thread.*
    ///
    /// A kernel's stack is small. So each step is a function of its own, whose frame is gone when it returns, and the VM is moved
    /// to the heap before its kernel is loaded.
    ///
    /// # Errors
    /// What is wrong with the image, or what this host does not have. Nothing of the VM is left then.
    #[inline(never)]
    pub fn new<B: Backend<H>>(
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
    fn assemble<B: Backend<H>>(
        host: &H,
        backend: H::Shared<B>,
        parts: Parts<H>,
        stream: &mut OpenStream<'_>,
    ) -> Result<H::Shared<Self>, CreateError> {
        let machine = machine_of(Image::parse((*parts.image).as_ref()))?;
        let format = backend.table_format();
        let memory = Memory::new(host, parts.ram, machine.ram, format)?;
        let without = machine.without;
        let vcpus = make_vcpus(host, &backend, &memory, &parts.name, &machine)?;
        let board = make_board(host, parts.name, memory, vcpus.0)?;
        let io = make_io(host, &board, &machine, stream)?;
        // Nothing of it is made elsewhere and moved here: that would take room on the stack twice.
        Ok(host.share(Self {
            shared: VmShared {
                io,
                life: make_life(host)?,
                run: RunWord::new(),
                on_triple_fault: machine.on_triple_fault,
                stuck: Stuck::new(),
                told_dead: AtomicBool::new(false),
                observer: parts.observer,
            },
            control: host.mutex(LockClass::VmControl, ())?,
            alive: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            has_threads: AtomicBool::new(false),
            loaded: AtomicBool::new(false),
            ram_is_empty: AtomicBool::new(false),
            processor: try_box(ProcessorOf(backend))?,
            seats: vcpus.1,
            without,
            image: parts.image,
        })?)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.shared.name()
    }
    /// Its RAM.
    pub fn memory(&self) -> &Memory<H> {
        self.shared.memory()
    }
    /// How many vCPUs it has.
    pub fn vcpus(&self) -> u32 {
        self.shared.vcpu_count()
    }
    /// Which features its processors have, and why not the others. Returns what `read` returns.
    pub fn judge_features<T>(&self, read: impl FnOnce(&Judge<'_>) -> T) -> T {
        features::judge(&*self.processor, self.without, read)
    }
    /// The thread of a vCPU.
    pub fn thread(&self, vcpu: u32) -> Option<&H::Thread> {
        self.shared.thread(vcpu)
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
    /// A vCPU's counters now. Those of its time add up to all time since launch. *Thread.*
    pub fn counters(&self, vcpu: u32) -> Snapshot {
        let counters = |vcpu: &VcpuShared<H>| vcpu.counters(self.shared.host());
        self.shared.vcpu(vcpu).map_or(Snapshot::ZERO, counters)
    }
    /// The registers and last exits of a vCPU, whatever the VM is at. `None`: there is no such vCPU. *Thread.*
    pub fn report(&self, vcpu: u32) -> Option<VcpuReport> {
        self.ask(vcpu, |vcpu| vcpu.report(self.memory()))
    }
    /// How long its image is, which is kept for resets.
    pub fn image_bytes(&self) -> u64 {
        (*self.image).as_ref().len() as u64
    }
    /// Attaches a device, whether the VM runs or not. Returns what it is known by. *Thread.*
    ///
    /// # Errors
    /// Why not; the machine is as it was then.
    pub fn attach(&self, wanted: Attachment<'_>) -> Result<DeviceId, AttachError> {
        let kind = devices::kind_by_name(wanted.kind).ok_or(AttachError::NoSuchKind)?;
        if wanted.ends.is_some() && !kind.has_stream {
            return Err(AttachError::NoStream);
        }
        match (kind.has_store, wanted.disk.is_some()) {
            (true, false) => return Err(AttachError::NeedsStore),
            (false, true) => return Err(AttachError::NoStore),
            _ => {}
        }
        let _control = self.control.lock();
        let place = attach::find_place(self.bus(), kind, wanted.port)?;
        let slot = attach::find_slot(self.bus(), kind, wanted.slot)?;
        let name = wanted.name;
        let name = name.unwrap_or_else(|| attach::find_name(self.bus(), kind, place));
        let (stream, pump) = match wanted.ends {
            None => (None, None),
            Some(ends) => {
                let (stream, pump) = Pump::new(self.shared.host(), ends)?;
                (Some(stream), Some(pump))
            }
        };
        let io = self.shared.io();
        let device = (kind.make)(Resources {
            links: &io.links(),
            ram: self.memory().layout(),
            place,
            slot,
            stream,
            disk: wanted.disk.map(|disk| disk.parts(&name, self.vcpus())),
        })?;
        io.attach(name, device, pump)?;
        // The guest of a machine that was loaded runs already, as far as it knows.
        let runs = matches!(self.state(), State::Running | State::Paused)
            || self.loaded.load(Ordering::SeqCst);
        if let Some(slot) = slot.filter(|_| runs) {
            self.bus().tell_slots(|slots| slots.came(slot.slot()));
        }
        Ok(name)
    }
    /// Takes a device away, whether the VM runs or not. *Thread.*
    ///
    /// # Errors
    /// If there is none of that name, or if it belongs to every PC.
    pub fn detach(&self, name: &DeviceId) -> Result<(), DetachError> {
        let _control = self.control.lock();
        self.shared.io().detach(name)
    }
    /// Asks the guest to let go of a PCI device, and does not wait for that: the device is taken away when the guest ejects it. *Thread.*
    ///
    /// # Errors
    /// If there is none of that name, if it belongs to every PC, or if there is no guest to be asked for it: [`Vm::detach`] it then.
    pub fn ask_to_eject(&self, name: &DeviceId) -> Result<(), DetachError> {
        let _control = self.control.lock();
        let runs = matches!(self.state(), State::Running | State::Paused);
        self.shared.io().ask_to_eject(name, runs)
    }
    /// Gives a disk another size, whether the VM runs or not. Returns how many bytes it has then. *Thread.*
    ///
    /// # Errors
    /// Why not; the disk is as it was then.
    pub fn resize(&self, name: &DeviceId, new: NewSize) -> Result<u64, ResizeError> {
        let _control = self.control.lock();
        self.bus().resize(name, new)
    }
    /// Its devices, on the buses. The interrupt controllers are not among them.
    pub fn bus(&self) -> &Bus<H> {
        self.shared.bus()
    }

    /// New input waits in a stream. *Thread.*
    pub fn input_ready(&self) {
        // While it stands still nothing of it changes. Its devices look when it goes on.
        if self.shared.run_state() != RunState::Paused {
            self.shared.io().input_ready();
        }
    }

    /// Takes the frames behind a range away from the guest and gives them to their provider; each comes back when it is
    /// next touched. Returns how many went. *Thread.*
    pub fn revoke(&self, from: Gpa, bytes: u64) -> u64 {
        self.with_memory(|memory, flush| memory.revoke(from, bytes, flush))
    }
    /// Does something to its memory that makes vCPUs' translations stale: `act` is given the memory, and what waits until no vCPU uses
    /// a translation from before: `vm.with_memory(|memory, flush| memory.discard(from, bytes, flush))`. *Thread.*
    pub fn with_memory<R>(&self, act: impl FnOnce(&Memory<H>, &dyn Fn()) -> R) -> R {
        self.shared.board().with_memory(act)
    }

    /// Loads the kernel, and notes the first vCPU's state at its entry.
    #[inline(never)]
    fn load_image(&self) -> Result<(), CreateError> {
        let machine = machine_of(Image::parse_again((*self.image).as_ref()))?;
        let boot_state = boot::load(&machine, self.memory()).map_err(|error| match error {
            // Not the machine's memory is too small, but the host's.
            BootError::NotRam(NotRam(at)) if self.memory().is_memory(at) => CreateError::NoMemory,
            BootError::NoMemory => CreateError::NoMemory,
            error => CreateError::Boot(error),
        })?;
        self.shared.life.lock().boot_state = boot_state;
        Ok(())
    }
}

/// The machine that an image describes.
#[inline(never)]
fn machine_of(image: Result<Image<'_>, ImageError>) -> Result<Machine<'_>, CreateError> {
    image
        .and_then(|image| image.machine())
        .map_err(CreateError::Image)
}

#[inline(never)]
fn make_board<H: Host>(
    host: &H,
    name: VmName,
    memory: Memory<H>,
    vcpus: Vec<VcpuShared<H>>,
) -> Result<H::Shared<Board<H>>, NoMemory> {
    host.share(Board {
        name,
        host: host.clone(),
        memory,
        clock: VmClock::new(host),
        chipset: host.spin_lock(LockClass::Chipset, Chipset::new())?,
        vcpus,
        power: PowerSwitch::new(),
        guest_logs: AtomicBool::new(false),
    })
}

/// All devices of a machine, on their buses.
#[inline(never)]
fn make_io<H: Host>(
    host: &H,
    board: &H::Shared<Board<H>>,
    machine: &Machine<'_>,
    stream: &mut OpenStream<'_>,
) -> Result<OwnIo<H>, AttachError> {
    let mut in_window: Vec<Box<dyn WindowDevice>> = Vec::new();
    in_window.try_push(try_box(ControllerPorts::<H>(WindowBoard::new(
        board.clone(),
    )))?)?;
    let bus = host.share(Bus::new(host, in_window)?)?;
    let io = OwnIo::new(bus, board.clone());
    pc_devices::attach(&io, &io.links(), machine, stream)?;
    Ok(io)
}

#[inline(never)]
fn make_life<H: Host>(host: &H) -> Result<H::Mutex<Life>, NoMemory> {
    host.mutex(LockClass::VmState, Life::new())
}

/// vCPUs in two parts: what everybody may touch, and the rest.
type VcpuParts<H> = (Vec<VcpuShared<H>>, Vec<<H as Host>::Mutex<Seat<H>>>);

/// All vCPUs of a machine.
#[inline(never)]
fn make_vcpus<H: Host, B: Backend<H>>(
    host: &H,
    backend: &H::Shared<B>,
    memory: &Memory<H>,
    name: &VmName,
    machine: &Machine<'_>,
) -> Result<VcpuParts<H>, CreateError> {
    let features = features::judge(&**backend, machine.without, |judge| judge.features());
    let (mut all_shared, mut seats) = (Vec::new(), Vec::new());
    for index in 0..machine.vcpus {
        let pin = machine.pin(index).map(CpuId);
        if let Some(cpu) = pin.filter(|cpu| cpu.0 >= host.cpu_limit()) {
            return Err(CreateError::NoSuchCpu(cpu));
        }
        all_shared.try_push(make_shared(host, name, index, pin)?)?;
        let vcpu = make_vcpu(host, (backend, &features), memory, (index, machine.vcpus))?;
        let seat = Seat {
            vcpu: Some(vcpu),
            lives: false,
        };
        seats.try_push(host.mutex(LockClass::VcpuSlot, seat)?)?;
    }
    Ok((all_shared, seats))
}

#[inline(never)]
fn make_shared<H: Host>(
    host: &H,
    name: &VmName,
    index: u32,
    pin: Option<CpuId>,
) -> Result<VcpuShared<H>, CreateError> {
    let thread = host.thread(format_args!("v3-{}/{index}", name.as_str()), pin)?;
    if pin.is_some() {
        let moved = thread.move_to(pin);
        moved.map_err(|NoSuchCpu(cpu)| CreateError::NoSuchCpu(cpu))?;
    }
    Ok(VcpuShared::new(index, thread))
}

#[inline(never)]
fn make_vcpu<H: Host, B: Backend<H>>(
    host: &H,
    (backend, features): (&H::Shared<B>, &GuestFeatures),
    memory: &Memory<H>,
    whose: (u32, u32),
) -> Result<Box<dyn AnyVcpu<H>>, NoMemory> {
    let mut arch = backend.vcpu(host, features)?;
    arch.set_table_root(memory.root());
    let vcpu = Vcpu::new(arch, &**backend, features, whose);
    let backend = backend.clone();
    Ok(try_box(OnBackend { vcpu, backend })?)
}
