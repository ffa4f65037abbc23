// SPDX-License-Identifier: MIT OR Apache-2.0
//! Intel's VT-x, with nested paging (EPT), address-space tags (VPID) and unrestricted guests.
//!
//! Manual: Intel 64 and IA-32 Architectures Software Developer's Manual (325462), with the chapter numbers of the editions in
//! which chapter 23 of volume 3C introduces VMX; later ones have moved the chapters up. `SDM 3C: 27.2` is a section of it.
//!
//! [`Vmx`] holds what the host as a whole needs: for each CPU a region for VMXON and the address-space tags; the MSR bitmaps.
//! [`vcpu::Vcpu`] holds a guest CPU; the other files are the parts of its work. VMX operation lasts as long as a window:
//! `operation.rs` says why.

mod caps;
mod check;
mod controls;
mod cpus;
mod enter;
mod events;
mod exit;
mod field;
mod instructions;
mod operation;
mod permission;
mod registers;
mod samples;
mod split_locks;
#[cfg(test)]
mod tests;
mod vcpu;
mod vendor_msrs;
mod vmcs;

use super::cpu::{self, CR4_FRED};
use super::fpu::Layout;
use super::vendor_msrs::VendorMsrs;
use super::{Backend, Features, HostProcessor, Unsupported};
use crate::features::{Feature, GuestFeatures};
use crate::host::{CpuId, Host, NoMemory};
use crate::memory::nested::Format;
use crate::state::cr4;
use caps::Caps;
use core::sync::atomic::Ordering::Relaxed;
use operation::{Operation, Refused, CR4_VMXE};

pub use cpus::Vmx;
pub use vcpu::Vcpu;

impl<H: Host> Vmx<H> {
    fn probe_by(host: &H, cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Result<Self, Unsupported> {
        let control = cpu::read_cr4();
        let read = |index| cpu::read_msr(index).ok();
        let caps = Caps::new(cpuid, read, host.tsc_hz(), control & cr4::MCE != 0)?;
        if control & CR4_VMXE != 0 {
            return Err(Unsupported::Busy);
        }
        if control & CR4_FRED != 0 {
            return Err(Unsupported::Missing(
                "a way to hand the host its NMIs under FRED (boot it with fred=off)",
            ));
        }
        if !operation::data_selectors_are_null() {
            return Err(Unsupported::Missing("null data selectors in the host"));
        }
        Ok(Self::new(host, caps, Layout::probe())?)
    }
    /// [`Backend::probe`] on a simulated processor: of all that is asked of it, CPUID alone cannot be caught. It has fewer
    /// tags, so that they are used again soon.
    #[cfg(feature = "test-support")]
    pub fn probe_with_cpuid(
        host: &H,
        cpuid: impl Fn(u32, u32) -> [u32; 4],
        tags: u32,
    ) -> Result<Self, Unsupported> {
        let mut found = Self::probe_by(host, cpuid)?;
        found.tags = tags;
        Ok(found)
    }
}

impl<H: Host> HostProcessor for Vmx<H> {
    fn features(&self) -> Features {
        Features {
            backend: "vmx",
            address_space_tags: self.tags,
            next_rip: true,
            decode_assists: false,
            physical_bits: self.caps.guest_physical_bits(),
            xcr0: self.fpu.allowed(),
            cr4: self.caps.guest_cr4,
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

impl<H: Host> Backend<H> for Vmx<H> {
    type Vcpu = Vcpu<H>;
    const VENDOR_MSRS: &'static [VendorMsrs] = vendor_msrs::TABLE;

    fn probe(host: &H) -> Result<Self, Unsupported> {
        Self::probe_by(host, cpu::cpuid)
    }

    /// Switches nothing on for longer than a moment: that happens in each window.
    fn enable_cpu(&self, cpu: CpuId) -> Result<(), Unsupported> {
        let per_cpu = self.cpu(cpu).ok_or(Unsupported::NoMemory)?;
        let mut operation = Operation::default();
        // SAFETY: interrupts are off, and the region is this CPU's own.
        match unsafe { operation.enter(per_cpu.region.at().0) } {
            // SAFETY: it was just entered.
            Ok(()) => unsafe { operation.leave() },
            Err(Refused::Busy) => return Err(Unsupported::Busy),
            Err(Refused::Failed) => return Err(Unsupported::Firmware),
        }
        per_cpu.tags.restart();
        per_cpu.last_vcpu.store(0, Relaxed);
        per_cpu.enabled.store(true, Relaxed);
        Ok(())
    }

    fn disable_cpu(&self, cpu: CpuId) {
        if let Some(per_cpu) = self.cpu(cpu) {
            per_cpu.enabled.store(false, Relaxed);
        }
    }

    fn table_format(&self) -> Format {
        self.caps.table_format()
    }

    fn vcpu(&self, host: &H, features: &GuestFeatures) -> Result<Vcpu<H>, NoMemory> {
        Vcpu::new(host, self, features)
    }
}
