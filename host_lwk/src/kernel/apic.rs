// SPDX-License-Identifier: MIT OR Apache-2.0
//! Local APICs and I/O APICs: interrupts between CPUs, each CPU's one-shot timer, the lines of devices.

use super::acpi::Found;
use super::cpuid::leaf;
use super::{cpu, time};
use core::sync::atomic::{AtomicU64, Ordering};
use x2apic::ioapic::{IoApic, IrqFlags, IrqMode, RedirectionTableEntry};
use x2apic::lapic::{self, LocalApicBuilder, TimerDivide, TimerMode};

/// Interrupt vectors; all below are the processor's own, or nobody's.
pub const SERIAL: u8 = 0xe0;
/// From another CPU: look what there is to do.
pub const IPI: u8 = 0xf0;
/// The CPU's timer.
pub const TIMER: u8 = 0xf1;
/// An error of the local APIC.
pub const ERROR: u8 = 0xf2;
/// An interrupt that went away again.
pub const SPURIOUS: u8 = 0xff;

/// CPUID 1, ECX: the APIC is used by registers of the processor, if it can be.
const X2APIC: u32 = 1 << 21;
/// The longest time that a timer is set for: its product with the rate of any APIC fits in 64 bits.
const LONGEST_NS: u64 = 10_000_000_000;

/// The rate of all local timers, as they are divided here.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);

/// A CPU's own APIC.
pub struct LocalApic {
    apic: lapic::LocalApic,
    /// Where in the upper half of a command the destination begins (SDM 3A: 11.6.1, 11.12.9).
    destination_bit: u32,
}

/// Runs `f` on this CPU's. With interrupts off, and not within itself.
pub fn local<R>(f: impl FnOnce(&mut LocalApic) -> R) -> R {
    // SAFETY: this CPU's, with interrupts off: nobody else refers to it.
    match unsafe { &mut *cpu::current().apic.get() } {
        Some(apic) => f(apic),
        None => panic!("no local APIC yet"),
    }
}

// Each step below needs what the crate asks for: the local APIC of the CPU this runs on, enabled.
impl LocalApic {
    /// Switches this CPU's on.
    ///
    /// # Safety
    /// Once on each CPU; the interrupt table stands.
    pub unsafe fn enable() -> Self {
        // SAFETY: by the contract above; the registers are mapped where they are.
        unsafe {
            let mut apic = LocalApicBuilder::new()
                .timer_vector(TIMER.into())
                .error_vector(ERROR.into())
                .spurious_vector(SPURIOUS.into())
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
    pub fn end_of_interrupt(&mut self) {
        // SAFETY: see above.
        unsafe { self.apic.end_of_interrupt() }
    }
    /// Interrupts another CPU.
    pub fn send(&mut self, vector: u8, apic_id: u32) {
        self.settle();
        // SAFETY: see above.
        unsafe { self.apic.send_ipi(vector, apic_id << self.destination_bit) }
    }
    /// Stops all other CPUs, for good.
    pub fn stop_others(&mut self) {
        self.settle();
        // SAFETY: see above; their handler knows.
        unsafe {
            self.apic
                .send_nmi_all(lapic::IpiAllShorthand::AllExcludingSelf)
        }
    }
    /// Resets another CPU.
    pub fn send_init(&mut self, apic_id: u32) {
        self.settle();
        // SAFETY: see above.
        unsafe { self.apic.send_init_ipi(apic_id << self.destination_bit) }
    }
    /// Has it begin at a page below 1 MiB.
    pub fn send_startup(&mut self, apic_id: u32, page: u64) {
        self.settle();
        // SAFETY: see above.
        unsafe {
            self.apic
                .send_sipi((page >> 12) as u8, apic_id << self.destination_bit)
        }
    }
    /// The one before has left (SDM 3A: 11.6.1), and who is interrupted finds what was stored before: a command that is
    /// written to a register of the processor does not wait for stores (SDM 3A: 11.12.3).
    fn settle(&self) {
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
    /// Has the timer fire `after_ns` from now, or a little later, or before that if it cannot count so far; `None`: never.
    pub fn set_timer(&mut self, after_ns: Option<u64>) {
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

/// Has the line of an ISA interrupt come as `vector` at the CPU of `apic_id`.
pub fn route(found: &Found, irq: u8, vector: u8, apic_id: u32) {
    let (gsi, active_low, level) = found.line(irq);
    let mut first = found.io_apics();
    let Some((address, base)) = first.find(|(address, base)| {
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
