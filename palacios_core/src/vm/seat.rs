// SPDX-License-Identifier: MIT OR Apache-2.0
//! The seat of a vCPU.
#![forbid(unsafe_code)]

use crate::host::Host;
use crate::vcpu::AnyVcpu;
use alloc::boxed::Box;

/// Where a vCPU is while nobody steps it.
pub(super) struct Seat<H: Host> {
    pub(super) vcpu: Option<Box<dyn AnyVcpu<H>>>,
    /// The VM was launched, and the vCPU has not ended since.
    pub(super) lives: bool,
}
