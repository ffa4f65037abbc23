// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local APIC, in xAPIC and x2APIC mode (SDM 3A: chapter 10; APM 2: chapter 16).
//!
//! One belongs to each vCPU's thread alone. Other threads route to it by its [`DestinationFilter`] and leave what they
//! send in the vCPU's pending words; the owner takes it in with [`LocalApic::accept`]. What a register access asks of the
//! rest of the machine it returns as an [`Effect`]: nothing here locks, allocates or calls out.
#![forbid(unsafe_code)]

mod registers;
mod saved;
#[cfg(test)]
mod tests;

pub use registers::LocalApicRegisters;

use super::apic_timer::{ApicTimer, Instant, Now, TimerMode};
use super::destination::{ApicMode, DestinationFilter};
use super::{Delivery, Message};
use crate::addr::{Gpa, PAGE_SIZE};

/// Where the registers are after a reset.
pub const BASE_GPA: u64 = 0xfee0_0000;
/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The first MSR of x2APIC mode; there are 256.
pub const MSR_X2APIC: u32 = 0x800;

/// Bits of IA32_APIC_BASE (SDM 3A: 10.4.4).
mod base {
    pub const BSP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
}

/// Bits of the error status register (SDM 3A: 10.5.3).
mod error {
    pub const SEND_ILLEGAL_VECTOR: u8 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u8 = 1 << 6;
    pub const ILLEGAL_REGISTER: u8 = 1 << 7;
}

const SPURIOUS_ENABLE: u32 = 1 << 8;
/// Vector, software enable, focus checking.
const SPURIOUS_WRITABLE: u32 = 0x3ff;
const DFR_FLAT: u32 = 0xffff_ffff;
const LVT_MASKED: u32 = 1 << 16;
/// A local vector table entry, in the order of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lvt {
    /// The timer.
    Timer,
    /// The thermal sensor.
    Thermal,
    /// Performance counters.
    Performance,
    /// Local interrupt 0 (LINT0), to which the PIC pair is wired.
    Lint0,
    /// Local interrupt 1 (LINT1), to which the source of NMIs is wired.
    Lint1,
    /// Errors of this APIC.
    Error,
}

impl Lvt {
    /// All of them, in that order.
    pub const ALL: [Self; 6] = [
        Self::Timer,
        Self::Thermal,
        Self::Performance,
        Self::Lint0,
        Self::Lint1,
        Self::Error,
    ];
}

/// The bits software can set in each entry.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

/// What a register access asks of the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Route this message; the sender is this vCPU.
    Send(Message),
    /// A level-triggered vector ended: tell the I/O APICs.
    Eoi(u8),
    /// [`LocalApic::deadline_ns`] may have changed.
    Timer,
    /// [`LocalApic::filter`], [`LocalApic::mmio_page`] and [`LocalApic::deadline_ns`] may have changed.
    Routing,
}

/// The access is a general-protection fault with error code 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// One bit a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vectors([u64; 4]);

impl Vectors {
    const fn get(&self, vector: u8) -> bool {
        self.0[(vector >> 6) as usize] >> (vector & 63) & 1 != 0
    }
    fn set(&mut self, vector: u8, to: bool) {
        let bit = 1 << (vector & 63);
        let word = &mut self.0[usize::from(vector >> 6)];
        *word = if to { *word | bit } else { *word & !bit };
    }
    fn highest(&self) -> Option<u8> {
        let words = [192u8, 128, 64, 0].into_iter().zip(self.0.iter().rev());
        let mut found = words.filter_map(|(first, word)| {
            let bit = word.checked_ilog2()? as u8;
            Some(first | bit)
        });
        found.next()
    }
    /// The 32 vectors from `32 * at` on, as a register shows them.
    fn word(&self, at: u32) -> u32 {
        let word = self.0[(at >> 1 & 3) as usize];
        (word >> ((at & 1) * 32)) as u32
    }
}

/// A local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    /// The x2APIC id; its low byte is the xAPIC id.
    id: u32,
    is_bsp: bool,
    /// Bits of IA32_APIC_BASE that hold an address on this CPU.
    base_address_mask: u64,
    base: u64,
    tpr: u8,
    ldr: u8,
    dfr: u32,
    spurious: u32,
    requests: Vectors,
    in_service: Vectors,
    /// Of the requests and services, those that end with a broadcast.
    level: Vectors,
    /// The ESR as it reads, and what the next write to it will show.
    errors: u8,
    new_errors: u8,
    icr: u64,
    lvt: [u32; 6],
    timer: ApicTimer,
}

