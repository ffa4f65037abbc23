// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local APIC's registers, by memory and by MSR.

use super::*;
use crate::interrupts::destination::x2apic_ldr;
use crate::interrupts::Destination;

/// Version 0x14, integrated; six LVT entries; no directed EOI.
const VERSION: u32 = 0x0005_0014;

/// Register numbers: an offset in the page divided by 16, or an MSR less 0x800 (SDM 3A: tables 10-1, 10-6).
pub(super) mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const RRD: u32 = 0x0c;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SPURIOUS: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ERROR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT: u32 = 0x32;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// A local APIC's registers as the guest would read them, in whichever mode it is (SDM 3A: table 10-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalApicRegisters {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// The id; in xAPIC mode it is in bits 31:24.
    pub id: u32,
    /// The version.
    pub version: u32,
    /// The task priority.
    pub tpr: u32,
    /// The processor priority.
    pub ppr: u32,
    /// The logical destination.
    pub ldr: u32,
    /// The destination format; 0 in x2APIC mode, which has none.
    pub dfr: u32,
    /// The spurious-interrupt vector and the software enable.
    pub spurious: u32,
    /// The error status.
    pub errors: u32,
    /// The interrupt command.
    pub icr: u64,
    /// The local vector table, in the order of [`Lvt`].
    pub lvt: [u32; 6],
    /// The timer's initial count.
    pub initial_count: u32,
    /// Its current count.
    pub current_count: u32,
    /// Its divide configuration.
    pub divide: u32,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    pub tsc_deadline: u64,
    /// ISR: bit `n % 32` of word `n / 32` is vector `n`, as in the two below.
    pub in_service: [u32; 8],
    /// TMR: those that are level-triggered.
    pub level: [u32; 8],
    /// IRR: those that are requested.
    pub requests: [u32; 8],
}

/// Bits of the ICR's low half that x2APIC mode reserves.
const ICR_RESERVED: u32 = 0xfff3_2000;
const ICR_READ_ONLY: u32 = 1 << 12;
/// Delivery status and remote IRR, which software may write back as read.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;

impl LocalApic {
    /// All registers at `now`, for somebody who changes nothing: what is due is seen in a copy.
    pub fn registers(&self, now: Now) -> LocalApicRegisters {
        let mut seen = self.clone();
        let mut read = |number| seen.read(number, &now).unwrap_or(0);
        let words = |vectors: &Vectors| [0, 1, 2, 3, 4, 5, 6, 7].map(|n| vectors.word(n));
        LocalApicRegisters {
            base: self.base,
            id: read(register::ID),
            version: read(register::VERSION),
            tpr: read(register::TPR),
            ppr: read(register::PPR),
            ldr: read(register::LDR),
            dfr: read(register::DFR),
            spurious: read(register::SPURIOUS),
            errors: read(register::ERROR),
            icr: self.icr,
            lvt: self.lvt,
            initial_count: read(register::INITIAL_COUNT),
            current_count: read(register::CURRENT_COUNT),
            divide: read(register::DIVIDE),
            tsc_deadline: seen.timer.tsc_deadline(),
            in_service: words(&seen.in_service),
            level: words(&seen.level),
            requests: words(&seen.requests),
        }
    }

    /// A read of `size` bytes at `offset` in the page, in xAPIC mode. Registers have 32 bits in 16 bytes; the rest is 0.
    pub fn mmio_read(&mut self, offset: u64, size: u8, now: impl Instant) -> u64 {
        let offset = offset & (PAGE_SIZE - 1);
        if offset & 0xc != 0 {
            return 0;
        }
        let number = (offset >> 4) as u32;
        let value = match number {
            // Write-only, but there.
            register::EOI => 0,
            _ => self.read(number, &now).unwrap_or_else(|| {
                self.error(error::ILLEGAL_REGISTER);
                0
            }),
        };
        let bits = u32::from(size).saturating_mul(8).min(32);
        let wanted = u32::MAX.checked_shr(32u32.wrapping_sub(bits)).unwrap_or(0);
        (value >> ((offset & 3) * 8) & wanted).into()
    }

