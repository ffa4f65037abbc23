// SPDX-License-Identifier: MIT OR Apache-2.0
//! VT-x on the host's CPUs: what each has for guests, and a vCPU's slot there.

use super::super::fpu::Layout;
use super::super::pages::Pages;
use super::super::tags::{Flush, Tag, Tags};
use super::super::Exit;
use super::caps::{Caps, VPIDS};
use super::instructions::{self as vmx, Scope};
use super::permission::Maps;
use crate::alloc_ext::TryPush;
use crate::host::{CpuId, Host, NoMemory};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64};

/// What a CPU needs to run guests.
pub(super) struct PerCpu<H: Host> {
    /// For VMXON (SDM 3C: 24.11.5).
    pub region: Pages<H>,
    pub enabled: AtomicBool,
    pub tags: Tags,
    /// The vCPU that ran here last.
    pub last_vcpu: AtomicU64,
}

impl<H: Host> PerCpu<H> {
    fn new(host: &H, revision: u32) -> Result<Self, NoMemory> {
        let mut region = Pages::new(host, 1)?;
        region.write(0, &revision.to_le_bytes());
        Ok(Self {
            region,
            enabled: AtomicBool::new(false),
            tags: Tags::default(),
            last_vcpu: AtomicU64::new(0),
        })
    }
}

/// VT-x on all CPUs of a host. It is to be disabled on all of them before it is dropped.
pub struct Vmx<H: Host> {
    pub(super) caps: Caps,
    pub(super) fpu: Layout,
    cpus: Vec<PerCpu<H>>,
    pub(super) msr_maps: Maps<H>,
    /// How many address-space tags a CPU has.
    pub(super) tags: u32,
    /// Names vCPUs for [`PerCpu::last_vcpu`], from 1.
    pub(super) vcpus: AtomicU64,
}

impl<H: Host> Vmx<H> {
    pub(super) fn new(host: &H, caps: Caps, fpu: Layout) -> Result<Self, NoMemory> {
        let mut cpus = Vec::new();
        for _ in 0..host.cpu_limit() {
            cpus.try_push(PerCpu::new(host, caps.revision)?)?;
        }
        Ok(Self {
            caps,
            fpu,
            cpus,
            msr_maps: Maps::new(host)?,
            tags: VPIDS,
            vcpus: AtomicU64::new(0),
        })
    }

    pub(super) fn cpu(&self, cpu: CpuId) -> Option<&PerCpu<H>> {
        self.cpus.get(cpu.0 as usize)
    }
}

/// A vCPU's slot on a host CPU: its address-space tag there, and what the processor may have cached of it.
#[derive(Debug, Default)]
pub(super) struct CpuSlot {
    /// The CPU it was on last.
    pub cpu: Option<CpuId>,
    pub tag: Tag,
    /// What the next entry must flush of translations under the tag.
    pub flush: Flush,
    /// Nested translations of its tables may be stale on this CPU.
    pub nested_stale: bool,
    /// An entry since `load` has flushed all.
    pub all_flushed: bool,
    /// The VMCS is current, and the guest's state in the registers.
    pub loaded: bool,
    /// Why it cannot be entered in this window.
    pub refused: Option<Exit>,
}

impl CpuSlot {
    /// Takes a slot on `cpu`. Gives the tag if it is a new one.
    ///
    /// Nested translations that the processor has cached there count as stale then: what other CPUs were told to forget since
    /// this one last used the tables, it was not told (SDM 3C: 28.3.3.4).
    pub(super) fn take<H: Host>(
        &mut self,
        cpu: CpuId,
        per_cpu: &PerCpu<H>,
        tags: u32,
    ) -> Option<Tag> {
        self.all_flushed = false;
        if self.cpu == Some(cpu) && per_cpu.tags.is_current(self.tag) {
            return None;
        }
        self.cpu = Some(cpu);
        self.tag = per_cpu.tags.assign(tags);
        // What the old tag had to have flushed, the new one has not.
        self.flush = per_cpu.tags.owed();
        self.nested_stale = true;
        Some(self.tag)
    }

    /// Leaves the slot, and tells the CPU what was flushed there.
    pub(super) fn leave<H: Host>(&self, vmx: &Vmx<H>) {
        if self.all_flushed {
            if let Some(per_cpu) = self.cpu.and_then(|cpu| vmx.cpu(cpu)) {
                per_cpu.tags.all_flushed();
            }
        }
    }

    /// Has the processor forget what is stale (SDM 3C: 28.3.3): of the nested tables that `ept_pointer` names, and under the tag.
    ///
    /// # Safety
    /// In VMX operation.
    pub(super) unsafe fn flush(&mut self, ept_pointer: u64) {
        // SAFETY: by the contract above; `Caps` saw to it that there are these instructions.
        unsafe {
            match core::mem::take(&mut self.flush) {
                Flush::Nothing => {}
                Flush::Tag => vmx::invvpid(Scope::One, self.tag.number.into()),
                Flush::All => {
                    vmx::invvpid(Scope::All, 0);
                    vmx::invept(Scope::All, 0);
                    (self.all_flushed, self.nested_stale) = (true, false);
                }
            }
            if core::mem::take(&mut self.nested_stale) {
                vmx::invept(Scope::One, ept_pointer);
            }
        }
    }
}
