// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host contract: what an operating system gives the VMM, and nothing else.
//!
//! Each method says where it may be called. *Thread* is an ordinary thread with interrupts on, which may sleep; *atomic*
//! is with interrupts off or a spin lock held; *any* includes hard-interrupt context. What has a default may be left for
//! later. [`crate::conformance`] tests these promises; a new host runs it first. `Documentation/embedding.md` walks through
//! a small host.

use crate::addr::Hpa;
pub use crate::alloc_ext::NoMemory;
pub use crate::interfaces::Wake;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// A logical CPU of the host, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuId(pub u32);

/// An operating system that embeds the VMM. A clone is another handle to the same host.
pub trait Host: Clone + Send + Sync + 'static {
    /// A thread of a vCPU or of a worker.
    type Thread: Thread;
    /// Gives the frames behind guest RAM.
    type Ram: GuestRam;
    /// A reference-counted pointer.
    type Shared<T: Send + Sync + 'static>: Deref<Target = T> + Clone + Send + Sync + 'static;
    /// A sleeping lock.
    type Mutex<T: Send>: Lock<T>;
    /// A spin lock that holds off interrupts.
    type SpinLock<T: Send>: Lock<T>;

    // Memory

    /// A run of zeroed pages, physically contiguous, mapped at [`Host::phys_to_virt`]. *Thread.*
    fn alloc_pages(&self, want: PageRequest) -> Result<Hpa, NoMemory>;
    /// Takes back a whole run. *Thread.*
    ///
    /// # Safety
    /// `at` and `want` are those of one [`Host::alloc_pages`], and nothing refers to the pages any more.
    unsafe fn free_pages(&self, at: Hpa, want: PageRequest);
    /// Where the host maps a physical page that it gave, by `alloc_pages` or as guest RAM. *Any.*
    fn phys_to_virt(&self, at: Hpa) -> NonNull<u8>;

    // CPUs

    /// All CPU ids are below this; it never changes. *Any.*
    fn cpu_limit(&self) -> u32;
    /// The CPU this runs on; stable only where the caller cannot move. *Any.*
    fn current_cpu(&self) -> CpuId;
    /// Calls `f` once on each CPU that is online, there in atomic context, and returns when all have returned. *Thread.*
    fn on_each_cpu(&self, f: &(dyn Fn(CpuId) + Sync));
    /// Runs `f` in a *window*: on one CPU, with interrupts off, the host's floating-point state put away and debug
    /// exceptions quiet, so that `f` may load a guest's. Reschedules first if the host wants the CPU. *Thread.*
    fn window<R>(&self, f: impl FnOnce(CpuId) -> R) -> R;
    /// In a window: the host wants the CPU back, so the core leaves the window soon.
    fn window_must_end(&self) -> bool;
    /// In a window, just before the guest is entered: what the host must know of it (RCU, lock proving, accounting).
    fn guest_enter(&self) {}
    /// In a window, just after the guest was left, before any function returns. The guest may have trained the return
    /// predictor: a host that fears that cleans it here, first of all.
    fn guest_exit(&self) {}

    /// In a window: a machine check struck in the guest, or as it was entered, and ended it. The host handles the error as one in
    /// user mode, where it can lose what was hit and live.
    fn machine_check(&self) -> MachineCheck {
        MachineCheck::Raise
    }
    /// In a window that closes: the processor came out of the guest with the smallest limit on the task-state segment. A host
    /// that keeps an I/O permission map behind it loads TR again before a task relies on that.
    fn task_segment_cut(&self) {}

    // Time

    /// Monotonic nanoseconds. *Any.*
    fn now_ns(&self) -> u64;
    /// Nanoseconds since 1970-01-01 UTC. *Any.*
    fn wall_ns(&self) -> u64;
    /// The rate of the time stamp counter in Hz, which does not change; 0 where it is not known. Then guests have to measure
    /// it, and are offered no paravirtual clock.
    fn tsc_hz(&self) -> u64 {
        0
    }
    /// The counters of all CPUs count at that one rate, idle or not, and show the same at any time: what was read on one may
    /// be used on another. A host that is not sure says `false`. May become `false`, for good. *Any*, often.
    fn tsc_stable(&self) -> bool {
        false
    }

    // Threads and locks

    /// Makes a thread, not yet running, that belongs to nobody who calls this; `cpu` pins it. *Thread.*
    fn thread(
        &self,
        name: fmt::Arguments<'_>,
        cpu: Option<CpuId>,
    ) -> Result<Self::Thread, NoMemory>;
    /// Lets other threads run. *Thread.*
    fn yield_now(&self);
    /// Moves `value` to where several may refer to it. *Thread.*
    fn share<T: Send + Sync + 'static>(&self, value: T) -> Result<Self::Shared<T>, NoMemory>;
    /// A sleeping lock around `value`. *Thread.*
    fn mutex<T: Send>(&self, class: LockClass, value: T) -> Result<Self::Mutex<T>, NoMemory>;
    /// A spin lock around `value`. *Thread.*
    fn spin_lock<T: Send>(&self, class: LockClass, value: T)
        -> Result<Self::SpinLock<T>, NoMemory>;

    // Log

    /// Fills `buf` with random bytes that nobody can foretell. `false`: there are none now, or never, as in a host that has no source of
    /// them. It never waits. *Thread.*
    fn random(&self, _buf: &mut [u8]) -> bool {
        false
    }
    /// One line of log. *Any*, but never on the path of an exit.
    fn log(&self, level: Level, scope: Scope<'_>, line: fmt::Arguments<'_>);
}

