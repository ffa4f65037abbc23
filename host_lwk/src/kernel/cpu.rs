// SPDX-License-Identifier: MIT OR Apache-2.0
//! CPUs: what each has of its own, how the others are started, and how one has all do something.

use super::acpi::Found;
use super::apic::LocalApic;
use super::boot::{boot_low, boot_low_end, boot_next_argument, boot_next_stack};
use super::cpuid::leaf;
use super::memory::Stack;
use super::sync::{IrqsOff, Once};
use super::thread::{Scheduler, Thread};
use super::{apic, features, time, trap};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use palacios_core::alloc_ext::{try_box, NoMemory, TryPush};
use x86_64::registers::model_specific::GsBase;
use x86_64::VirtAddr;

/// How long a CPU may take to start.
const START_NS: u64 = 1_000_000_000;

/// What a CPU has of its own. Others reach what is atomic or locked.
#[repr(C)]
pub struct Cpu {
    /// Points to itself: what GS:0 gives.
    this: *const Cpu,
    /// Its number, from 0.
    pub id: u32,
    /// Its local APIC's.
    pub apic_id: u32,
    started: AtomicBool,
    /// Called by [`on_each`].
    called: AtomicBool,
    /// Its threads and timers.
    pub scheduler: Scheduler,
    /// Its local APIC; for the CPU itself, with interrupts off.
    pub apic: UnsafeCell<Option<LocalApic>>,
    tables: UnsafeCell<trap::Tables>,
}

// SAFETY: what is in an `UnsafeCell` is for the CPU itself, with interrupts off; the rest is atomic or locked.
unsafe impl Sync for Cpu {}
// SAFETY: as above.
unsafe impl Send for Cpu {}

#[expect(clippy::vec_box)] // Each points to itself.
static CPUS: Once<Vec<Box<Cpu>>> = Once::new();
static STARTED: AtomicU32 = AtomicU32::new(0);

/// All CPUs that run, in the order of their ids.
pub fn all() -> impl Iterator<Item = &'static Cpu> {
    let cpus = CPUS.get().map(Vec::as_slice).unwrap_or_default();
    cpus.iter()
        .map(|cpu| &**cpu)
        .filter(|cpu| cpu.started.load(Ordering::Acquire))
}

/// How many CPUs run.
pub fn count() -> u32 {
    STARTED.load(Ordering::Acquire)
}

/// The CPU of a number, if it runs.
pub fn get(id: u32) -> Option<&'static Cpu> {
    let cpu = &**CPUS.get()?.get(id as usize)?;
    cpu.started.load(Ordering::Acquire).then_some(cpu)
}

/// The CPU that this runs on. With interrupts off, or in a thread that cannot move.
pub fn current() -> &'static Cpu {
    let this: *const Cpu;
    // SAFETY: GS leads to this CPU's own, set before anything calls this; it is never freed.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) this, options(nostack, readonly, preserves_flags));
        &*this
    }
}

impl Cpu {
    fn new(id: u32, apic_id: u32) -> Result<Box<Self>, NoMemory> {
        let mut cpu = try_box(Self {
            this: core::ptr::null(),
            id,
            apic_id,
            started: AtomicBool::new(false),
            called: AtomicBool::new(false),
            scheduler: Scheduler::new(Thread::idle(id)?),
            apic: UnsafeCell::new(None),
            tables: UnsafeCell::new(trap::Tables::new()?),
        })?;
        cpu.this = &raw const *cpu;
        Ok(cpu)
    }

    /// Makes the CPU that this runs on `self`.
    ///
    /// # Safety
    /// Once for each, on it, with interrupts off.
    unsafe fn adopt(&'static self) {
        // SAFETY: by the contract above nobody else uses the tables; `self` stays where it is.
        unsafe {
            (*self.tables.get()).load();
            GsBase::write(VirtAddr::from_ptr(self));
            features::enable();
            *self.apic.get() = Some(LocalApic::enable());
        }
        STARTED.fetch_add(1, Ordering::AcqRel);
        self.started.store(true, Ordering::Release);
    }

    /// Has it take an interrupt.
    pub fn interrupt(&self) {
        let _irqs = IrqsOff::new();
        apic::local(|apic| apic.send(apic::IPI, self.apic_id));
    }
}

