// SPDX-License-Identifier: GPL-2.0
//! The backends of this binary: which one this machine has, and a VM on it. Beyond this file nobody names a vendor.

use crate::cpus::Cpus;
use crate::error;
use crate::host::Linux;
use crate::sync::Shared;
use alloc::boxed::Box;
use kernel::prelude::*;
use palacios_core::addr::Gpa;
use palacios_core::backend::svm::Svm;
use palacios_core::backend::vmx::Vmx;
use palacios_core::backend::{Backend, Features, Unsupported};
use palacios_core::devices::ByteStream;
use palacios_core::host::{CpuId, NoMemory};
use palacios_core::memory::Memory;
use palacios_core::stats::Snapshot;
use palacios_core::vm::{CreateError, LifeError, MoveError, Parts, State, Vm};

/// The processor's virtualization, on every CPU until this is dropped.
pub(crate) struct Hardware {
    vendor: Vendor,
    _cpus: Cpus,
}

enum Vendor {
    Svm(Shared<Svm<Linux>>),
    Vmx(Shared<Vmx<Linux>>),
}

impl Hardware {
    /// Looks for it and switches it on.
    pub(crate) fn enable() -> Result<Self> {
        let vendor = Vendor::probe().map_err(|why| {
            pr_err!("{}\n", format_args!("cannot run guests here: {why}"));
            error::of_backend(why)
        })?;
        Ok(Self {
            _cpus: match &vendor {
                Vendor::Svm(svm) => Cpus::enable(svm.clone()),
                Vendor::Vmx(vmx) => Cpus::enable(vmx.clone()),
            }?,
            vendor,
        })
    }

    pub(crate) fn features(&self) -> Features {
        match &self.vendor {
            Vendor::Svm(svm) => svm.features(),
            Vendor::Vmx(vmx) => vmx.features(),
        }
    }

    /// Makes a VM.
    pub(crate) fn machine(
        &self,
        parts: Parts<Linux>,
        stream: OpenStream<'_>,
    ) -> Result<Machine, CreateError> {
        Ok(match &self.vendor {
            Vendor::Svm(svm) => Machine::Svm(vm_on(svm, parts, stream)?),
            Vendor::Vmx(vmx) => Machine::Vmx(vm_on(vmx, parts, stream)?),
        })
    }
}

/// Makes a VM on one backend. Not inlined, nor is what it calls: a kernel's stack is small, and each backend would take its
/// part of it.
#[inline(never)]
fn vm_on<B: Backend<Linux>>(
    backend: &Shared<B>,
    parts: Parts<Linux>,
    stream: OpenStream<'_>,
) -> Result<Shared<Vm<Linux, B>>, CreateError> {
    Ok(Shared::new(Vm::new(
        &Linux,
        backend.clone(),
        parts,
        stream,
    )?)?)
}

impl Vendor {
    /// Whichever this processor has.
    fn probe() -> Result<Self, Unsupported> {
        match Svm::probe(&Linux) {
            Err(Unsupported::NoCpu) => Ok(Self::Vmx(Shared::new(Vmx::probe(&Linux)?)?)),
            svm => Ok(Self::Svm(Shared::new(svm?)?)),
        }
    }
}

/// Opens the byte stream of a name.
pub(crate) type OpenStream<'a> = &'a mut dyn FnMut(&str) -> Result<Box<dyn ByteStream>, NoMemory>;

/// A VM on whatever hardware.
pub(crate) enum Machine {
    Svm(Shared<Vm<Linux, Svm<Linux>>>),
    Vmx(Shared<Vm<Linux, Vmx<Linux>>>),
}

/// Calls the same method on whichever VM it is.
macro_rules! each {
    ($self:expr, $vm:ident => $call:expr) => {
        match $self {
            Machine::Svm($vm) => $call,
            Machine::Vmx($vm) => $call,
        }
    };
}

impl Machine {
    pub(crate) fn launch(&self) -> Result<(), LifeError> {
        each!(self, vm => Vm::<Linux, _>::launch(vm))
    }
    pub(crate) fn stop(&self) -> Result<(), LifeError> {
        each!(self, vm => vm.stop())
    }
    pub(crate) fn pause(&self) -> Result<(), LifeError> {
        each!(self, vm => vm.pause())
    }
    pub(crate) fn resume(&self) -> Result<(), LifeError> {
        each!(self, vm => vm.resume())
    }
    pub(crate) fn join(&self) {
        each!(self, vm => vm.join())
    }
    pub(crate) fn state(&self) -> State {
        each!(self, vm => vm.state())
    }
    pub(crate) fn is_dead(&self) -> bool {
        each!(self, vm => vm.is_dead())
    }
    pub(crate) fn name(&self) -> &str {
        each!(self, vm => vm.name())
    }
    pub(crate) fn vcpus(&self) -> u32 {
        each!(self, vm => vm.vcpus())
    }
    pub(crate) fn pin(&self, vcpu: u32) -> Option<CpuId> {
        each!(self, vm => vm.pin(vcpu))
    }
    pub(crate) fn move_vcpu(&self, vcpu: u32, cpu: Option<CpuId>) -> Result<(), MoveError> {
        each!(self, vm => vm.move_vcpu(vcpu, cpu))
    }
    pub(crate) fn counters(&self, vcpu: u32) -> Snapshot {
        each!(self, vm => vm.counters(vcpu))
    }
    pub(crate) fn memory(&self) -> &Memory<Linux> {
        each!(self, vm => vm.memory())
    }
    pub(crate) fn input_ready(&self) {
        each!(self, vm => vm.input_ready())
    }
    pub(crate) fn revoke(&self, from: Gpa, bytes: u64) -> u64 {
        each!(self, vm => vm.revoke(from, bytes))
    }
}