impl LocalApic {
    /// The APIC of vCPU `id` after a reset, on a CPU with addresses of `physical_bits` bits.
    pub fn new(id: u32, is_bsp: bool, physical_bits: u8) -> Self {
        let above = u64::MAX.checked_shl(physical_bits.into()).unwrap_or(0);
        Self {
            id,
            is_bsp,
            base_address_mask: !above & !(PAGE_SIZE - 1),
            base: BASE_GPA | base::ENABLE | if is_bsp { base::BSP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: DFR_FLAT,
            spurious: 0xff,
            requests: Vectors::default(),
            in_service: Vectors::default(),
            level: Vectors::default(),
            errors: 0,
            new_errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            timer: ApicTimer::new(),
        }
    }

    /// Back to the state after power-on: enabled globally, disabled by software, all of the LVT masked.
    pub fn reset(&mut self) {
        let physical = u64::from(64 - self.base_address_mask.leading_zeros());
        *self = Self::new(self.id, self.is_bsp, physical as u8);
    }

    /// INIT: as a reset, but address and mode stay (SDM 3A: 10.4.7.3).
    pub fn init(&mut self) {
        let base = self.base;
        self.reset();
        self.base = base;
    }

    /// The state in which firmware hands the bootstrap processor over, so that a kernel that knows only the PIC pair gets
    /// its interrupts: LINT0 takes ExtINT and LINT1 NMI (MultiProcessor Specification 1.4: 3.6.2.2).
    pub fn enter_virtual_wire_mode(&mut self) {
        self.spurious |= SPURIOUS_ENABLE;
        self.lvt[Lvt::Lint0 as usize] = 0b111 << 8;
        self.lvt[Lvt::Lint1 as usize] = 0b100 << 8;
    }

    /// The mode, from IA32_APIC_BASE.
    pub const fn mode(&self) -> ApicMode {
        match (self.base & base::ENABLE != 0, self.base & base::X2APIC != 0) {
            (false, _) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
        }
    }

    const fn is_x2apic(&self) -> bool {
        matches!(self.mode(), ApicMode::X2Apic)
    }

    const fn is_software_enabled(&self) -> bool {
        self.spurious & SPURIOUS_ENABLE != 0
    }

    /// The page at which the registers answer, in xAPIC mode.
    pub fn mmio_page(&self) -> Option<Gpa> {
        (self.mode() == ApicMode::XApic).then_some(Gpa(self.base & self.base_address_mask))
    }

    /// What other threads need to route messages here.
    pub fn filter(&self) -> DestinationFilter {
        DestinationFilter {
            id: self.id,
            mode: self.mode(),
            software_enabled: self.is_software_enabled(),
            ldr: self.ldr,
            cluster: self.dfr >> 28 == 0,
            priority: self.arbitration_class(),
        }
    }
}

/// Interrupts on their way to the processor.
impl LocalApic {
    /// Takes in a vector that was routed here. `level` asks for a broadcast at its end. Whether it was accepted: one
    /// below 16 is an error instead, and an APIC that is disabled takes none.
    pub fn accept(&mut self, vector: u8, level: bool) -> bool {
        if self.mode() == ApicMode::Disabled || !self.is_software_enabled() {
            return false;
        }
        if vector < 16 {
            self.error(error::RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        self.requests.set(vector, true);
        self.level.set(vector, level);
        true
    }

    /// The vector to inject once the processor takes interrupts: the highest request, if its class is above the
    /// processor's priority (SDM 3A: 10.8.3).
    pub fn next_interrupt(&self) -> Option<u8> {
        let vector = self.requests.highest()?;
        let deliverable = self.mode() != ApicMode::Disabled && vector >> 4 > self.ppr() >> 4;
        deliverable.then_some(vector)
    }

    /// The highest vector that was requested and is not in service yet.
    pub fn highest_request(&self) -> Option<u8> {
        self.requests.highest()
    }

    /// `vector` was requested and is not in service yet.
    pub fn is_requested(&self, vector: u8) -> bool {
        self.requests.get(vector)
    }

    /// Whether any interrupt waits.
    #[inline]
    pub fn has_requests(&self) -> bool {
        let [a, b, c, d] = self.requests.0;
        a | b | c | d != 0
    }

    /// The class of the highest request that only the task priority may be holding back: what is in service would let it in.
    pub fn waiting_class(&self) -> Option<u8> {
        let class = self.requests.highest()? >> 4;
        let served = self.in_service.highest().unwrap_or(0) >> 4;
        (self.mode() != ApicMode::Disabled && class > served).then_some(class)
    }

    /// The processor took `vector`: its request becomes a service.
    pub fn start_service(&mut self, vector: u8) {
        self.requests.set(vector, false);
        self.in_service.set(vector, true);
    }

    /// Ends the highest service; the vector, if the I/O APICs must be told.
    pub fn eoi(&mut self) -> Option<u8> {
        let vector = self.in_service.highest()?;
        self.in_service.set(vector, false);
        self.level.get(vector).then_some(vector)
    }

    /// The processor-priority register (SDM 3A: 10.8.3.1).
    pub fn ppr(&self) -> u8 {
        let served = self.in_service.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= served {
            self.tpr
        } else {
            served
        }
    }

    /// The class of the most urgent of what the processor does or has waiting (SDM 3A: 10.6.2.4).
    fn arbitration_class(&self) -> u8 {
        let waiting = self.requests.highest().unwrap_or(0);
        self.ppr().max(waiting) >> 4
    }

    /// CR8, the class of the task priority.
    pub const fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// A write to CR8; only its low four bits exist.
    pub fn set_cr8(&mut self, class: u8) {
        self.tpr = class << 4;
    }

    /// Whether the PIC pair's output reaches this processor through LINT0.
    pub const fn takes_extint(&self) -> bool {
        let lint0 = self.lvt[Lvt::Lint0 as usize];
        let takes = matches!(Delivery::of_register(lint0), Some(Delivery::ExtInt));
        matches!(self.mode(), ApicMode::Disabled) || takes && lint0 & LVT_MASKED == 0
    }

    /// Whether the PIC pair's output is an NMI here.
    pub const fn takes_pic_as_nmi(&self) -> bool {
        let lint0 = self.lvt[Lvt::Lint0 as usize];
        matches!(Delivery::of_register(lint0), Some(Delivery::Nmi)) && lint0 & LVT_MASKED == 0
    }

    /// A local source raised its interrupt. One with a vector is accepted here; any other is returned, for the processor.
    /// A level-triggered source is treated as edge-triggered.
    pub fn local_interrupt(&mut self, source: Lvt) -> Option<Delivery> {
        if self.mode() == ApicMode::Disabled {
            // Without the APIC these two inputs are the processor's INTR and NMI.
            return match source {
                Lvt::Lint0 => Some(Delivery::ExtInt),
                Lvt::Lint1 => Some(Delivery::Nmi),
                _ => None,
            };
        }
        let entry = self.lvt[source as usize];
        if entry & LVT_MASKED != 0 {
            return None;
        }
        match Delivery::of_register(entry) {
            Some(Delivery::Fixed) => {
                self.accept(entry as u8, false);
                None
            }
            Some(Delivery::LowestPriority | Delivery::Startup) | None => None,
            other => other,
        }
    }

    /// Notes an error. The first since the ESR was written interrupts.
    fn error(&mut self, bit: u8) {
        let first = self.new_errors == 0;
        self.new_errors |= bit;
        if first {
            self.local_interrupt(Lvt::Error);
        }
    }
}

/// The timer.
impl LocalApic {
    /// When [`LocalApic::tick`] is next wanted. A masked timer wants none: what it counts is worked out when it is read.
    /// Asked again without a change it gives the same answer, but for a TSC deadline whose clocks drift.
    pub fn deadline_ns(&mut self, now: Now) -> Option<u64> {
        let masked = self.lvt[Lvt::Timer as usize] & LVT_MASKED != 0;
        (!masked).then(|| self.timer.deadline_ns(now)).flatten()
    }

    /// Has the timer make no interrupt before `until_ns`.
    pub fn hold_timer(&mut self, until_ns: u64) {
        self.timer.hold(until_ns);
    }

    /// The vector of the timer's interrupts.
    pub const fn timer_vector(&self) -> u8 {
        self.lvt[Lvt::Timer as usize] as u8
    }

    /// Makes the interrupt that is due, if one is.
    pub fn tick(&mut self, now: Now) {
        if self.timer.settle(now) {
            self.local_interrupt(Lvt::Timer);
        }
    }

    /// A read of IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&mut self, now: Now) -> u64 {
        self.tick(now);
        self.timer.tsc_deadline()
    }

    /// The vCPU's counter, which stands at `now_tsc`, no longer runs at `khz`: a deadline on it stays as far away in time.
    pub(crate) fn change_tsc_rate(&mut self, now_tsc: u64, khz: u32, new_khz: u32) {
        self.timer.change_tsc_rate(now_tsc, khz, new_khz);
    }

    /// A write to IA32_TSC_DEADLINE.
    pub fn write_tsc_deadline(&mut self, tsc: u64, now: Now) -> Effect {
        self.tick(now);
        self.timer.write_tsc_deadline(tsc);
        Effect::Timer
    }
}

/// IA32_APIC_BASE.
impl LocalApic {
    /// A read of IA32_APIC_BASE.
    pub const fn base_msr(&self) -> u64 {
        self.base
    }

    /// A write to IA32_APIC_BASE. Legal are the transitions of SDM 3A: figure 10-27; the bootstrap flag stays what it is.
    pub fn write_base_msr(&mut self, value: u64) -> Result<Effect, GeneralProtection> {
        let flags = base::BSP | base::X2APIC | base::ENABLE;
        if value & !(self.base_address_mask | flags) != 0 {
            return Err(GeneralProtection);
        }
        let to = match (value & base::ENABLE != 0, value & base::X2APIC != 0) {
            (false, false) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
            (false, true) => return Err(GeneralProtection),
        };
        match (self.mode(), to) {
            (ApicMode::Disabled, ApicMode::X2Apic) | (ApicMode::X2Apic, ApicMode::XApic) => {
                return Err(GeneralProtection)
            }
            // Disabled, it forgets.
            (_, ApicMode::Disabled) => self.init(),
            // All but the logical id and the ICR stays, and the id is what it was made with (SDM 3A: 10.12.5.1).
            (ApicMode::XApic, ApicMode::X2Apic) => self.icr = 0,
            _ => {}
        }
        self.base = value & !base::BSP | self.base & base::BSP;
        Ok(Effect::Routing)
    }
}
