// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whichever backend this machine has: what a host calls, so that it names none.

use super::svm::Svm;
use super::vmx::Vmx;
use super::{Backend, Features, Unsupported};
use crate::addr::Gpa;
use crate::devices::bus::{DetachError, DeviceInfo};
use crate::devices::layout::AttachError;
use crate::features::{self, FeatureSet, Judge};
use crate::host::{CpuId, Host, NoMemory};
use crate::memory::Memory;
use crate::names::DeviceId;
use crate::stats::Snapshot;
use crate::vcpu::report::VcpuReport;
use crate::vm::{Attachment, CreateError, LifeError, MoveError, OpenStream, Parts, State, Vm};
use alloc::vec::Vec;

/// The processor's virtualization. A clone is another handle to the same.
pub enum Hardware<H: Host> {
    /// AMD's.
    Svm(H::Shared<Svm<H>>),
    /// Intel's.
    Vmx(H::Shared<Vmx<H>>),
}

impl<H: Host> Clone for Hardware<H> {
    fn clone(&self) -> Self {
        match self {
            Self::Svm(svm) => Self::Svm(svm.clone()),
            Self::Vmx(vmx) => Self::Vmx(vmx.clone()),
        }
    }
}

/// The same expression for whichever it is.
macro_rules! each {
    ($type:ident, $self:expr, $it:ident => $call:expr) => {
        match $self {
            $type::Svm($it) => $call,
            $type::Vmx($it) => $call,
        }
    };
}

