// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whichever backend this machine has: what a host calls, so that it names none.

use super::svm::Svm;
use super::vmx::Vmx;
use super::{Backend, Features, HostProcessor, Unsupported};
use crate::features::{self, FeatureSet, Judge};
use crate::host::{CpuId, Host};
use crate::vm::{CreateError, OpenStream, Parts, Vm};

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
    ($self:expr, $it:ident => $call:expr) => {
        match $self {
            Self::Svm($it) => $call,
            Self::Vmx($it) => $call,
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
        each!(self, backend => backend.enable_cpu(cpu))
    }
    /// Switches it off there: [`Backend::disable_cpu`].
    pub fn disable_cpu(&self, cpu: CpuId) {
        each!(self, backend => backend.disable_cpu(cpu))
    }
    /// What the hardware can: [`HostProcessor::features`].
    pub fn features(&self) -> Features {
        each!(self, backend => backend.features())
    }
    /// Which features a guest has from which nothing is taken away, and why not the others: see [`features::judge`].
    pub fn judge_features<T>(&self, read: impl FnOnce(&Judge<'_>) -> T) -> T {
        each!(self, backend => features::judge(&**backend, FeatureSet::default(), read))
    }
    /// Makes a VM: see [`Vm::new`]. *Thread.*
    pub fn vm(
        &self,
        host: &H,
        parts: Parts<H>,
        stream: &mut OpenStream<'_>,
    ) -> Result<H::Shared<Vm<H>>, CreateError> {
        each!(self, backend => Vm::new(host, backend.clone(), parts, stream))
    }
}
