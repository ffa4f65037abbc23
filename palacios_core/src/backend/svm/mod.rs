// SPDX-License-Identifier: MIT OR Apache-2.0
//! AMD's Secure Virtual Machine, with nested paging.
//!
//! Manual: AMD64 Architecture Programmer's Manual, volume 2 (24593), revision 3.41 and later; `APM 2: 15.25.6` is a section
//! of it.
//!
//! [`Svm`] holds what the host as a whole needs: for each CPU a host save area, a VMCB page for the host's own state and the
//! address-space tags; the two permission maps. [`vcpu::Vcpu`] holds a guest CPU; the other files are the parts of its work.

mod caps;
mod check;
mod cpus;
mod enter;
mod events;
mod exit;
mod intercepts;
mod permission;
mod registers;
#[cfg(test)]
mod tests;
mod vcpu;
mod vendor_msrs;
mod vmcb;

use super::cpu::{self, MSR_EFER};
use super::fpu::Layout;
use super::vendor_msrs::VendorMsrs;
use super::{Backend, Features, HostProcessor, Unsupported};
use crate::features::{Feature, GuestFeatures};
use crate::host::{CpuId, Host, NoMemory};
use crate::memory::nested::Format;
use crate::state::efer;
use caps::{Caps, Paging, VM_CR_SVMDIS};
use core::sync::atomic::Ordering::Relaxed;
use permission::msr;

pub use cpus::Svm;
pub use vcpu::Vcpu;

/// TSC_RATIO: the guest's TSC runs as the host's (APM 2: 15.30.5).
const TSC_RATIO_ONE: u64 = 1 << 32;

impl<H: Host> Svm<H> {
    fn probe_by(host: &H, cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Result<Self, Unsupported> {
        // The paging registers are looked at only where there is SVM: the MSR may not exist elsewhere.
        Caps::new(&cpuid, Paging::default())?;
        let paging = Paging {
            cr3: cpu::read_cr3(),
            cr4: cpu::read_cr4(),
            syscfg: cpu::read_msr(msr::SYSCFG).ok(),
        };
        let caps = Caps::new(&cpuid, paging)?;
        is_free()?;
        Ok(Self::new(host, caps, Layout::probe())?)
    }
    /// [`Backend::probe`] on a simulated processor: of all that is asked of it, CPUID alone cannot be caught.
    #[cfg(feature = "test-support")]
    pub fn probe_with_cpuid(
        host: &H,
        cpuid: impl Fn(u32, u32) -> [u32; 4],
    ) -> Result<Self, Unsupported> {
        Self::probe_by(host, cpuid)
    }
}

impl<H: Host> HostProcessor for Svm<H> {
    fn features(&self) -> Features {
        Features {
            backend: "svm",
            address_space_tags: self.caps.asids,
            next_rip: self.caps.next_rip,
            decode_assists: self.caps.decode_assists,
            physical_bits: self.caps.guest_physical_bits(),
            xcr0: self.fpu.allowed(),
            // Each write is intercepted, and VMRUN takes what the processor has.
            cr4: u64::MAX,
        }
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        cpu::cpuid(leaf, subleaf)
    }

    fn tsc(&self) -> u64 {
        cpu::tsc()
    }

    fn lacks(&self, feature: Feature) -> Option<&'static str> {
        self.caps.lacks(feature)
    }
}

impl<H: Host> Backend<H> for Svm<H> {
    type Vcpu = Vcpu<H>;
    const EXTENDED_TOPOLOGY: bool = true;
    const VENDOR_MSRS: &'static [VendorMsrs] = vendor_msrs::TABLE;

    fn probe(host: &H) -> Result<Self, Unsupported> {
        Self::probe_by(host, cpu::cpuid)
    }

    fn enable_cpu(&self, cpu: CpuId) -> Result<(), Unsupported> {
        let per_cpu = self.cpu(cpu).ok_or(Unsupported::NoMemory)?;
        let efer = is_free()?;
        per_cpu.enabled.store(true, Relaxed);
        // SAFETY: nobody uses SVM here; SVME alone changes nothing, and the save area is this CPU's own.
        let on = unsafe {
            cpu::write_msr(MSR_EFER, efer | efer::SVME).and_then(|()| {
                cpu::write_msr(msr::VM_HSAVE_PA, self.caps.address(per_cpu.host_save.at()))
            })
        };
        if on.is_err() {
            per_cpu.enabled.store(false, Relaxed);
            // SAFETY: what was just begun.
            unsafe { switch_off() };
            return Err(Unsupported::Firmware);
        }
        if self.caps.tsc_ratio {
            // SAFETY: another hypervisor may have left its guest's rate; a host's own is always this.
            let _ = unsafe { cpu::write_msr(msr::TSC_RATIO, TSC_RATIO_ONE) };
        }
        per_cpu.tags.restart();
        per_cpu.last_vcpu.store(0, Relaxed);
        Ok(())
    }

    fn disable_cpu(&self, cpu: CpuId) {
        let Some(per_cpu) = self.cpu(cpu) else { return };
        if !per_cpu.enabled.swap(false, Relaxed) {
            return;
        }
        // Another's save area stays: SVM is his by now, and we go without a word.
        if self.save_area_is_ours(per_cpu) || cpu::read_msr(msr::VM_HSAVE_PA) == Ok(0) {
            // SAFETY: SVM is ours, and no guest runs on this CPU now. Where a host that goes down was faster, nothing changes.
            unsafe { switch_off() };
        }
    }

    fn table_format(&self) -> Format {
        self.caps.table_format()
    }

    fn vcpu(&self, host: &H, features: &GuestFeatures) -> Result<Vcpu<H>, NoMemory> {
        Vcpu::new(host, self, features)
    }
}

/// Leaves no save area behind, and SVM off.
///
/// # Safety
/// SVM is ours, and no guest runs on this CPU.
unsafe fn switch_off() {
    // SAFETY: by the contract above.
    unsafe {
        let _ = cpu::write_msr(msr::VM_HSAVE_PA, 0);
        if let Ok(efer) = cpu::read_msr(MSR_EFER) {
            let _ = cpu::write_msr(MSR_EFER, efer & !efer::SVME);
        }
    }
}

/// Whether SVM may be switched on here (APM 2: 15.4); gives EFER.
fn is_free() -> Result<u64, Unsupported> {
    let efer = cpu::read_msr(MSR_EFER).map_err(|_| Unsupported::NoCpu)?;
    if efer & efer::SVME != 0 {
        return Err(Unsupported::Busy);
    }
    match cpu::read_msr(msr::VM_CR) {
        Ok(vm_cr) if vm_cr & VM_CR_SVMDIS != 0 => Err(Unsupported::Firmware),
        _ => Ok(efer),
    }
}
