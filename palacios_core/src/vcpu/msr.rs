// SPDX-License-Identifier: MIT OR Apache-2.0
//! Model-specific registers that exit. One that nobody knows is a #GP, as on a CPU that lacks it.
#![forbid(unsafe_code)]

use super::pvclock::{STEAL_TIME, SYSTEM_TIME, WALL_CLOCK};
use super::{Here, Vcpu};
use crate::backend::family::{Content, FamilyRegisters, SLOTS};
use crate::backend::{Backend, BackendVcpu, Features};
use crate::features::{Feature, GuestFeatures};
use crate::host::Host;
use crate::interrupts::lapic::GeneralProtection;
use crate::state::{cr0, efer, Exception};

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
/// What the guest put on top of its counter (SDM 3B: 17.17.3).
const TSC_ADJUST: u32 = 0x3b;
/// The microcode's revision, a number that all vendors have.
const PATCH_LEVEL: u32 = 0x8b;
const MTRR_CAP: u32 = 0xfe;
/// How many banks of machine checks there are: none, since errors of the machine are the host's (SDM 3B: 15.3.1).
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MTRR_FIRST: u32 = 0x200;
const MTRR_LAST_VARIABLE: u32 = 0x20f;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8ff;
/// The supervisor state components of XSAVES, of which guests have none.
const XSS: u32 = 0xda0;
const EFER: u32 = 0xc000_0080;

/// Eight variable ranges, fixed ranges, write-combining (SDM 3A: 11.11.1).
const MTRR_CAP_VALUE: u64 = 8 | 1 << 8 | 1 << 10;
/// Enabled, fixed ranges too; what no range covers is write-back. Firmware would have set it so.
const MTRR_DEFAULT: u64 = 1 << 11 | 1 << 10 | 6;
/// Eight pairs, eleven fixed ranges, the default type.
const MTRRS: usize = 28;
/// MCG_STATUS: RIPV, EIPV, MCIP.
const MCG_STATUS_BITS: u64 = 0b111;
/// The first of the three leaves with the processor's name.
const NAME_LEAF: u32 = 0x8000_0002;
/// APIC_BASE: x2APIC mode.
const APIC_BASE_X2APIC: u64 = 1 << 10;

/// Registers of a vCPU that neither backend nor local APIC hold.
#[derive(Clone, Debug)]
pub(super) struct Msrs {
    backend: Features,
    guest: GuestFeatures,
    /// Kept, not obeyed: nested paging gives guests write-back memory.
    mtrrs: [u64; MTRRS],
    mcg_status: u64,
    /// What the guest wrote to registers of the vendor's table.
    family: [u64; SLOTS],
}

impl Msrs {
    pub(super) fn new<H: Host, B: Backend<H>>(backend: &B, guest: &GuestFeatures) -> Self {
        let mut msrs = Self {
            backend: backend.features(),
            guest: *guest,
            mtrrs: [0; MTRRS],
            mcg_status: 0,
            family: [0; SLOTS],
        };
        msrs.power_on::<H, B>();
        msrs
    }
    /// As firmware leaves them.
    pub(super) fn power_on<H: Host, B: Backend<H>>(&mut self) {
        self.mtrrs = [0; MTRRS];
        if let Some(default) = self.mtrrs.last_mut() {
            *default = MTRR_DEFAULT;
        }
        self.mcg_status = 0;
        for row in B::FAMILY {
            if let Content::Kept { slot, initial, .. } = row.content {
                self.family[slot as usize] = initial;
            }
        }
    }
    /// What the backend offers.
    pub(super) fn backend(&self) -> &Features {
        &self.backend
    }
    /// What the guest has.
    pub(super) fn guest(&self) -> &GuestFeatures {
        &self.guest
    }

    fn mtrr(&mut self, index: u32) -> Option<&mut u64> {
        let slot = match index {
            MTRR_FIRST..=MTRR_LAST_VARIABLE => index - MTRR_FIRST,
            0x250 => 16,
            0x258..=0x259 => 17 + (index - 0x258),
            0x268..=0x26f => 19 + (index - 0x268),
            MTRR_DEF_TYPE => 27,
            _ => return None,
        };
        self.mtrrs.get_mut(slot as usize)
    }

