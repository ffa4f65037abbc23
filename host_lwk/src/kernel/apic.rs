// SPDX-License-Identifier: MIT OR Apache-2.0
//! Local APICs and I/O APICs: interrupts between CPUs, each CPU's one-shot timer, the lines of devices.

use super::acpi::Topology;
use super::cpuid::leaf;
use super::per_cpu::PerCpu;
use super::sync::IrqsOff;
use super::trap::{self, vectors};
use super::{cpu, stop, time};
use crate::log;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};
use palacios_core::alloc_ext::{NoMemory, TryPush};
use x2apic::ioapic::{IoApic, IrqFlags, IrqMode, RedirectionTableEntry};
use x2apic::lapic::{self, LocalApicBuilder, TimerDivide, TimerMode};

/// CPUID 1, ECX: the APIC is used by registers of the processor, if it can be.
const X2APIC: u32 = 1 << 21;
/// The longest time that a timer is set for: its product with the rate of any APIC fits in 64 bits.
const LONGEST_NS: u64 = 10_000_000_000;

/// The rate of all local timers, as they are divided here.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);

/// A CPU's own APIC.
struct LocalApic {
    apic: lapic::LocalApic,
    /// Where in the upper half of a command the destination begins (SDM 3A: 11.6.1, 11.12.9).
    destination_bit: u32,
}

/// What is kept of the local APIC of each CPU.
struct Slot {
    /// Its number, by which other CPUs and devices reach it.
    id: u32,
    /// For the CPU itself, with interrupts off. Nothing before [`enable`].
    own: UnsafeCell<Option<LocalApic>>,
}

// SAFETY: `own` is for the CPU itself, with interrupts off; nobody writes the number.
unsafe impl Sync for Slot {}
// SAFETY: what it holds belongs to no thread.
unsafe impl Send for Slot {}

static LOCAL: PerCpu<Slot> = PerCpu::new();

/// Numbers all CPUs that ACPI found, this one first; how many they are.
///
/// # Safety
/// Once, on the first CPU, while no other runs.
pub unsafe fn init(topology: &Topology) -> Result<u32, NoMemory> {
    let first = match leaf(0xb) {
        [_, 0, _, _] => leaf(1)[1] >> 24,
        [.., x2apic_id] => x2apic_id,
    };
    let mut ids = alloc::vec::Vec::new();
    ids.try_push(first)?;
    for id in topology.apic_ids().filter(|id| *id != first) {
        ids.try_push(id)?;
    }
    let mut next = ids.iter();
    let slot = |_| {
        let id = next.next().copied().unwrap_or_default();
        let own = UnsafeCell::new(None);
        Ok(Slot { id, own })
    };
    // SAFETY: by the contract above.
    unsafe { LOCAL.fill(ids.len() as u32, slot)? };
    trap::register(vectors::ERROR, || {
        log!("CPU {}: an error of the local APIC", cpu::current());
    });
    trap::register_end_of_interrupt(|| local(LocalApic::end_of_interrupt));
    Ok(ids.len() as u32)
}

/// Switches on the local APIC of the CPU that this runs on.
///
/// # Safety
/// Once on each CPU, with interrupts off, after [`init`]; the interrupt table stands.
pub unsafe fn enable() {
    // SAFETY: by the contract above nobody else refers to it.
    unsafe { *LOCAL.current().own.get() = Some(LocalApic::enable()) };
    stop::STOP_OTHERS.set(|| local(LocalApic::stop_others));
}

/// Runs `f` on this CPU's. With interrupts off, and not within itself.
fn local<R>(f: impl FnOnce(&mut LocalApic) -> R) -> R {
    // SAFETY: this CPU's, with interrupts off: nobody else refers to it.
    match unsafe { &mut *LOCAL.current().own.get() } {
        Some(apic) => f(apic),
        None => panic!("no local APIC yet"),
    }
}

/// The number of a CPU's local APIC.
pub fn id_of(cpu: u32) -> Option<u32> {
    LOCAL.get(cpu).map(|slot| slot.id)
}

/// Interrupts a CPU.
pub fn interrupt(cpu: u32, vector: u8) {
    if let Some(id) = id_of(cpu) {
        let _irqs = IrqsOff::new();
        local(|apic| apic.send(vector, id));
    }
}

/// Resets a CPU (SDM 3A: 9.4.4).
pub fn send_init(cpu: u32) {
    if let Some(id) = id_of(cpu) {
        let _irqs = IrqsOff::new();
        local(|apic| apic.send_init(id));
    }
}

/// Has a CPU that was reset begin at a page below 1 MiB.
pub fn send_startup(cpu: u32, page: u64) {
    if let Some(id) = id_of(cpu) {
        let _irqs = IrqsOff::new();
        local(|apic| apic.send_startup(id, page));
    }
}

/// Has this CPU's timer fire `after_ns` from now, or a little later, or before that if it cannot count so far; `None`: never.
/// With interrupts off.
pub fn set_timer(after_ns: Option<u64>) {
    local(|apic| apic.set_timer(after_ns));
}

