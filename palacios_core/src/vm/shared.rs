// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the vCPUs of a VM share: the board with memory, clock and interrupt controllers, the devices on their buses, and the VM's state.
//!
//! It knows neither the backend nor the vCPUs themselves, so that both may know it.
#![forbid(unsafe_code)]

use super::board::Board;
use super::io::{Io, OwnIo};
use super::parts::Observer;
use super::run_word::RunWord;
use super::stop_reason::StopReason;
use super::stuck::Stuck;
use crate::clock::VmClock;
use crate::devices::bus::Bus;
use crate::host::{Host, Level, Lock};
use crate::image::OnTripleFault;
use crate::memory::Memory;
use crate::state::CpuState;
use crate::vcpu::VcpuShared;
use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::AtomicBool;

/// A VM as its vCPUs see it.
pub(crate) struct VmShared<H: Host> {
    pub(super) io: OwnIo<H>,
    pub(super) observer: Box<dyn Observer>,
    /// What vCPUs look at before each entry.
    pub(super) run: RunWord,
    pub(super) life: H::Mutex<Life>,
    pub(super) on_triple_fault: OnTripleFault,
    pub(super) stuck: Stuck,
    /// It was written to the log that the VM is dead.
    pub(super) told_dead: AtomicBool,
}

/// The part of a VM's state that a lock guards.
pub(super) struct Life {
    /// What the first vCPU starts with.
    pub(super) boot_state: CpuState,
    /// Why it stops, or has stopped.
    pub(super) reason: Option<StopReason>,
}

impl Life {
    pub(super) fn new() -> Self {
        Self {
            boot_state: CpuState::reset(),
            reason: None,
        }
    }
}

impl<H: Host> VmShared<H> {
    /// What devices and vCPUs are wired to.
    pub(crate) fn board(&self) -> &Board<H> {
        self.io.board()
    }
    /// The devices.
    pub(crate) fn io(&self) -> &Io<H> {
        &self.io
    }
    pub(crate) fn name(&self) -> &str {
        self.board().name()
    }
    pub(crate) fn host(&self) -> &H {
        self.board().host()
    }
    pub(crate) fn memory(&self) -> &Memory<H> {
        self.board().memory()
    }
    pub(crate) fn clock(&self) -> &VmClock<H> {
        self.board().clock()
    }
    pub(crate) fn bus(&self) -> &Bus<H> {
        self.io.bus()
    }
    pub(crate) fn vcpu_count(&self) -> u32 {
        self.board().vcpus().len() as u32
    }
    /// What others see of a vCPU.
    pub(crate) fn vcpu(&self, index: u32) -> Option<&VcpuShared<H>> {
        self.board().vcpus().get(index as usize)
    }
    /// The thread of a vCPU.
    pub(crate) fn thread(&self, index: u32) -> Option<&H::Thread> {
        self.vcpu(index).map(VcpuShared::thread)
    }
    pub(crate) fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        self.board().log(level, line);
    }
    /// What the first vCPU starts with.
    pub(crate) fn boot_state(&self) -> CpuState {
        self.life.lock().boot_state
    }
}