    /// A register of the vendor's table.
    fn family<H: Host, B: Backend<H>>(&self, backend: &B, index: u32) -> Option<u64> {
        let row = FamilyRegisters::find(B::FAMILY, index)?;
        match row.content {
            Content::Constant(value) | Content::ReadOnly(value) => Some(value),
            Content::WriteOnly => None,
            Content::Kept { slot, .. } => Some(self.family[slot as usize]),
            Content::Cpuid(high, low) => {
                let high = high.map_or(0, |word| self.guest.word(word));
                Some(joined(high, self.guest.word(low)))
            }
            Content::Name => {
                let at = index.wrapping_sub(row.first);
                let [a, b, c, d] = backend.cpuid(NAME_LEAF.wrapping_add(at / 2), 0);
                Some(match at % 2 {
                    0 => joined(b, a),
                    _ => joined(d, c),
                })
            }
        }
    }
    /// Writes one; `false` if it takes nothing, or is in no table.
    fn set_family<H: Host, B: Backend<H>>(&mut self, index: u32, value: u64) -> bool {
        match FamilyRegisters::find(B::FAMILY, index).map(|row| row.content) {
            None | Some(Content::ReadOnly(_)) => false,
            Some(Content::Kept { slot, writable, .. }) => {
                let kept = &mut self.family[slot as usize];
                *kept = *kept & !writable | value & writable;
                true
            }
            Some(Content::Constant(_) | Content::WriteOnly) => true,
            Some(Content::Cpuid(..) | Content::Name) => true,
        }
    }
}

