// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a vCPU's methods need besides the vCPU itself.
#![forbid(unsafe_code)]

use super::shared::VcpuShared;
use crate::backend::Backend;
use crate::host::Host;
use crate::interfaces::Clock;
use crate::interrupts::apic_timer::Now;
use crate::vm::board::Board;
use crate::vm::shared::VmShared;

/// Where a vCPU runs. Its thread makes it once, and it is handed down to whatever handles an exit.
pub(crate) struct RunContext<'a, H: Host, B> {
    /// What the vCPUs of the VM share.
    pub(crate) vm: &'a VmShared<H>,
    /// Of that, what devices are wired to as well.
    pub(crate) board: &'a Board<H>,
    pub(crate) backend: &'a B,
    /// What others see of this vCPU.
    pub(crate) shared: &'a VcpuShared<H>,
}

impl<H: Host, B: Backend<H>> RunContext<'_, H, B> {
    /// The instant, on the clocks that local APICs count.
    pub(super) fn now(&self) -> Now {
        let clock = self.board.clock();
        Now {
            ns: clock.now_ns(),
            tsc: clock.tsc(self.backend.tsc()),
            tsc_khz: clock.tsc_khz(),
        }
    }
}