/// Sets this CPU up, and makes room for the others that ACPI found.
///
/// # Safety
/// Once, on the first CPU, before anything else here is called.
pub unsafe fn init(found: &Found) -> Result<(), NoMemory> {
    let first = leaf(1)[1] >> 24;
    let first = match leaf(0xb) {
        [_, 0, _, _] => first,
        [.., x2apic_id] => x2apic_id,
    };
    let others = found.apic_ids().filter(|id| *id != first);
    let mut cpus = Vec::new();
    for (id, apic_id) in (0..).zip([first].into_iter().chain(others)) {
        cpus.try_push(Cpu::new(id, apic_id)?)?;
    }
    // SAFETY: by the contract above.
    unsafe {
        CPUS.set(cpus);
        if let Some(first) = CPUS.get().and_then(|cpus| cpus.first()) {
            first.adopt();
        }
    }
    Ok(())
}

/// Starts the others, which begin at `page` (SDM 3A: 9.4.4).
///
/// # Safety
/// Once, by the first CPU. The page is memory below 1 MiB that nobody else uses.
pub unsafe fn start_others(page: u64) -> Result<(), NoMemory> {
    let len = &raw const boot_low_end as usize - &raw const boot_low as usize;
    // SAFETY: by the contract above, and the code fits in a page.
    unsafe { core::ptr::copy_nonoverlapping(&raw const boot_low, page as *mut u8, len) };
    for cpu in CPUS.get().into_iter().flatten().skip(1) {
        // What the CPU idles on; it stays.
        let stack = core::mem::ManuallyDrop::new(Stack::new()?);
        // SAFETY: read by the CPU that is about to start, and by no other: one at a time.
        unsafe {
            boot_next_stack = stack.top();
            boot_next_argument = &raw const **cpu as u64;
        }
        let _irqs = IrqsOff::new();
        apic::local(|apic| apic.send_init(cpu.apic_id));
        time::spin_ns(10_000_000);
        for _ in 0..2 {
            apic::local(|apic| apic.send_startup(cpu.apic_id, page));
            let end_ns = time::now_ns() + START_NS / 2;
            while !cpu.started.load(Ordering::Acquire) && time::now_ns() < end_ns {
                time::compare_counters(1);
            }
            if cpu.started.load(Ordering::Acquire) {
                break;
            }
        }
        if !cpu.started.load(Ordering::Acquire) {
            crate::log!("CPU {} (APIC {}) did not start", cpu.id, cpu.apic_id);
            break;
        }
    }
    Ok(())
}

/// # Safety
/// For the start code, with the `Cpu` that this is to be.
#[no_mangle]
unsafe extern "C" fn secondary_main(cpu: &'static Cpu) -> ! {
    // SAFETY: by the contract above; nothing here goes by the counter yet.
    unsafe {
        time::align_counter();
        time::compare_counters(time::COMPARE_ROUNDS);
        cpu.adopt();
    }
    super::thread::idle()
}

/// What [`on_each`] calls: the address of a reference to it.
static FUNCTION: AtomicU64 = AtomicU64::new(0);
/// How many have yet to return.
static PENDING: AtomicU32 = AtomicU32::new(0);
static CALLER: AtomicBool = AtomicBool::new(false);

/// Calls `f` once on each CPU, with interrupts off there, and returns when all have returned. In a thread.
pub fn on_each(f: &(dyn Fn(u32) + Sync)) {
    // Not a sleeping lock: whoever waits here still takes the calls of others.
    while CALLER.swap(true, Ordering::Acquire) {
        super::thread::yield_now();
    }
    FUNCTION.store(&raw const f as u64, Ordering::Relaxed);
    {
        let _irqs = IrqsOff::new();
        let me = current();
        for cpu in all().filter(|cpu| cpu.id != me.id) {
            PENDING.fetch_add(1, Ordering::Relaxed);
            cpu.called.store(true, Ordering::Release);
            cpu.interrupt();
        }
        f(me.id);
    }
    while PENDING.load(Ordering::Acquire) > 0 {
        core::hint::spin_loop();
    }
    CALLER.store(false, Ordering::Release);
}

/// In an interrupt: does what [`on_each`] asks of this CPU.
pub fn take_call(cpu: &Cpu) {
    if cpu.called.swap(false, Ordering::Acquire) {
        let f = FUNCTION.load(Ordering::Relaxed) as *const &(dyn Fn(u32) + Sync);
        // SAFETY: the caller waits until this has returned.
        unsafe { (*f)(cpu.id) };
        PENDING.fetch_sub(1, Ordering::Release);
    }
}
