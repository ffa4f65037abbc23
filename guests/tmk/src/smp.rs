// SPDX-License-Identifier: MIT OR Apache-2.0
//! The other processors: started, and given work. Between works they wait in HLT.

use crate::apic::{self, Mode, INIT, OTHERS, STARTUP};
use crate::paging::{self, PAGE};
use crate::tests::time::{pm_ticks_since, pm_timer, PM_HZ};
use crate::trap::{self, me, CPUS, WAKE};
use crate::{acpi, Outcome};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

/// The page where they begin, below all that tests use there.
pub const START_PAGE: u8 = 6;
/// For each its own stack, and below it that of its traps.
const STACK_PAGES: u64 = 8;
const TRAP_AT: u64 = 4 * PAGE;
/// What waits longer is given up, and said to be lost.
const PATIENCE_S: u64 = 60;

/// What a CPU is to do: borrowed from who waits until it is done.
type Work = &'static (dyn Fn() -> Outcome + Sync);

struct Cpu {
    id: AtomicU32,
    /// How often it has started, and the page at which it did so last.
    starts: AtomicU32,
    page: AtomicU32,
    /// What its local APIC and its mode were before it touched them: the registers of [`AT_START`].
    found: [AtomicU32; 5],
    busy: AtomicBool,
    work: UnsafeCell<(Option<Work>, Outcome)>,
}
// SAFETY: `work` belongs to the CPU while it is busy, and to the first CPU while it is not.
unsafe impl Sync for Cpu {}

static OTHER: [Cpu; CPUS] = [const {
    Cpu {
        id: AtomicU32::new(0),
        starts: AtomicU32::new(0),
        page: AtomicU32::new(0),
        found: [const { AtomicU32::new(0) }; 5],
        busy: AtomicBool::new(false),
        work: UnsafeCell::new((None, Ok(()))),
    }
}; CPUS];
/// The registers that are noted when a CPU starts; the last one says whether it was in x2APIC mode.
const AT_START: [u64; 4] = [apic::SPURIOUS, apic::TPR, apic::LVT_TIMER, apic::LVT_LINT0];
static COUNT: AtomicU32 = AtomicU32::new(1);

extern "C" {
    static boot_low: u8;
    static boot_low_end: u8;
    static mut boot_number_of: [u8; 256];
    static mut boot_stack_of: [u32; CPUS];
}

/// How many processors there are.
pub fn count() -> usize {
    COUNT.load(Relaxed) as usize
}

/// All of them, by number.
pub fn all() -> core::ops::Range<usize> {
    0..count()
}

/// The APIC id of one.
pub fn id(cpu: usize) -> u32 {
    OTHER[cpu].id.load(Relaxed)
}

/// How often one has started, and the page at which it last did so.
pub fn starts(cpu: usize) -> (u32, u32) {
    (
        OTHER[cpu].starts.load(Acquire),
        OTHER[cpu].page.load(Acquire),
    )
}

/// What its local APIC was when it last started: spurious vector, task priority, timer's and LINT0's entry, and whether it
/// was in x2APIC mode.
pub fn found_at_start(cpu: usize) -> [u32; 5] {
    OTHER[cpu].found.each_ref().map(|value| value.load(Acquire))
}

/// Gives up the work of a CPU that was stopped in it by INIT.
pub fn forget(cpu: usize) {
    OTHER[cpu].busy.store(false, Release);
}

/// Finds the others, which are not started yet, and gives each a number and stacks.
pub fn find() -> Outcome {
    let first = apic::id();
    let others = acpi::processors().filter(|id| *id != first && *id < 256);
    OTHER[0].id.store(first, Relaxed);
    for (number, id) in (1..CPUS).zip(others) {
        OTHER[number].id.store(id, Relaxed);
        let stack = paging::frames(STACK_PAGES)? + STACK_PAGES * PAGE;
        // SAFETY: none is running yet.
        unsafe {
            (&raw mut boot_number_of[id as usize]).write(number as u8);
            (&raw mut boot_stack_of[number]).write(stack as u32);
        }
        COUNT.store(number as u32 + 1, Relaxed);
    }
    Ok(())
}

/// Has a start-up message with this page find our code there.
pub fn prepare(page: u8) {
    let (from, end) = (&raw const boot_low, &raw const boot_low_end);
    let to = usize::from(page) << 12;
    // SAFETY: RAM that nothing else uses.
    unsafe { core::ptr::copy_nonoverlapping(from, to as *mut u8, end as usize - from as usize) };
}

/// Starts all others from the beginning, whatever they do: INIT, and two start-up messages (MultiProcessor Specification
/// 1.4: appendix B.4).
pub fn start() -> Outcome {
    let before = all().map(|cpu| starts(cpu).0).sum::<u32>();
    prepare(START_PAGE);
    apic::set_mode(Mode::XApic);
    apic::on();
    apic::send(0, OTHERS | INIT);
    wait_ms(10);
    OTHER
        .iter()
        .for_each(|other| other.busy.store(false, Relaxed));
    for _ in 0..2 {
        apic::send(0, OTHERS | STARTUP | u32::from(START_PAGE));
    }
    let others = count() as u32 - 1;
    until(|| all().map(|cpu| starts(cpu).0).sum::<u32>() == before + others)
        .map_err(|_| "not all of them have started")?;
    settle()
}

