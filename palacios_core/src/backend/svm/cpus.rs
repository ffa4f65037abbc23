// SPDX-License-Identifier: MIT OR Apache-2.0
//! SVM on the host's CPUs: what each has for guests, and a vCPU's slot there.

use super::super::cpu;
use super::super::fpu::Layout;
use super::super::pages::Pages;
use super::super::tags::{Flush, Tag, Tags};
use super::super::Exit;
use super::caps::Caps;
use super::permission::{self, msr, Maps};
use crate::alloc_ext::TryPush;
use crate::host::{CpuId, Host, NoMemory};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64};

/// What a CPU needs to run guests.
pub(super) struct PerCpu<H: Host> {
    /// Where VMRUN puts the host's state (APM 2: 15.30.4).
    pub host_save: Pages<H>,
    /// Where VMSAVE puts the rest of it.
    pub host_vmcb: Pages<H>,
    /// SVM was switched on by us.
    pub enabled: AtomicBool,
    pub tags: Tags,
    /// The vCPU that ran here last.
    pub last_vcpu: AtomicU64,
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
    pub(super) caps: Caps,
    pub(super) fpu: Layout,
    pub(super) cpus: Vec<PerCpu<H>>,
    pub(super) io_map: Pages<H>,
    pub(super) msr_maps: Maps<H>,
    /// Names vCPUs for [`PerCpu::last_vcpu`], from 1.
    pub(super) vcpus: AtomicU64,
}

impl<H: Host> Svm<H> {
    pub(super) fn new(host: &H, caps: Caps, fpu: Layout) -> Result<Self, NoMemory> {
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

    pub(super) fn cpu(&self, cpu: CpuId) -> Option<&PerCpu<H>> {
        self.cpus.get(cpu.0 as usize)
    }

    /// Nobody has put another save area in the place of ours, nor taken it away: a host that begins with SNP does so on all
    /// CPUs (SEV-SNP firmware ABI: SNP_INIT), and leaves EFER.SVME as it is.
    pub(super) fn save_area_is_ours(&self, per_cpu: &PerCpu<H>) -> bool {
        let at = cpu::read_msr(msr::VM_HSAVE_PA).map(|at| at & !self.caps.c_bit);
        at == Ok(per_cpu.host_save.at().0)
    }
}

/// A vCPU's slot on a host CPU: its address-space tag there, and what the processor may have cached of it.
#[derive(Debug, Default)]
pub(super) struct CpuSlot {
    /// The CPU it was on last.
    pub cpu: Option<CpuId>,
    pub tag: Tag,
    /// What the next entry must flush.
    pub flush: Flush,
    /// An entry since `load` has flushed all.
    pub all_flushed: bool,
    /// The address of the CPU's VMCB for the host's own state.
    pub host_vmcb: u64,
    /// The guest's floating-point state and debug registers are in.
    pub loaded: bool,
    /// Why it cannot be entered in this window.
    pub refused: Option<Exit>,
}