fn joined(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Whether an MTRR takes `value` (SDM 3A: 11.11.2): memory types that there are, and nothing in reserved bits.
fn valid_mtrr(index: u32, value: u64, physical_bits: u8) -> bool {
    const MASK_RESERVED: u64 = 0x7ff;
    const BASE_RESERVED: u64 = 0xf00;
    const DEF_TYPE_BITS: u64 = 0xcff;
    let is_type = |byte: u64| matches!(byte & 0xff, 0 | 1 | 4 | 5 | 6);
    let too_high = u64::MAX.checked_shl(physical_bits.into()).unwrap_or(0);
    match index {
        MTRR_FIRST..=MTRR_LAST_VARIABLE if index & 1 != 0 => {
            value & (MASK_RESERVED | too_high) == 0
        }
        MTRR_FIRST..=MTRR_LAST_VARIABLE => {
            value & (BASE_RESERVED | too_high) == 0 && is_type(value)
        }
        MTRR_DEF_TYPE => value & !DEF_TYPE_BITS == 0 && is_type(value),
        _ => value
            .to_le_bytes()
            .iter()
            .all(|byte| is_type((*byte).into())),
    }
}

const GP: Exception = Exception::general_protection(0);

impl From<GeneralProtection> for Exception {
    fn from(_: GeneralProtection) -> Self {
        GP
    }
}

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    pub(super) fn msr(&mut self, here: &Here<'_, H, B>, index: u32) -> Result<u64, Exception> {
        if !self.msrs.guest.has_register(index) {
            return Err(GP);
        }
        let now = self.now(here);
        match index {
            TSC => Ok(now.tsc),
            APIC_BASE => Ok(self.apic.base_msr()),
            X2APIC_FIRST..=X2APIC_LAST => Ok(self.apic.read_msr(index, now)?),
            TSC_DEADLINE => Ok(self.apic.tsc_deadline(now)),
            WALL_CLOCK | SYSTEM_TIME | STEAL_TIME if now.tsc_khz != 0 => {
                Ok(self.pvclock.read_msr(index))
            }
            EFER => Ok(self.arch.control().efer),
            TSC_ADJUST => Ok(self.tsc.ahead()),
            MTRR_CAP => Ok(MTRR_CAP_VALUE),
            MCG_STATUS => Ok(self.msrs.mcg_status),
            PATCH_LEVEL | MCG_CAP | XSS => Ok(0),
            _ => match self.msrs.mtrr(index) {
                Some(value) => Ok(*value),
                None => {
                    let held = self.arch.msr(index);
                    held.or_else(|| self.msrs.family(here.vm.backend(), index))
                        .ok_or(GP)
                }
            },
        }
    }

    pub(super) fn set_msr(
        &mut self,
        here: &Here<'_, H, B>,
        index: u32,
        value: u64,
    ) -> Result<(), Exception> {
        if !self.msrs.guest.has_register(index) {
            return Err(GP);
        }
        let now = self.now(here);
        match index {
            TSC => self.move_tsc(value.wrapping_sub(now.tsc)),
            TSC_ADJUST => self.move_tsc(value.wrapping_sub(self.tsc.ahead())),
            APIC_BASE => {
                if value & APIC_BASE_X2APIC != 0 && !self.msrs.guest.has(Feature::X2apic) {
                    return Err(GP);
                }
                let effect = self.apic.write_base_msr(value)?;
                self.apic_effect(here, effect);
            }
            X2APIC_FIRST..=X2APIC_LAST => {
                let effect = self.apic.write_msr(index, value, now)?;
                self.apic_effect(here, effect);
            }
            TSC_DEADLINE => {
                let effect = self.apic.write_tsc_deadline(value, now);
                self.apic_effect(here, effect);
            }
            WALL_CLOCK | SYSTEM_TIME | STEAL_TIME if now.tsc_khz != 0 => {
                let is_ram = |at| here.vm.memory().is_ram(at);
                self.pvclock.write_msr(index, value, is_ram)?;
            }
            EFER => self.set_efer(value)?,
            PATCH_LEVEL => {}
            MCG_STATUS if value & !MCG_STATUS_BITS == 0 => self.msrs.mcg_status = value,
            XSS if value == 0 => {}
            MTRR_CAP | MCG_CAP | MCG_STATUS | XSS => return Err(GP),
            _ => self.set_kept_msr(index, value)?,
        }
        Ok(())
    }

    /// Registers that are only kept: memory types, those of the backend, those of the vendor's table.
    fn set_kept_msr(&mut self, index: u32, value: u64) -> Result<(), Exception> {
        let physical_bits = self.msrs.backend.physical_bits;
        let taken = match self.msrs.mtrr(index) {
            Some(slot) => {
                let valid = valid_mtrr(index, value, physical_bits);
                if valid {
                    *slot = value;
                }
                valid
            }
            None => self.arch.set_msr(index, value) || self.msrs.set_family::<H, B>(index, value),
        };
        match taken {
            true => Ok(()),
            false => Err(GP),
        }
    }

    /// EFER (APM 2: 3.1.7): unknown bits fault, LMA cannot be written, and LME cannot change under paging.
    fn set_efer(&mut self, value: u64) -> Result<(), Exception> {
        let mut control = self.arch.control();
        let changed = control.efer ^ value;
        if value & !self.msrs.guest.efer() != 0
            || (changed & efer::LME != 0 && control.cr0 & cr0::PG != 0)
        {
            return Err(GP);
        }
        control.efer = value & !efer::LMA | control.efer & efer::LMA;
        self.arch.set_control(control);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_types_are_checked() {
        for kind in 0..=255u64 {
            let known = [0, 1, 4, 5, 6].contains(&kind);
            assert_eq!(valid_mtrr(MTRR_DEF_TYPE, kind | 0xc00, 48), known);
            assert_eq!(valid_mtrr(0x200, kind | 0x8000_0000, 48), known);
            for byte in 0..8 {
                assert_eq!(valid_mtrr(0x250, kind << (8 * byte), 48), known);
            }
        }
        assert!(valid_mtrr(0x20f, 0xffff_ffff_f800, 48));
        for reserved in [1, 1 << 10, 1 << 48, 1 << 63] {
            assert!(!valid_mtrr(0x20f, reserved, 48), "{reserved:#x}");
        }
        for reserved in [1 << 8, 1 << 11, 1 << 48, 1 << 63] {
            assert!(!valid_mtrr(0x20e, reserved, 48), "{reserved:#x}");
        }
        for reserved in [1 << 8, 1 << 9, 1 << 12, 1 << 63] {
            assert!(!valid_mtrr(MTRR_DEF_TYPE, reserved, 48), "{reserved:#x}");
        }
    }
}
