// SPDX-License-Identifier: MIT OR Apache-2.0
//! AMD's Secure Virtual Machine, with nested paging.
//!
//! Manual: AMD64 Architecture Programmer's Manual, volume 2 (24593), revision 3.41 and later; `APM 2: 15.25.6` is a section
//! of it.
//!
//! [`Svm`] holds what the host as a whole needs: per CPU a host save area, a VMCB page for the host's own state and the
//! address-space tags; the two permission maps. [`vcpu::Vcpu`] holds a guest CPU; the other files are the parts of its work.

mod caps;
mod check;
mod enter;
mod events;
mod exit;
mod family;
mod intercepts;
mod permission;
mod registers;
#[cfg(test)]
mod tests;
mod vcpu;
mod vmcb;

use super::cpu::{self, MSR_EFER};
use super::family::FamilyRegisters;
use super::fpu::Layout;
use super::pages::Pages;
use super::tags::Tags;
use super::{Backend, Features, Unsupported};
use crate::alloc_ext::TryPush;
use crate::features::{Feature, GuestFeatures};
use crate::host::{CpuId, Host, NoMemory};
use crate::memory::table::Format;
use crate::state::efer;
use alloc::vec::Vec;
use caps::{Caps, Paging};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use permission::{msr, Maps};

pub use vcpu::Vcpu;

/// VM_CR: SVM is switched off (APM 2: 15.30.1).
const VM_CR_SVMDIS: u64 = 1 << 4;
/// TSC_RATIO: the guest's TSC runs as the host's (APM 2: 15.30.5).
const TSC_RATIO_ONE: u64 = 1 << 32;

/// What a CPU needs to run guests.
struct PerCpu<H: Host> {
    /// Where VMRUN puts the host's state (APM 2: 15.30.4).
    host_save: Pages<H>,
    /// Where VMSAVE puts the rest of it.
    host_vmcb: Pages<H>,
    /// SVM was switched on by us.
    enabled: AtomicBool,
    tags: Tags,
    /// The vCPU that ran here last.
    last_vcpu: AtomicU64,
}

impl<H: Host> PerCpu<H> {
    fn new(host: &H) -> Result<Self, NoMemory> {
        Ok(Self {
            host_save: Pages::inside_large(host)?,
            host_vmcb: Pages::inside_large(host)?,
            enabled: AtomicBool::new(false),
            tags: Tags::default(),
            last_vcpu: AtomicU64::new(0),
        })
    }
}

/// SVM on all CPUs of a host. It is to be disabled on all of them before it is dropped.
pub struct Svm<H: Host> {
    caps: Caps,
    fpu: Layout,
    cpus: Vec<PerCpu<H>>,
    io_map: Pages<H>,
    msr_maps: Maps<H>,
    /// Names vCPUs for [`PerCpu::last_vcpu`], from 1.
    vcpus: AtomicU64,
}

impl<H: Host> Svm<H> {
    fn new(host: &H, caps: Caps, fpu: Layout) -> Result<Self, NoMemory> {
        let mut cpus = Vec::new();
        for _ in 0..host.cpu_limit() {
            cpus.try_push(PerCpu::new(host)?)?;
        }
        Ok(Self {
            caps,
            fpu,
            cpus,
            io_map: permission::io_map(host)?,
            msr_maps: Maps::new(host)?,
            vcpus: AtomicU64::new(0),
        })
    }

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

    fn cpu(&self, cpu: CpuId) -> Option<&PerCpu<H>> {
        self.cpus.get(cpu.0 as usize)
    }

    /// Nobody has put another save area in the place of ours, nor taken it away: a host that begins with SNP does so on all
    /// CPUs (SEV-SNP firmware ABI: SNP_INIT), and leaves EFER.SVME as it is.
    fn save_area_is_ours(&self, here: &PerCpu<H>) -> bool {
        let at = cpu::read_msr(msr::VM_HSAVE_PA).map(|at| at & !self.caps.c_bit);
        at == Ok(here.host_save.at().0)
    }
}

impl<H: Host> Backend<H> for Svm<H> {
    type Vcpu = Vcpu<H>;
    const EXTENDED_TOPOLOGY: bool = true;
    const FAMILY: &'static [FamilyRegisters] = family::TABLE;

    fn probe(host: &H) -> Result<Self, Unsupported> {
        Self::probe_by(host, cpu::cpuid)
    }

    fn enable_cpu(&self, cpu: CpuId) -> Result<(), Unsupported> {
        let here = self.cpu(cpu).ok_or(Unsupported::NoMemory)?;
        let efer = is_free()?;
        here.enabled.store(true, Relaxed);
        // SAFETY: nobody uses SVM here; SVME alone changes nothing, and the save area is this CPU's own.
        let on = unsafe {
            cpu::write_msr(MSR_EFER, efer | efer::SVME).and_then(|()| {
                cpu::write_msr(msr::VM_HSAVE_PA, self.caps.address(here.host_save.at()))
            })
        };
        if on.is_err() {
            here.enabled.store(false, Relaxed);
            // SAFETY: what was just begun.
            unsafe { switch_off() };
            return Err(Unsupported::Firmware);
        }
        if self.caps.tsc_ratio {
            // SAFETY: another hypervisor may have left its guest's rate; a host's own is always this.
            let _ = unsafe { cpu::write_msr(msr::TSC_RATIO, TSC_RATIO_ONE) };
        }
        here.tags.restart();
        here.last_vcpu.store(0, Relaxed);
        Ok(())
    }

    fn disable_cpu(&self, cpu: CpuId) {
        let Some(here) = self.cpu(cpu) else { return };
        if !here.enabled.swap(false, Relaxed) {
            return;
        }
        // Another's save area stays: SVM is his by now, and we go without a word.
        if self.save_area_is_ours(here) || cpu::read_msr(msr::VM_HSAVE_PA) == Ok(0) {
            // SAFETY: SVM is ours, and no guest runs on this CPU now. Where a host that goes down was faster, nothing changes.
            unsafe { switch_off() };
        }
    }

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

    fn table_format(&self) -> Format {
        self.caps.table_format()
    }

    fn lacks(&self, feature: Feature) -> Option<&'static str> {
        self.caps.lacks(feature)
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
