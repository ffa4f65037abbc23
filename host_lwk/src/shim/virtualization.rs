// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor's virtualization, which is on in all CPUs until the machine goes off.

use super::host::Lwk;
use crate::kernel::sync::SpinLock;
use palacios_core::backend::any::Hardware;
use palacios_core::backend::Unsupported;
use palacios_core::host::Host;

/// Looks for it, and switches it on in all CPUs.
pub fn enable() -> Result<Hardware<Lwk>, Unsupported> {
    let hardware = Hardware::probe(&Lwk)?;
    let failed = SpinLock::new(None);
    Lwk.on_each_cpu(&|cpu| {
        if let Err(why) = hardware.enable_cpu(cpu) {
            *failed.lock() = Some(why);
        }
    });
    let why = *failed.lock();
    why.map_or(Ok(hardware), Err)
}