    /// A write of `size` bytes at `offset` in the page, in xAPIC mode. What is not an aligned 32-bit access is ignored
    /// (SDM 3A: 10.4.1).
    pub fn mmio_write(&mut self, offset: u64, size: u8, value: u64, now: impl Instant) -> Effect {
        let offset = offset & (PAGE_SIZE - 1);
        if offset & 0xf != 0 || size != 4 {
            return Effect::None;
        }
        let (number, value) = ((offset >> 4) as u32, value as u32);
        match number {
            register::ICR_HIGH => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value) << 32;
                Effect::None
            }
            register::LDR => {
                self.ldr = (value >> 24) as u8;
                Effect::Routing
            }
            register::DFR => {
                self.dfr = value | 0x0fff_ffff;
                Effect::Routing
            }
            register::SELF_IPI => self.illegal_register(),
            register::ICR => self.write_icr(self.icr & !0xffff_ffff | u64::from(value)),
            register::EOI => self.write_eoi(),
            register::ERROR => self.write_errors(),
            _ if self.write(number, value, &now).is_some() => self.effect_of(number),
            // Writing what can only be read is ignored; what is not there is an error.
            _ if self.read(number, &now).is_some() => Effect::None,
            _ => self.illegal_register(),
        }
    }

    /// A read of MSR 0x800–0x8ff.
    pub fn read_msr(&mut self, msr: u32, now: impl Instant) -> Result<u64, GeneralProtection> {
        if !self.is_x2apic() {
            return Err(GeneralProtection);
        }
        match msr.wrapping_sub(MSR_X2APIC) {
            register::ICR => Ok(self.icr),
            number => self
                .read(number, &now)
                .map(u64::from)
                .ok_or(GeneralProtection),
        }
    }

    /// A write to MSR 0x800–0x8ff. Reserved bits must be zero.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: impl Instant,
    ) -> Result<Effect, GeneralProtection> {
        let number = msr.wrapping_sub(MSR_X2APIC);
        if !self.is_x2apic() {
            return Err(GeneralProtection);
        }
        if number == register::ICR {
            let legal = value as u32 & ICR_RESERVED == 0;
            return legal
                .then(|| self.write_icr(value))
                .ok_or(GeneralProtection);
        }
        let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
        if value & !Self::writable(number) != 0 {
            return Err(GeneralProtection);
        }
        match number {
            register::EOI => Ok(self.write_eoi()),
            register::ERROR => Ok(self.write_errors()),
            register::SELF_IPI => {
                self.send_to_self(value as u8);
                Ok(Effect::None)
            }
            _ => match self.write(number, value, &now) {
                Some(()) => Ok(self.effect_of(number)),
                None => Err(GeneralProtection),
            },
        }
    }

    /// The bits that may be written to a register in x2APIC mode.
    fn writable(number: u32) -> u32 {
        match number {
            register::TPR | register::SELF_IPI => 0xff,
            register::SPURIOUS => SPURIOUS_WRITABLE,
            register::INITIAL_COUNT => u32::MAX,
            register::DIVIDE => 0b1011,
            _ => Self::lvt_at(number).map_or(0, |(_, writable)| writable | LVT_READ_ONLY),
        }
    }

    /// The index in the LVT of a register, and its writable bits.
    fn lvt_at(number: u32) -> Option<(usize, u32)> {
        let at = number.checked_sub(register::LVT)? as usize;
        LVT_WRITABLE.get(at).map(|writable| (at, *writable))
    }

    /// A register that both modes have, or one that the present mode has.
    fn read(&mut self, number: u32, now: &impl Instant) -> Option<u32> {
        let x2apic = self.is_x2apic();
        Some(match number {
            register::ID if x2apic => self.id,
            register::ID => self.id << 24,
            register::VERSION => VERSION,
            register::TPR => self.tpr.into(),
            register::PPR => self.ppr().into(),
            register::APR | register::RRD if !x2apic => 0,
            register::LDR if x2apic => x2apic_ldr(self.id),
            register::LDR => u32::from(self.ldr) << 24,
            register::DFR if !x2apic => self.dfr,
            register::SPURIOUS => self.spurious,
            register::ISR..=0x17 => self.in_service.word(number & 7),
            register::TMR..=0x1f => self.level.word(number & 7),
            register::IRR..=0x27 => {
                self.tick(now.now());
                self.requests.word(number & 7)
            }
            register::ERROR => self.errors.into(),
            register::ICR if !x2apic => self.icr as u32,
            register::ICR_HIGH if !x2apic => (self.icr >> 32) as u32,
            register::INITIAL_COUNT => self.timer.initial_count(),
            register::CURRENT_COUNT => {
                let now = now.now();
                self.tick(now);
                self.timer.current_count(now)
            }
            register::DIVIDE => self.timer.divide(),
            _ => {
                let (at, _) = Self::lvt_at(number)?;
                *self.lvt.get(at)?
            }
        })
    }

    /// A plain register that both modes write alike.
    fn write(&mut self, number: u32, value: u32, now: &impl Instant) -> Option<()> {
        match number {
            register::TPR => self.tpr = value as u8,
            register::SPURIOUS => {
                self.tick(now.now());
                self.write_spurious(value & SPURIOUS_WRITABLE);
            }
            register::INITIAL_COUNT | register::DIVIDE => {
                self.write_timer(number, value, now.now())
            }
            _ => {
                let (at, writable) = Self::lvt_at(number)?;
                self.tick(now.now());
                let disabled = if self.is_software_enabled() {
                    0
                } else {
                    LVT_MASKED
                };
                *self.lvt.get_mut(at)? = value & writable | disabled;
                if at == Lvt::Timer as usize {
                    self.timer.set_mode(TimerMode::of_lvt(value));
                }
            }
        }
        Some(())
    }

    fn write_timer(&mut self, number: u32, value: u32, now: Now) {
        self.tick(now);
        match number {
            register::INITIAL_COUNT => self.timer.write_initial_count(value, now),
            _ => self.timer.write_divide(value, now),
        }
    }

    fn effect_of(&self, number: u32) -> Effect {
        match number {
            register::SPURIOUS => Effect::Routing,
            register::LVT | register::INITIAL_COUNT | register::DIVIDE => Effect::Timer,
            _ => Effect::None,
        }
    }

    /// Disabled by software, all of the LVT is masked until unmasked again (SDM 3A: 10.4.7.2).
    fn write_spurious(&mut self, value: u32) {
        self.spurious = value;
        if !self.is_software_enabled() {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
    }

    fn write_eoi(&mut self) -> Effect {
        self.eoi().map_or(Effect::None, Effect::Eoi)
    }

    fn write_errors(&mut self) -> Effect {
        self.errors = core::mem::take(&mut self.new_errors);
        Effect::None
    }

    fn illegal_register(&mut self) -> Effect {
        self.error(error::ILLEGAL_REGISTER);
        Effect::None
    }

    fn send_to_self(&mut self, vector: u8) {
        if vector < 16 {
            self.error(error::SEND_ILLEGAL_VECTOR);
        } else {
            self.accept(vector, false);
        }
    }

    /// Sends what the interrupt-command register says (SDM 3A: 10.6.1). A delivery is over at once, so its status bit
    /// never shows. Interrupts are edges here: only an INIT has a level.
    fn write_icr(&mut self, value: u64) -> Effect {
        self.icr = value & !u64::from(ICR_READ_ONLY);
        let low = value as u32;
        let vector = low as u8;
        let (asserted, level) = (low & 1 << 14 != 0, low & 1 << 15 != 0);
        let delivery = match Delivery::of_register(low) {
            Some(Delivery::Init(_)) => Delivery::Init(asserted || !level),
            Some(Delivery::ExtInt) | None => return Effect::None,
            Some(other) => other,
        };
        let has_vector = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        if has_vector && vector < 16 {
            self.error(error::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        let destination = match low >> 18 & 3 {
            0 => self.icr_destination(),
            // Only fixed interrupts may be sent to oneself by shorthand, or to all and oneself (SDM 3A: table 10-3).
            1 | 2 if delivery != Delivery::Fixed => return Effect::None,
            1 => {
                self.send_to_self(vector);
                return Effect::None;
            }
            2 => Destination::All,
            _ => Destination::Others,
        };
        Effect::Send(Message {
            destination,
            delivery,
            vector,
            level: false,
        })
    }

    fn icr_destination(&self) -> Destination {
        let high = (self.icr >> 32) as u32;
        let (to, everybody) = if self.is_x2apic() {
            (high, u32::MAX)
        } else {
            (high >> 24, 0xff)
        };
        match (self.icr & 1 << 11 != 0, to == everybody) {
            (true, _) => Destination::Logical(to),
            (false, true) => Destination::All,
            (false, false) => Destination::Physical(to),
        }
    }
}