/// What a host made of a machine check that ended a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineCheck {
    /// Nothing: vector 18 is to be raised, whose handler takes it for one in the host.
    Raise,
    /// It is dealt with, and nothing of this guest was hit.
    Spared,
    /// What this guest used is lost: it must not go on.
    Hit,
}

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// How many.
    pub pages: u32,
    /// The run's alignment, a power of two.
    pub align_pages: u32,
    /// All below 4 GiB.
    pub below_4g: bool,
    /// On this NUMA node, if given and the host knows it; a wish, not a promise.
    pub node: Option<u32>,
}

impl PageRequest {
    /// One page, anywhere.
    pub const ONE: Self = Self::run(1);

    /// A run of `pages`, anywhere.
    pub const fn run(pages: u32) -> Self {
        Self {
            pages,
            align_pages: 1,
            below_4g: false,
            node: None,
        }
    }
}

/// A lock.
pub trait Lock<T>: Send + Sync {
    /// What holds the lock until dropped.
    type Guard<'a>: DerefMut<Target = T>
    where
        Self: 'a;
    /// Takes the lock. A mutex: *thread*; a spin lock: *any*.
    fn lock(&self) -> Self::Guard<'_>;
    /// Takes the lock if nobody holds it, and waits for nobody: also in a window. A host that cannot do that says `None`; then its guests' accesses
    /// to some devices cost more.
    fn try_lock(&self) -> Option<Self::Guard<'_>> {
        None
    }
}

/// What a lock guards: hosts that prove lock order keep one class each. The order is that of the list; a thread that holds
/// one takes only later ones, and holds none across a guest entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockClass {
    /// A VM's launch and the like, one at a time (mutex).
    VmControl,
    /// The work of a device's worker, held over each step (mutex).
    Worker,
    /// What is attached to a VM's buses, held over changes (mutex).
    BusMap,
    /// A device's bus slot (mutex).
    BusSlot,
    /// A vCPU that is not with its thread (mutex).
    VcpuSlot,
    /// A VM's state (mutex).
    VmState,
    /// What is where in a VM's memory, held over changes and revocations (mutex).
    GuestRam,
    /// Which worker a bus slot has (spin lock).
    SlotWorker,
    /// A ring of a stream to a descriptor (spin lock).
    Stream,
    /// Which worker a stream to a descriptor has (spin lock).
    StreamWorker,
    /// The VM's interrupt controllers (spin lock).
    Chipset,
}

impl LockClass {
    /// How many there are.
    pub const COUNT: usize = 11;
}

