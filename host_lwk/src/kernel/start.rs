// SPDX-License-Identifier: MIT OR Apache-2.0
//! The start of the kernel: layer by layer on the first CPU, then the other CPUs one at a time.

use super::acpi::{self, Topology};
use super::boot::{boot_low, boot_low_end, boot_next_argument, boot_next_stack};
use super::loader::Boot;
use super::memory::{self, Stack};
use super::per_cpu::PerCpu;
use super::{apic, calls, cpu, features, thread, time, trap};
use crate::log;
use palacios_core::alloc_ext::NoMemory;

/// How long a CPU may take to start.
const START_NS: u64 = 1_000_000_000;
/// How long the timers are measured.
const MEASURE_NS: u64 = 20_000_000;

/// The number of each CPU, where its GS base points.
static NUMBERS: PerCpu<u32> = PerCpu::new();

/// Brings the machine up: all CPUs, their timers, and what ACPI tells. Interrupts are off.
///
/// # Safety
/// Once, at the entry, when the first CPU has its number.
pub unsafe fn init(boot: &'static Boot) -> Result<Topology, NoMemory> {
    // SAFETY: by the contract above, in the order in which one needs the other.
    unsafe {
        memory::init(boot);
        let topology = acpi::init(boot.rsdp())?;
        apic::close_pics();
        let cpus = apic::init(&topology)?;
        NUMBERS.fill(cpus, Ok)?;
        trap::init(cpus)?;
        thread::init(cpus)?;
        calls::init(cpus)?;
        enable_cpu();
        time::init(boot.option("tsc=reliable"));
        apic::measure_timer(MEASURE_NS);
        match memory::low_page(boot) {
            Some(page) => start_others(cpus, page)?,
            None => log!("no page below 1 MiB to start other CPUs from"),
        }
        Ok(topology)
    }
}

/// Switches on what the kernel needs of the CPU that this runs on.
///
/// # Safety
/// Once on each CPU, with interrupts off.
unsafe fn enable_cpu() {
    // SAFETY: by the contract above; the tables stand before anything can fault.
    unsafe {
        trap::load();
        features::enable();
        apic::enable();
    }
    cpu::count_in();
}

/// Starts the others, which begin at `page` (SDM 3A: 9.4.4).
///
/// # Safety
/// Once, by the first CPU. The page is memory below 1 MiB that nobody else uses.
unsafe fn start_others(cpus: u32, page: u64) -> Result<(), NoMemory> {
    let len = &raw const boot_low_end as usize - &raw const boot_low as usize;
    // SAFETY: by the contract above, and the code fits in a page.
    unsafe { core::ptr::copy_nonoverlapping(&raw const boot_low, page as *mut u8, len) };
    for number in (1..cpus).filter_map(|cpu| NUMBERS.get(cpu)) {
        // What the CPU idles on; it stays.
        let stack = core::mem::ManuallyDrop::new(Stack::new()?);
        // SAFETY: read by the CPU that is about to start, and by no other: one at a time.
        unsafe {
            boot_next_stack = stack.top();
            boot_next_argument = &raw const *number as u64;
        }
        start(*number, page);
        if !cpu::runs(*number) {
            let apic_id = apic::id_of(*number).unwrap_or_default();
            log!("CPU {number} (APIC {apic_id}) did not start");
            break;
        }
    }
    Ok(())
}

/// Starts a CPU, and compares time stamp counters with it until it runs or its time is up.
fn start(number: u32, page: u64) {
    apic::send_init(number);
    time::spin_ns(10_000_000);
    for _ in 0..2 {
        apic::send_startup(number, page);
        let end_ns = time::now_ns() + START_NS / 2;
        while !cpu::runs(number) && time::now_ns() < end_ns {
            time::compare_counters(1);
        }
        if cpu::runs(number) {
            break;
        }
    }
}

/// # Safety
/// For the start code, with the number of the CPU that this runs on.
#[no_mangle]
unsafe extern "C" fn secondary_main(number: &'static u32) -> ! {
    // SAFETY: by the contract above; nothing here goes by the counter yet.
    unsafe {
        cpu::set_current(number);
        time::align_counter();
        time::compare_counters(time::COMPARE_ROUNDS);
        enable_cpu();
    }
    thread::idle()
}
