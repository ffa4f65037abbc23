// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU as its VM has it: whatever backend runs it.
#![forbid(unsafe_code)]

use super::context::RunContext;
use super::owned::Vcpu;
use super::report::VcpuReport;
use super::run::VcpuStep;
use crate::backend::{Backend, Features, HostProcessor};
use crate::features::Feature;
use crate::host::Host;
use crate::memory::Memory;
use crate::vm::shared::VmShared;

/// What a VM does with a vCPU.
pub(crate) trait AnyVcpu<H: Host>: Send {
    /// Does what is next: see [`Vcpu::step`].
    fn step(&mut self, vm: &VmShared<H>) -> VcpuStep;
    /// Describes it. It does not run.
    fn report(&self, memory: &Memory<H>) -> VcpuReport;
}

/// A vCPU, and the backend that runs it.
pub(crate) struct OnBackend<H: Host, B: Backend<H>> {
    pub(crate) vcpu: Vcpu<H, B>,
    pub(crate) backend: H::Shared<B>,
}

impl<H: Host, B: Backend<H>> AnyVcpu<H> for OnBackend<H, B> {
    fn step(&mut self, vm: &VmShared<H>) -> VcpuStep {
        let Some(shared) = vm.vcpu(self.vcpu.index) else {
            return VcpuStep::Ended;
        };
        let context = RunContext {
            vm,
            board: vm.board(),
            backend: &*self.backend,
            shared,
        };
        self.vcpu.step(&context)
    }
    fn report(&self, memory: &Memory<H>) -> VcpuReport {
        self.vcpu.report(memory)
    }
}

/// The host's processor, of a VM that does not name its backend.
pub(crate) struct ProcessorOf<S>(pub(crate) S);

impl<B: HostProcessor, S> HostProcessor for ProcessorOf<S>
where
    S: core::ops::Deref<Target = B> + Send + Sync,
{
    fn features(&self) -> Features {
        self.0.features()
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.0.cpuid(leaf, subleaf)
    }
    fn tsc(&self) -> u64 {
        self.0.tsc()
    }
    fn lacks(&self, feature: Feature) -> Option<&'static str> {
        self.0.lacks(feature)
    }
}
