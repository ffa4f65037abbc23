// SPDX-License-Identifier: MIT OR Apache-2.0
//! Model-specific registers that exit. One that nobody knows is a #GP, as on a CPU that lacks it.
#![forbid(unsafe_code)]

use super::pvclock::{STEAL_TIME, SYSTEM_TIME, WALL_CLOCK};
use super::{Here, Vcpu};
use crate::backend::{Backend, BackendVcpu, Features};
use crate::host::Host;
use crate::interrupts::lapic::GeneralProtection;
use crate::state::{cr0, efer, Exception};

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
/// The microcode's revision, a number that all vendors have.
const PATCH_LEVEL: u32 = 0x8b;
const MTRR_CAP: u32 = 0xfe;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8ff;
const EFER: u32 = 0xc000_0080;

/// Eight variable ranges, fixed ranges, write-combining (SDM 3A: 11.11.1).
const MTRR_CAP_VALUE: u64 = 8 | 1 << 8 | 1 << 10;
/// Enabled, fixed ranges too; what no range covers is write-back. Firmware would have set it so.
const MTRR_DEFAULT: u64 = 1 << 11 | 1 << 10 | 6;
/// Eight pairs, eleven fixed ranges, the default type.
const MTRRS: usize = 28;

/// Registers of a vCPU that neither backend nor local APIC hold.
#[derive(Clone, Debug)]
pub(super) struct Msrs {
    features: Features,
    /// The bits of EFER that there are.
    efer: u64,
    /// Kept, not obeyed: nested paging gives guests write-back memory.
    mtrrs: [u64; MTRRS],
}

impl Msrs {
    pub(super) fn new<H: Host, B: Backend<H>>(backend: &B) -> Self {
        let mut mtrrs = [0; MTRRS];
        if let Some(default) = mtrrs.last_mut() {
            *default = MTRR_DEFAULT;
        }
        Self {
            features: backend.features(),
            efer: efer_bits(backend.cpuid(0x8000_0001, 0)[3]),
            mtrrs,
        }
    }
    /// What the backend offers.
    pub(super) fn features(&self) -> &Features {
        &self.features
    }

    fn mtrr(&mut self, index: u32) -> Option<&mut u64> {
        let slot = match index {
            0x200..=0x20f => index - 0x200,
            0x250 => 16,
            0x258..=0x259 => 17 + (index - 0x258),
            0x268..=0x26f => 19 + (index - 0x268),
            MTRR_DEF_TYPE => 27,
            _ => return None,
        };
        self.mtrrs.get_mut(slot as usize)
    }
}

/// The bits of EFER that a guest may set, by the EDX of CPUID leaf 0x8000_0001 (APM 2: 3.1.7). The processor would refuse others,
/// but not before it is entered.
fn efer_bits(features: u32) -> u64 {
    const FFXSR: u32 = 1 << 25;
    let all = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    match features & FFXSR {
        0 => all,
        _ => all | efer::FFXSR,
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
            MTRR_CAP => Ok(MTRR_CAP_VALUE),
            PATCH_LEVEL => Ok(0),
            _ => match self.msrs.mtrr(index) {
                Some(value) => Ok(*value),
                None => self.arch.msr(index).or(B::fixed_msr(index)).ok_or(GP),
            },
        }
    }

    pub(super) fn set_msr(
        &mut self,
        here: &Here<'_, H, B>,
        index: u32,
        value: u64,
    ) -> Result<(), Exception> {
        let now = self.now(here);
        match index {
            TSC => self.write_tsc(here, value),
            APIC_BASE => {
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
            _ => match self.msrs.mtrr(index) {
                Some(slot) => *slot = value,
                None if self.arch.set_msr(index, value) => {}
                // What is written there would change the machine, which is not the guest's.
                None if B::fixed_msr(index).is_some() => {}
                None => return Err(GP),
            },
        }
        Ok(())
    }

    /// EFER (APM 2: 3.1.7): unknown bits fault, LMA cannot be written, and LME cannot change under paging.
    fn set_efer(&mut self, value: u64) -> Result<(), Exception> {
        let mut control = self.arch.control();
        let changed = control.efer ^ value;
        if value & !self.msrs.efer != 0 || (changed & efer::LME != 0 && control.cr0 & cr0::PG != 0)
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
    fn efer_has_what_cpuid_says() {
        assert_eq!(efer_bits(u32::MAX), 0x4d01);
        assert_eq!(efer_bits(!(1 << 25)), 0xd01);
    }
}
