// SPDX-License-Identifier: MIT OR Apache-2.0
//! Model-specific registers that exit. One that nobody knows is a #GP, as on a CPU that lacks it.
#![forbid(unsafe_code)]

use super::context::AnyContext;
use super::msr_values::{valid_mtrr, MCG_STATUS, MCG_STATUS_BITS};
use super::owned::Vcpu;
use super::pvclock::{STEAL_TIME, SYSTEM_TIME, WALL_CLOCK};
use crate::backend::{Backend, BackendVcpu};
use crate::features::Feature;
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
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8ff;
/// The supervisor state components of XSAVES, of which guests have none.
const XSS: u32 = 0xda0;
const EFER: u32 = 0xc000_0080;

/// Eight variable ranges, fixed ranges, write-combining (SDM 3A: 11.11.1).
const MTRR_CAP_VALUE: u64 = 8 | 1 << 8 | 1 << 10;
/// APIC_BASE: x2APIC mode.
const APIC_BASE_X2APIC: u64 = 1 << 10;

const GP: Exception = Exception::general_protection(0);

impl From<GeneralProtection> for Exception {
    fn from(_: GeneralProtection) -> Self {
        GP
    }
}

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    pub(super) fn msr(
        &mut self,
        context: &impl AnyContext<H, B>,
        index: u32,
    ) -> Result<u64, Exception> {
        if !self.msrs.guest().has_msr(index) {
            return Err(GP);
        }
        let now = || context.now(&self.tsc);
        match index {
            TSC => Ok(now().tsc),
            APIC_BASE => Ok(self.apic.base_msr()),
            X2APIC_FIRST..=X2APIC_LAST => Ok(self.apic.read_msr(index, now)?),
            TSC_DEADLINE => Ok(self.apic.tsc_deadline(now())),
            WALL_CLOCK | SYSTEM_TIME | STEAL_TIME if now().tsc_khz != 0 => {
                Ok(self.pvclock.read_msr(index))
            }
            EFER => Ok(self.arch.control().efer),
            TSC_ADJUST => Ok(self.tsc.ahead),
            MTRR_CAP => Ok(MTRR_CAP_VALUE),
            MCG_STATUS => Ok(self.msrs.mcg_status),
            PATCH_LEVEL | MCG_CAP | XSS => Ok(0),
            _ => match self.msrs.mtrr(index) {
                Some(value) => Ok(*value),
                None => {
                    let held = self.arch.msr(index);
                    held.or_else(|| self.msrs.vendor(context.backend(), index))
                        .ok_or(GP)
                }
            },
        }
    }

    pub(super) fn set_msr(
        &mut self,
        context: &impl AnyContext<H, B>,
        index: u32,
        value: u64,
    ) -> Result<(), Exception> {
        if !self.msrs.guest().has_msr(index) {
            return Err(GP);
        }
        let now = || context.now(&self.tsc);
        match index {
            TSC => self.move_tsc(value.wrapping_sub(now().tsc)),
            TSC_ADJUST => self.move_tsc(value.wrapping_sub(self.tsc.ahead)),
            APIC_BASE => {
                if value & APIC_BASE_X2APIC != 0 && !self.msrs.guest().has(Feature::X2apic) {
                    return Err(GP);
                }
                let effect = self.apic.write_base_msr(value)?;
                self.apic_effect(context, effect);
            }
            X2APIC_FIRST..=X2APIC_LAST => {
                let effect = self.apic.write_msr(index, value, now)?;
                self.apic_effect(context, effect);
            }
            TSC_DEADLINE => {
                let effect = self.apic.write_tsc_deadline(value, now());
                self.apic_effect(context, effect);
            }
            WALL_CLOCK | SYSTEM_TIME | STEAL_TIME if now().tsc_khz != 0 => {
                let ram = context.board().ram();
                self.pvclock.write_msr(index, value, ram)?;
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
    pub(super) fn set_kept_msr(&mut self, index: u32, value: u64) -> Result<(), Exception> {
        let physical_bits = self.msrs.backend().physical_bits;
        let taken = match self.msrs.mtrr(index) {
            Some(slot) => {
                let valid = valid_mtrr(index, value, physical_bits);
                if valid {
                    *slot = value;
                }
                valid
            }
            None => self.arch.set_msr(index, value) || self.msrs.set_vendor::<H, B>(index, value),
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
        if value & !self.msrs.guest().efer() != 0
            || (changed & efer::LME != 0 && control.cr0 & cr0::PG != 0)
        {
            return Err(GP);
        }
        control.efer = value & !efer::LMA | control.efer & efer::LMA;
        self.arch.set_control(control);
        Ok(())
    }
}
