// SPDX-License-Identifier: MIT OR Apache-2.0
//! The backends of this binary: which one this machine has, and a VM on it. Beyond this file nobody names a vendor.

use super::host::Lwk;
use crate::kernel::sync::{Shared, SpinLock};
use palacios_core::backend::svm::Svm;
use palacios_core::backend::{Backend, Features, Unsupported};
use palacios_core::host::{CpuId, Host};
use palacios_core::memory::Memory;
use palacios_core::stats::Snapshot;
use palacios_core::vm::{CreateError, LifeError, MoveError, OpenStream, Parts, State, Vm};

/// The processor's virtualization, on every CPU.
pub enum Hardware {
    Svm(Shared<Svm<Lwk>>),
}

impl Hardware {
    /// Looks for it and switches it on.
    pub fn enable() -> Result<Self, Unsupported> {
        let svm = Svm::probe(&Lwk)?;
        Ok(Self::Svm(enable_all(svm)?))
    }

    pub fn features(&self) -> Features {
        match self {
            Self::Svm(svm) => svm.features(),
        }
    }

    /// Makes a VM.
    pub fn machine(
        &self,
        parts: Parts<Lwk>,
        stream: &mut OpenStream<'_>,
    ) -> Result<Machine, CreateError> {
        Ok(match self {
            Self::Svm(svm) => {
                let vm = Vm::new(&Lwk, svm.clone(), parts, stream)?;
                Machine::Svm(Lwk.share(vm)?)
            }
        })
    }
}

/// Switches a backend on, on all CPUs. They stay so until the machine is off.
fn enable_all<B: Backend<Lwk>>(backend: B) -> Result<Shared<B>, Unsupported> {
    let backend = Lwk.share(backend)?;
    let failed = SpinLock::new(None);
    Lwk.on_each_cpu(&|cpu| {
        if let Err(why) = backend.enable_cpu(cpu) {
            *failed.lock() = Some(why);
        }
    });
    let why = *failed.lock();
    match why {
        Some(why) => Err(why),
        None => Ok(backend),
    }
}

/// A VM on whatever hardware.
pub enum Machine {
    Svm(Shared<Vm<Lwk, Svm<Lwk>>>),
}

/// Calls the same method on whichever VM it is.
macro_rules! each {
    ($self:expr, $vm:ident => $call:expr) => {
        match $self {
            Machine::Svm($vm) => $call,
        }
    };
}

impl Machine {
    pub fn launch(&self) -> Result<(), LifeError> {
        each!(self, vm => Vm::<Lwk, _>::launch(vm))
    }
    pub fn stop(&self) -> Result<(), LifeError> {
        each!(self, vm => vm.stop())
    }
    pub fn state(&self) -> State {
        each!(self, vm => vm.state())
    }
    pub fn is_dead(&self) -> bool {
        each!(self, vm => vm.is_dead())
    }
    pub fn vcpus(&self) -> u32 {
        each!(self, vm => vm.vcpus())
    }
    pub fn move_vcpu(&self, vcpu: u32, cpu: CpuId) -> Result<(), MoveError> {
        each!(self, vm => vm.move_vcpu(vcpu, Some(cpu)))
    }
    pub fn counters(&self, vcpu: u32) -> Snapshot {
        each!(self, vm => vm.counters(vcpu))
    }
    pub fn memory(&self) -> &Memory<Lwk> {
        each!(self, vm => vm.memory())
    }
    pub fn input_ready(&self) {
        each!(self, vm => vm.input_ready())
    }
}