// Each step below needs what the crate asks for: the local APIC of the CPU this runs on, enabled.
impl LocalApic {
    /// Switches this CPU's on.
    ///
    /// # Safety
    /// As for [`enable`].
    unsafe fn enable() -> Self {
        // SAFETY: by the contract above; the registers are mapped where they are.
        unsafe {
            let mut apic = LocalApicBuilder::new()
                .timer_vector(vectors::TIMER.into())
                .error_vector(vectors::ERROR.into())
                .spurious_vector(vectors::SPURIOUS.into())
                .timer_mode(TimerMode::OneShot)
                .timer_divide(TimerDivide::Div16)
                .timer_initial(0)
                .set_xapic_base(lapic::xapic_base())
                .build()
                .unwrap_or_else(|why| panic!("local APIC: {why}"));
            apic.enable();
            // Again: until it was on, this was ignored (SDM 3A: 11.4.7.2).
            apic.enable_timer();
            let x2apic = leaf(1)[2] & X2APIC != 0;
            Self {
                apic,
                destination_bit: if x2apic { 0 } else { 24 },
            }
        }
    }
    /// The interrupt was taken.
    fn end_of_interrupt(&mut self) {
        // SAFETY: see above.
        unsafe { self.apic.end_of_interrupt() }
    }
    /// Interrupts another CPU.
    fn send(&mut self, vector: u8, apic_id: u32) {
        self.before_command();
        // SAFETY: see above.
        unsafe { self.apic.send_ipi(vector, apic_id << self.destination_bit) }
    }
    /// Stops all other CPUs, for good.
    fn stop_others(&mut self) {
        self.before_command();
        // SAFETY: see above; their handler knows.
        unsafe {
            self.apic
                .send_nmi_all(lapic::IpiAllShorthand::AllExcludingSelf)
        }
    }
    /// Resets another CPU.
    fn send_init(&mut self, apic_id: u32) {
        self.before_command();
        // SAFETY: see above.
        unsafe { self.apic.send_init_ipi(apic_id << self.destination_bit) }
    }
    /// Has it begin at a page below 1 MiB.
    fn send_startup(&mut self, apic_id: u32, page: u64) {
        self.before_command();
        // SAFETY: see above.
        unsafe {
            self.apic
                .send_sipi((page >> 12) as u8, apic_id << self.destination_bit)
        }
    }
    /// Waits until the command before has left (SDM 3A: 11.6.1). Has the CPU that is interrupted see what was stored before: a
    /// command that is written to a register of the processor does not wait for stores (SDM 3A: 11.12.3).
    fn before_command(&self) {
        // SAFETY: no effect but on order.
        unsafe {
            core::arch::x86_64::_mm_mfence();
            core::arch::x86_64::_mm_lfence();
        }
        // SAFETY: see above.
        while unsafe { self.apic.get_ipi_delivery_status() } {
            core::hint::spin_loop();
        }
    }
    /// See [`set_timer`].
    fn set_timer(&mut self, after_ns: Option<u64>) {
        let hz = TIMER_HZ.load(Ordering::Relaxed);
        let ticks = after_ns.map_or(0, |ns| ns.min(LONGEST_NS) * hz / 1_000_000_000 + 1);
        let ticks = ticks.min(u32::MAX.into()) as u32;
        // SAFETY: see above.
        unsafe { self.apic.set_timer_initial(ticks) }
    }
}

/// Measures the timer by the time stamp counter, over `ns`.
pub fn measure_timer(ns: u64) {
    let ticks = local(|apic| {
        // SAFETY: this CPU's own, enabled. It does not fire before it is stopped.
        unsafe {
            apic.apic.set_timer_initial(u32::MAX);
            time::spin_ns(ns);
            let left = apic.apic.timer_current();
            apic.apic.set_timer_initial(0);
            u32::MAX - left
        }
    });
    TIMER_HZ.store(u64::from(ticks) * 1_000_000_000 / ns, Ordering::Relaxed);
}

/// Has the line of an ISA interrupt come as `vector` at a CPU.
pub fn route(topology: &Topology, irq: u8, vector: u8, cpu: u32) {
    let Some(apic_id) = id_of(cpu) else { return };
    let (gsi, active_low, level) = topology.line(irq);
    let mut all = topology.io_apics();
    let Some((address, base)) = all.find(|(address, base)| {
        // SAFETY: ACPI says that there is one; its registers are mapped where they are.
        let lines = unsafe { IoApic::new(*address).max_table_entry() };
        (*base..=*base + u32::from(lines)).contains(&gsi)
    }) else {
        return;
    };
    let mut entry = RedirectionTableEntry::default();
    entry.set_vector(vector);
    entry.set_mode(IrqMode::Fixed);
    entry.set_dest(apic_id as u8);
    let mut flags = IrqFlags::empty();
    flags.set(IrqFlags::LOW_ACTIVE, active_low);
    flags.set(IrqFlags::LEVEL_TRIGGERED, level);
    entry.set_flags(flags);
    // SAFETY: as above; the vector has a handler.
    unsafe { IoApic::new(address).set_table_entry((gsi - base) as u8, entry) };
}

/// Closes the PIC pair, whose vectors would be exceptions.
pub fn close_pics() {
    for port in [0x21, 0xa1] {
        // SAFETY: the masks of the PIC pair; without one nobody answers.
        unsafe { x86_64::instructions::port::Port::<u8>::new(port).write(0xff) };
    }
}