/// A thread of the VMM's: a vCPU's, or a worker's. It exists before it runs and after it ended, and others may call it throughout. The thread may drop
/// this itself; it then goes on to the end of its body.
pub trait Thread: Send + Sync {
    /// Starts it at `body`. Again only after [`Thread::join`]. *Thread.*
    fn start(&self, body: impl FnOnce() + Send + 'static) -> Result<(), NoMemory>;
    /// Sleeps until [`Thread::unpark`] was called since the last return, or the armed time has come. Only on itself. *Thread.*
    fn park(&self);
    /// Ends its sleep, or its next one if it does not sleep. *Any.*
    fn unpark(&self);
    /// Makes its CPU leave guest mode, if it is there. A kick that arrives in a window before entry ends the entry at
    /// once; none is lost between. *Any.*
    fn kick(&self);
    /// Sets its timer: at `at_ns` (on [`Host::now_ns`]'s scale) or soon after, it is unparked and kicked, once. That replaces
    /// the time armed before; `None` disarms. Only on itself, or by who steps its vCPU in its place. A time: *Any.* `None`: *Thread.*
    fn arm(&self, at_ns: Option<u64>);
    /// How long it has been ready to run without running, because other threads had the CPU: nanoseconds since it was made,
    /// never less than before. It need not count the wait that still lasts. `None`, always: this host does not count it.
    /// *Any*, often.
    fn waited_ns(&self) -> Option<u64> {
        None
    }
    /// Lets it run in place of the caller, if it is ready to and has no CPU. `false`: it is not, or this host cannot; the
    /// caller then goes on at once. *Thread.*
    fn yield_to(&self) -> bool {
        false
    }
    /// Pins it to a CPU, where it is when this returns or as soon as it runs; `None` lets it run on any. Running or not.
    /// On an error it stays as it is. *Thread.*
    fn move_to(&self, cpu: Option<CpuId>) -> Result<(), NoSuchCpu>;
    /// The CPU that it is pinned to. *Thread.*
    fn pin(&self) -> Option<CpuId>;
    /// Sleeps until its body has returned; at once if it was never started. *Thread*, but not itself.
    fn join(&self);
}

/// A file, pipe, socket or terminal of the host's that somebody gave to a VM. A host without such things makes none.
pub trait Descriptor: Send {
    /// Reads what is there. It never waits. *Thread.*
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, DescriptorError>;
    /// Writes; returns how many bytes were taken. It never waits for a reader. *Thread.*
    fn write(&mut self, data: &[u8]) -> Result<usize, DescriptorError>;
    /// Has `waker` called whenever it may have become readable or writable, from now on until this is dropped. Called once, before the
    /// first read and write. *Thread.*
    fn watch(&mut self, waker: alloc::boxed::Box<dyn Wake>) -> Result<(), NoMemory>;
}

/// Why a descriptor gives or takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorError {
    /// Nothing for now; its waker is called when that has changed.
    WouldBlock,
    /// Nobody is at its other end, or it has failed. If that changes, its waker is called.
    Closed,
}

/// The CPU is not there, or not online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchCpu(pub CpuId);

/// Gives the frames behind one guest's RAM. Ballooning, sharing, swapping and migration are done here.
///
/// It knows the pages of RAM by their numbers: from 0, in units of 4 KiB, and without a hole. The VMM asks for a page once, and
/// again only when it was released; it may ask for several at the same time, and release others meanwhile. A call may take
/// long: only who wants that page waits.
pub trait GuestRam: Send + Sync {
    /// The frame for the page of `size` at number `page`, a multiple of its size: zeroed at first touch and behind
    /// [`Release::Discarded`], or with the contents it had when it was [`Release::Revoked`]. A provider that has no page so large to
    /// give answers [`RamError::TooLarge`], and is asked for smaller ones. *Thread.*
    fn page(&self, page: u64, size: PageSize) -> Result<Hpa, RamError>;
    /// Whether the page of 4 KiB at number `page`, of which the guest has no frame now, holds something: it was [`Release::Revoked`]. *Thread.*
    fn holds(&self, page: u64) -> bool;
    /// Takes a frame back: nothing translates to it any more. *Thread.*
    fn release(&self, page: u64, frame: Hpa, size: PageSize, why: Release);
}

/// The size of a page of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB.
    Huge,
}

impl PageSize {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Small, Self::Large, Self::Huge];

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => crate::addr::PAGE_SIZE,
            Self::Large => crate::addr::LARGE_PAGE_SIZE,
            Self::Huge => 1 << 30,
        }
    }
    /// In pages of 4 KiB.
    pub const fn pages(self) -> u64 {
        self.bytes() / crate::addr::PAGE_SIZE
    }
    /// The next smaller size.
    pub const fn smaller(self) -> Option<Self> {
        match self {
            Self::Small => None,
            Self::Large => Some(Self::Small),
            Self::Huge => Some(Self::Large),
        }
    }
}

/// Why there is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamError {
    /// No page of that size; a smaller one may do.
    TooLarge,
    /// No memory.
    NoMemory,
}

/// Why a frame goes back to its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The VM is done with it.
    Ended,
    /// The host wants the frame; the guest still wants the contents.
    Revoked,
    /// The guest does not want the contents any more. It may touch the page again, and then finds zeroes.
    Discarded,
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is odd.
    Warning,
    /// News.
    Info,
}

/// What a log line is about.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// The VMM.
    Vmm,
    /// One VM, by name.
    Vm(&'a str),
    /// One vCPU of a VM.
    Vcpu(&'a str, u32),
}
