// SPDX-License-Identifier: GPL-2.0
//! What the module has of the processor: the backend that makes VMs, and with it the switch that keeps virtualization on. The switch itself is in
//! `virtualization.rs`.

use crate::error;
use crate::host::Linux;
use crate::virtualization::Virtualization;
use kernel::prelude::*;
use palacios_core::backend::any;
use palacios_core::backend::Features;
use palacios_core::features::Judge;
use palacios_core::host::Host;
use palacios_core::vm::{CreateError, OpenStream, Parts};

/// A VM.
pub(crate) type Vm = palacios_core::vm::Vm<Linux>;
/// A reference to one.
pub(crate) type SharedVm = <Linux as Host>::Shared<Vm>;

/// The backend, and virtualization on every CPU until this is dropped.
pub(crate) struct Hardware {
    backend: any::Hardware<Linux>,
    _virtualization: Virtualization,
}

impl Hardware {
    /// Looks for it and switches it on.
    pub(crate) fn enable() -> Result<Self> {
        let backend = any::Hardware::probe(&Linux).map_err(|why| {
            pr_err!("{}\n", format_args!("cannot run guests here: {why}"));
            error::of_backend(why)
        })?;
        Ok(Self {
            _virtualization: Virtualization::enable(backend.clone())?,
            backend,
        })
    }

    pub(crate) fn features(&self) -> Features {
        self.backend.features()
    }

    /// Which features a guest has from which nothing is taken away.
    pub(crate) fn judge_features<T>(&self, read: impl FnOnce(&Judge<'_>) -> T) -> T {
        self.backend.judge_features(read)
    }

    /// Makes a VM.
    pub(crate) fn vm(
        &self,
        parts: Parts<Linux>,
        stream: &mut OpenStream<'_>,
    ) -> Result<SharedVm, CreateError> {
        self.backend.vm(&Linux, parts, stream)
    }
}