fn boot_stack(cpu: usize) -> u64 {
    // SAFETY: written before it was started.
    u64::from(unsafe { (&raw const boot_stack_of[cpu]).read() })
}

pub fn wait_ms(ms: u64) {
    let begin = pm_timer();
    while pm_ticks_since(begin) < ms * PM_HZ / 1000 {}
}

/// Lets every CPU take what was sent to it so far.
pub fn settle() -> Outcome {
    apic::let_in();
    on_all(&|| Ok(()))
}

/// Waits until it is so.
pub fn until(is_so: impl Fn() -> bool) -> Outcome {
    let (mut last, mut waited) = (pm_timer(), 0);
    while waited < PATIENCE_S * PM_HZ {
        for _ in 0..1000 {
            if is_so() {
                return Ok(());
            }
            core::hint::spin_loop();
        }
        waited += pm_ticks_since(last);
        last = pm_timer();
    }
    Err("it did not happen within a minute")
}

/// Where another CPU begins in 64-bit mode, with the stack that goes with its number.
#[no_mangle]
extern "C" fn ap_main(cpu: usize, page: u32) -> ! {
    let top = boot_stack(cpu);
    trap::init_other(cpu, top - TRAP_AT);
    let me = &OTHER[cpu];
    let x2 = apic::take_over();
    let registers = AT_START.map(apic::read).into_iter();
    for (slot, value) in me.found.iter().zip(registers.chain([x2.into()])) {
        slot.store(value, Release);
    }
    apic::set_mode(Mode::XApic);
    apic::write(apic::SPURIOUS, 0x1ff);
    me.page.store(page, Release);
    me.starts.fetch_add(1, AcqRel);
    loop {
        // SAFETY: while this CPU is busy, this is its own.
        unsafe {
            if me.busy.load(Acquire) {
                if let (Some(work), outcome) = &mut *me.work.get() {
                    *outcome = work();
                }
                asm!("cli");
                me.busy.store(false, Release);
            } else {
                asm!("sti", "hlt", "cli");
            }
        }
    }
}

/// Does `work` on this CPU, and `meanwhile` here; returns when both are done.
pub fn with(
    cpu: usize,
    work: &(dyn Fn() -> Outcome + Sync),
    meanwhile: impl FnOnce() -> Outcome,
) -> Outcome {
    begin(cpu, work);
    let here = meanwhile();
    let there = end(cpu);
    here.and(there)
}

/// Begins `work` on a CPU, which will never end it, but is stopped and started again `meanwhile`.
pub fn stopped_in(
    cpu: usize,
    work: &(dyn Fn() -> Outcome + Sync),
    meanwhile: impl FnOnce() -> Outcome,
) -> Outcome {
    begin(cpu, work);
    meanwhile()
}

/// Does `work` on one CPU, which may be this one.
pub fn on(cpu: usize, work: &(dyn Fn() -> Outcome + Sync)) -> Outcome {
    match cpu {
        0 => work(),
        _ => with(cpu, work, || Ok(())),
    }
}

/// Does `work` on all CPUs at once.
pub fn on_all(work: &(dyn Fn() -> Outcome + Sync)) -> Outcome {
    all().skip(1).for_each(|cpu| begin(cpu, work));
    let here = work();
    all().skip(1).map(end).fold(here, Outcome::and)
}

/// Does `others` on all CPUs but this one, and `own` here; returns when all are done.
pub fn with_others(
    others: &(dyn Fn() -> Outcome + Sync),
    own: impl FnOnce() -> Outcome,
) -> Outcome {
    all().skip(1).for_each(|cpu| begin(cpu, others));
    let here = own();
    all().skip(1).map(end).fold(here, Outcome::and)
}

fn begin(cpu: usize, work: &(dyn Fn() -> Outcome + Sync)) {
    debug_assert!(me() == 0);
    // SAFETY: it is not busy, and who borrowed the work to us waits for its end.
    unsafe {
        (*OTHER[cpu].work.get()).0 = Some(
            core::mem::transmute::<&(dyn Fn() -> Outcome + Sync), Work>(work),
        )
    };
    OTHER[cpu].busy.store(true, Release);
    apic::send(id(cpu), u32::from(WAKE));
}

/// Waits with interrupts on.
fn end(cpu: usize) -> Outcome {
    apic::interrupts(true);
    let done = until(|| !OTHER[cpu].busy.load(Acquire));
    apic::interrupts(false);
    if done.is_err() {
        // It still uses what its caller has on the stack: there is no going on.
        crate::println!("CPU {cpu} does not come back");
        crate::io::exit(96);
    }
    // SAFETY: it is not busy.
    unsafe { (*OTHER[cpu].work.get()).1 }
}
