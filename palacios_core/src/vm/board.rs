// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the devices and the vCPUs of a VM are wired to: memory, clock, interrupt controllers, power switch, and of each vCPU what
//! others may touch. It knows no device: those are on the buses, and hold links to the board.
#![forbid(unsafe_code)]

use super::power::PowerSwitch;
use crate::addr::{Gpa, PAGE_SIZE};
use crate::clock::VmClock;
use crate::host::{Host, Level, Scope};
use crate::interfaces::{LogError, MemoryControl, PowerRequest, PowerSink};
use crate::interrupts::chipset::Chipset;
use crate::interrupts::{Message, MessageSink};
use crate::memory::walk::AccessKind;
use crate::memory::{FaultError, Memory, Resident, Resolved};
use crate::names::VmName;
use crate::ram::RamLayout;
use crate::regions::{Change, RegionError};
use crate::vcpu::VcpuShared;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};

/// A VM's board.
pub(crate) struct Board<H: Host> {
    pub(super) name: VmName,
    pub(super) host: H,
    pub(super) memory: Memory<H>,
    pub(super) clock: VmClock<H>,
    pub(super) chipset: H::SpinLock<Chipset>,
    pub(super) vcpus: Vec<VcpuShared<H>>,
    pub(super) power: PowerSwitch,
    /// The dirty log runs because the guest asked for it: the owner's is none of its business.
    pub(super) guest_logs: AtomicBool,
}

impl<H: Host> Board<H> {
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
    pub(crate) fn vcpus(&self) -> &[VcpuShared<H>] {
        &self.vcpus
    }
    /// Posts a power request, as a device would.
    pub(crate) fn request_power(&self, what: PowerRequest) {
        self.power.request(what);
    }
    pub(crate) fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        self.host.log(level, Scope::Vm(self.name()), line);
    }

    /// Sees to it that a vCPU's access to `gpa` can be done.
    pub(crate) fn fault(&self, gpa: Gpa, access: AccessKind) -> Result<Resolved, FaultError> {
        self.with_memory(|memory, flush| memory.fault(gpa, access, flush))
    }

    /// Changes what is where in the guest's memory, until the machine is reset.
    pub(super) fn change(&self, changes: &[Change]) -> Result<(), RegionError> {
        self.with_memory(|memory, flush| memory.change_until_reset(changes, flush))
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

/// What of the board never sleeps, and so may be used in a window. `R` leads to the board. The field is private to this file, so that who holds
/// it reaches nothing else.
pub(crate) struct WindowBoard<R>(R);

impl<H: Host, R: Deref<Target = Board<H>>> WindowBoard<R> {
    pub(crate) fn new(board: R) -> Self {
        Self(board)
    }
    pub(crate) fn clock(&self) -> &VmClock<H> {
        self.0.clock()
    }
    /// Runs `f` on the interrupt controllers, with where their messages go. That is a spin lock.
    pub(crate) fn with_chipset<T>(&self, f: impl FnOnce(&mut Chipset, &dyn MessageSink) -> T) -> T {
        self.0.with_chipset(|chipset, sink| f(chipset, sink))
    }
    /// Sends a message of vCPU `from`.
    pub(crate) fn send(&self, from: Option<u32>, message: Message) {
        self.0.send(from, message);
    }
    /// Where RAM lies.
    pub(crate) fn ram(&self) -> RamLayout {
        self.0.memory.layout()
    }
    /// Whether memory is at `gpa`.
    pub(crate) fn is_memory(&self, gpa: Gpa) -> bool {
        self.0.memory.is_memory(gpa)
    }
    /// What vCPUs are to have flushed by now: see [`Memory::generation`].
    pub(crate) fn generation(&self) -> u64 {
        self.0.memory.generation()
    }
}

impl<'a, H: Host> WindowBoard<&'a Board<H>> {
    /// The memory that has frames.
    pub(crate) fn resident(&self) -> Resident<'a, H> {
        self.0.memory.resident()
    }
}

impl<H: Host> MemoryControl for Board<H> {
    fn forget(&self, at: Gpa) {
        self.with_memory(|memory, flush| memory.revoke(at.page(), PAGE_SIZE, flush));
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
