// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU as its VM has it: whatever backend runs it.
#![forbid(unsafe_code)]

use super::context::RunContext;
use super::interrupts_look::VcpuInterrupts;
use super::owned::Vcpu;
use super::report::VcpuReport;
use super::run::VcpuStep;
use crate::backend::{Backend, Features, HostProcessor};
use crate::features::Feature;
use crate::host::Host;
use crate::memory::walk::Paging;
use crate::memory::Memory;
use crate::state_io::{StateError, StateWriter};
use crate::vm::shared::VmShared;

/// What a VM does with a vCPU.
pub(crate) trait AnyVcpu<H: Host>: Send {
    /// Does what is next: see [`Vcpu::step`].
    fn step(&mut self, vm: &VmShared<H>) -> VcpuStep;
    /// Takes in what others have left for it: see [`Vcpu::catch_up`].
    fn catch_up(&mut self, vm: &VmShared<H>);
    /// Describes it. It is out of the guest.
    fn report(&self, memory: &Memory<H>) -> VcpuReport;
    /// Writes it down: see [`Vcpu::record`].
    fn save(&mut self, vm: &VmShared<H>, to: &mut StateWriter<'_>) -> Result<(), StateError>;
    /// Whether it can go on from that record.
    fn check(&self, vm: &VmShared<H>, record: &[u8]) -> Result<(), StateError>;
    /// Goes on from a record: see [`Vcpu::restore`].
    fn restore(&mut self, vm: &VmShared<H>, record: &[u8]) -> Result<(), StateError>;
    /// Its VM's counter stood at `tsc` and ran at `khz` before it was loaded: see [`Vcpu::count_tsc_from`].
    fn count_tsc_from(&mut self, vm: &VmShared<H>, tsc: u64, khz: u32);
    /// How it translates.
    fn paging(&self) -> Paging;
    /// What is on its way to it. It is out of the guest.
    fn interrupts(&self, vm: &VmShared<H>) -> Option<VcpuInterrupts>;
}

/// A vCPU, and the backend that runs it.
pub(crate) struct OnBackend<H: Host, B: Backend<H>> {
    pub(crate) vcpu: Vcpu<H, B>,
    pub(crate) backend: H::Shared<B>,
}

/// Where the vCPU of that number runs. `None`: the VM has no such.
fn context_of<'a, H: Host, B: Backend<H>>(
    vm: &'a VmShared<H>,
    backend: &'a B,
    index: u32,
) -> Option<RunContext<'a, H, B>> {
    Some(RunContext {
        vm,
        board: vm.board(),
        backend,
        shared: vm.vcpu(index)?,
    })
}

const NO_SUCH_VCPU: StateError = StateError::Value("vcpu");

impl<H: Host, B: Backend<H>> AnyVcpu<H> for OnBackend<H, B> {
    fn step(&mut self, vm: &VmShared<H>) -> VcpuStep {
        match context_of(vm, &*self.backend, self.vcpu.index) {
            Some(context) => self.vcpu.step(&context),
            None => VcpuStep::Ended,
        }
    }
    fn catch_up(&mut self, vm: &VmShared<H>) {
        if let Some(context) = context_of(vm, &*self.backend, self.vcpu.index) {
            self.vcpu.catch_up(&context);
        }
    }
    fn save(&mut self, vm: &VmShared<H>, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        let context = context_of(vm, &*self.backend, self.vcpu.index);
        let record = self.vcpu.record(&context.ok_or(NO_SUCH_VCPU)?)?;
        record.save(to)
    }
    fn check(&self, vm: &VmShared<H>, record: &[u8]) -> Result<(), StateError> {
        let context = context_of(vm, &*self.backend, self.vcpu.index);
        self.vcpu
            .read_record(&context.ok_or(NO_SUCH_VCPU)?, record)
            .map(|_| ())
    }
    fn restore(&mut self, vm: &VmShared<H>, record: &[u8]) -> Result<(), StateError> {
        let context = context_of(vm, &*self.backend, self.vcpu.index);
        let context = context.ok_or(NO_SUCH_VCPU)?;
        let record = self.vcpu.read_record(&context, record)?;
        self.vcpu.restore(&context, &record)
    }
    fn count_tsc_from(&mut self, vm: &VmShared<H>, tsc: u64, khz: u32) {
        self.vcpu.count_tsc_from(vm.clock().tsc_khz(), tsc, khz);
    }
    fn report(&self, memory: &Memory<H>) -> VcpuReport {
        self.vcpu.report(memory)
    }
    fn paging(&self) -> Paging {
        self.vcpu.paging()
    }
    fn interrupts(&self, vm: &VmShared<H>) -> Option<VcpuInterrupts> {
        let context = context_of(vm, &*self.backend, self.vcpu.index)?;
        Some(self.vcpu.interrupts(&context))
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