impl<H: Host> Hardware<H> {
    /// Looks at the CPU this runs on: see [`Backend::probe`].
    pub fn probe(host: &H) -> Result<Self, Unsupported> {
        match Svm::probe(host) {
            Err(Unsupported::NoCpu) => Ok(Self::Vmx(host.share(Vmx::probe(host)?)?)),
            svm => Ok(Self::Svm(host.share(svm?)?)),
        }
    }
    /// Switches virtualization on, on the CPU this runs on: [`Backend::enable_cpu`].
    pub fn enable_cpu(&self, cpu: CpuId) -> Result<(), Unsupported> {
        each!(Self, self, backend => backend.enable_cpu(cpu))
    }
    /// Switches it off there: [`Backend::disable_cpu`].
    pub fn disable_cpu(&self, cpu: CpuId) {
        each!(Self, self, backend => backend.disable_cpu(cpu))
    }
    /// What the hardware can: [`Backend::features`].
    pub fn features(&self) -> Features {
        each!(Self, self, backend => backend.features())
    }
    /// Which features a guest has from which nothing is taken away, and why not the others: see [`features::judge`].
    pub fn judge_features<T>(&self, read: impl FnOnce(&Judge<'_>) -> T) -> T {
        each!(Self, self, backend => features::judge::<H, _, _>(&**backend, FeatureSet::default(), read))
    }
    /// Makes a VM: see [`Vm::new`]. *Thread.*
    pub fn vm(
        &self,
        host: &H,
        parts: Parts<H>,
        stream: &mut OpenStream<'_>,
    ) -> Result<AnyVm<H>, CreateError> {
        Ok(match self {
            Self::Svm(svm) => AnyVm::Svm(Vm::new(host, svm.clone(), parts, stream)?),
            Self::Vmx(vmx) => AnyVm::Vmx(Vm::new(host, vmx.clone(), parts, stream)?),
        })
    }
}

/// A VM on whatever hardware. Its methods are those of [`Vm`].
pub enum AnyVm<H: Host> {
    /// On AMD's hardware.
    Svm(H::Shared<Vm<H, Svm<H>>>),
    /// On Intel's hardware.
    Vmx(H::Shared<Vm<H, Vmx<H>>>),
}

impl<H: Host> AnyVm<H> {
    /// Starts it from its image's kernel: [`Vm::launch`].
    pub fn launch(&self) -> Result<(), LifeError> {
        each!(Self, self, vm => Vm::<H, _>::launch(vm))
    }
    /// Asks it to stop: [`Vm::stop`].
    pub fn stop(&self) -> Result<(), LifeError> {
        each!(Self, self, vm => vm.stop())
    }
    /// Has it stand still: [`Vm::pause`].
    pub fn pause(&self) -> Result<(), LifeError> {
        each!(Self, self, vm => vm.pause())
    }
    /// Has it go on: [`Vm::resume`].
    pub fn resume(&self) -> Result<(), LifeError> {
        each!(Self, self, vm => vm.resume())
    }
    /// Waits for the end of its threads: [`Vm::join`].
    pub fn join(&self) {
        each!(Self, self, vm => vm.join())
    }
    /// What it is at: [`Vm::state`].
    pub fn state(&self) -> State {
        each!(Self, self, vm => vm.state())
    }
    /// No vCPU can ever wake again: [`Vm::is_dead`].
    pub fn is_dead(&self) -> bool {
        each!(Self, self, vm => vm.is_dead())
    }
    /// Its name: [`Vm::name`].
    pub fn name(&self) -> &str {
        each!(Self, self, vm => vm.name())
    }
    /// How many vCPUs it has: [`Vm::vcpus`].
    pub fn vcpus(&self) -> u32 {
        each!(Self, self, vm => vm.vcpus())
    }
    /// Which features its processors have: [`Vm::judge_features`].
    pub fn judge_features<T>(&self, read: impl FnOnce(&Judge<'_>) -> T) -> T {
        each!(Self, self, vm => vm.judge_features(read))
    }
    /// The CPU to which a vCPU is pinned: [`Vm::pin`].
    pub fn pin(&self, vcpu: u32) -> Option<CpuId> {
        each!(Self, self, vm => vm.pin(vcpu))
    }
    /// Moves a vCPU to a CPU, or lets it run on any: [`Vm::move_vcpu`].
    pub fn move_vcpu(&self, vcpu: u32, cpu: Option<CpuId>) -> Result<(), MoveError> {
        each!(Self, self, vm => vm.move_vcpu(vcpu, cpu))
    }
    /// A vCPU's counters: [`Vm::counters`].
    pub fn counters(&self, vcpu: u32) -> Snapshot {
        each!(Self, self, vm => vm.counters(vcpu))
    }
    /// What a vCPU that does not run looks like inside: [`Vm::report`]. *Thread.*
    pub fn report(&self, vcpu: u32) -> Option<VcpuReport> {
        each!(Self, self, vm => vm.report(vcpu))
    }
    /// Its RAM: [`Vm::memory`].
    pub fn memory(&self) -> &Memory<H> {
        each!(Self, self, vm => vm.memory())
    }
    /// Attaches a device: [`Vm::attach`]. *Thread.*
    pub fn attach(&self, wanted: Attachment<'_>) -> Result<DeviceId, AttachError> {
        each!(Self, self, vm => vm.attach(wanted))
    }
    /// Takes a device away: [`Vm::detach`]. *Thread.*
    pub fn detach(&self, name: &DeviceId) -> Result<(), DetachError> {
        each!(Self, self, vm => vm.detach(name))
    }
    /// Its devices, in the order in which they came. *Thread.*
    pub fn devices(&self) -> Result<Vec<DeviceInfo>, NoMemory> {
        each!(Self, self, vm => vm.bus().devices())
    }
    /// New input waits in a stream: [`Vm::input_ready`].
    pub fn input_ready(&self) {
        each!(Self, self, vm => vm.input_ready())
    }
    /// How long its image is: [`Vm::image_bytes`].
    pub fn image_bytes(&self) -> u64 {
        each!(Self, self, vm => vm.image_bytes())
    }
    /// Does something to its memory that makes translations stale: [`Vm::with_memory`].
    pub fn with_memory<R>(&self, act: impl FnOnce(&Memory<H>, &dyn Fn()) -> R) -> R {
        each!(Self, self, vm => vm.with_memory(act))
    }
    /// Takes frames away from the guest: [`Vm::revoke`].
    pub fn revoke(&self, from: Gpa, bytes: u64) -> u64 {
        each!(Self, self, vm => vm.revoke(from, bytes))
    }
}
