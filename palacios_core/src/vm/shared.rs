// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the vCPUs of a VM share: memory, clock, interrupt controllers, devices, and of each vCPU what others may touch.
//!
//! It knows neither the backend nor the vCPUs themselves, so that both may know it.
#![forbid(unsafe_code)]

use super::parts::{Observer, VmName};
use super::power::PowerSwitch;
use super::stop_reason::StopReason;
use super::stuck::Stuck;
use crate::addr::{Gpa, PAGE_SIZE};
use crate::clock::VmClock;
use crate::devices::bus::Bus;
use crate::devices::Cx;
use crate::host::{Host, Level, Lock, Scope};
use crate::image::OnTripleFault;
use crate::interfaces::{LogError, MemoryControl};
use crate::interrupts::chipset::Chipset;
use crate::memory::walk::AccessKind;
use crate::memory::{FaultError, Memory, Resolved};
use crate::regions::{Change, RegionError};
use crate::state::CpuState;
use crate::vcpu::VcpuShared;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// A VM as its vCPUs see it.
pub(crate) struct VmShared<H: Host> {
    pub(super) name: VmName,
    pub(super) host: H,
    pub(super) observer: Box<dyn Observer>,
    pub(super) memory: Memory<H>,
    pub(super) clock: VmClock<H>,
    pub(super) chipset: H::SpinLock<Chipset>,
    pub(super) bus: Bus<H>,
    pub(super) vcpus: Vec<VcpuShared<H>>,
    /// [`RunState`](super::states::RunState), which vCPUs look at before each entry.
    pub(super) run_state: AtomicU8,
    pub(super) life: H::Mutex<Life>,
    pub(super) power: PowerSwitch,
    pub(super) on_triple_fault: OnTripleFault,
    pub(super) stuck: Stuck,
    /// It was written to the log that the VM is dead.
    pub(super) told_dead: AtomicBool,
    /// The dirty log runs because the guest asked for it: the owner's is none of its business.
    pub(super) guest_logs: AtomicBool,
}

/// The part of a VM's state that a lock guards.
pub(super) struct Life {
    /// What the first vCPU starts with.
    pub(super) boot_state: CpuState,
    /// Neither launched nor stopped yet.
    pub(super) is_new: bool,
    pub(super) reason: Option<StopReason>,
}

impl Life {
    pub(super) fn new() -> Self {
        Self {
            boot_state: CpuState::reset(),
            is_new: true,
            reason: None,
        }
    }
}

impl<H: Host> VmShared<H> {
    pub(crate) fn name(&self) -> &str {
        self.name.as_str()
    }
    pub(crate) fn host(&self) -> &H {
        &self.host
    }
    pub(crate) fn memory(&self) -> &Memory<H> {
        &self.memory
    }
    pub(crate) fn clock(&self) -> &VmClock<H> {
        &self.clock
    }
    pub(crate) fn chipset(&self) -> &H::SpinLock<Chipset> {
        &self.chipset
    }
    pub(crate) fn bus(&self) -> &Bus<H> {
        &self.bus
    }
    pub(crate) fn vcpu_count(&self) -> u32 {
        self.vcpus.len() as u32
    }
    /// What others see of a vCPU.
    pub(crate) fn vcpu(&self, index: u32) -> Option<&VcpuShared<H>> {
        self.vcpus.get(index as usize)
    }
    /// The thread of a vCPU.
    pub(crate) fn thread(&self, index: u32) -> Option<&H::Thread> {
        self.vcpu(index).map(VcpuShared::thread)
    }
    pub(crate) fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        self.host.log(level, Scope::Vm(self.name()), line);
    }
    /// What the first vCPU starts with.
    pub(crate) fn boot_state(&self) -> CpuState {
        self.life.lock().boot_state
    }

    /// The machine as devices see it.
    pub(crate) fn cx(&self) -> Cx<'_> {
        Cx {
            clock: &self.clock,
            irqs: self,
            memory: &self.memory,
            power: &self.power,
            memory_control: self,
        }
    }

    /// Sees to it that a vCPU's access to `gpa` can be done.
    pub(crate) fn fault(&self, gpa: Gpa, access: AccessKind) -> Result<Resolved, FaultError> {
        self.with_memory(|memory, flush| memory.fault(gpa, access, flush))
    }

    /// Does something to the memory that has to wait for vCPUs to flush.
    pub(super) fn with_memory<R>(&self, act: impl FnOnce(&Memory<H>, &dyn Fn()) -> R) -> R {
        act(&self.memory, &|| self.wait_for_flush())
    }

    /// Returns when no vCPU is in the guest with translations older than the memory's generation.
    fn wait_for_flush(&self) {
        let generation = self.memory.generation();
        for vcpu in &self.vcpus {
            vcpu.leave_guest(&self.host, generation);
        }
    }
}

impl<H: Host> MemoryControl for VmShared<H> {
    fn forget(&self, at: Gpa) {
        self.with_memory(|memory, flush| memory.revoke(at.page(), PAGE_SIZE, flush));
    }
    fn change(&self, changes: &[Change]) -> Result<(), RegionError> {
        self.with_memory(|memory, flush| memory.change_until_reset(changes, flush))
    }
    fn discard(&self, at: Gpa, bytes: u64) -> u64 {
        self.with_memory(|memory, flush| memory.discard(at, bytes, flush))
    }
    fn begin_log(&self) -> Result<(), LogError> {
        self.with_memory(|memory, flush| memory.begin_log(flush))?;
        self.guest_logs.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn take_dirty(&self, first: u64, words: &mut [u64]) {
        words.fill(0);
        if self.guest_logs.load(Ordering::SeqCst) {
            self.with_memory(|memory, flush| memory.take_dirty(first, words, flush));
        }
    }
    fn end_log(&self) {
        if self.guest_logs.swap(false, Ordering::SeqCst) {
            self.with_memory(|memory, flush| memory.end_log(flush));
        }
    }
}
