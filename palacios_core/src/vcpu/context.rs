// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a vCPU's methods need besides the vCPU itself. Two types say where a method may be called: one that takes a [`RunContext`] runs
//! outside of a window and may sleep; one that takes a [`WindowContext`] runs in it, with interrupts off and the guest's registers loaded, and
//! reaches nothing that sleeps. What is done on both sides takes [`AnyContext`].
#![forbid(unsafe_code)]

use super::code::{CodeMemory, Filled};
use super::shared::VcpuShared;
use super::tsc::Tsc;
use crate::addr::{Gpa, Gva};
use crate::backend::{Backend, BackendVcpu, Exit};
use crate::devices::bus::{Answerer, Found};
use crate::devices::IoAddress;
use crate::emulator::Fault;
use crate::host::{CpuId, Host};
use crate::interfaces::Clock;
use crate::interrupts::apic_timer::Now;
use crate::memory::walk::{Access, Paging};
use crate::memory::Resident;
use crate::vm::board::{Board, WindowBoard};
use crate::vm::run_word::RunState;
use crate::vm::shared::VmShared;

/// Outside of a window. The vCPU's thread makes it once, and it is handed down to whatever handles an exit.
pub(crate) struct RunContext<'a, H: Host, B> {
    /// What the vCPUs of the VM share.
    pub(crate) vm: &'a VmShared<H>,
    /// Of that, what devices are wired to as well.
    pub(crate) board: &'a Board<H>,
    pub(crate) backend: &'a B,
    /// What others see of this vCPU.
    pub(crate) shared: &'a VcpuShared<H>,
}

/// In a window. Its field is private to this file: who has it reaches what is here and no more.
pub(super) struct WindowContext<'a, 'b, H: Host, B>(&'a RunContext<'b, H, B>);

/// What is there in a window and outside of it. None of it sleeps.
pub(super) trait AnyContext<H: Host, B: Backend<H>> {
    /// What leads to the guest's code.
    type Code<'c>: CodeMemory
    where
        Self: 'c;

    fn backend(&self) -> &B;
    /// What others see of this vCPU.
    fn shared(&self) -> &VcpuShared<H>;
    fn board(&self) -> WindowBoard<&Board<H>>;
    fn code(&self) -> Self::Code<'_>;
    /// A vCPU's own counter.
    fn counter(&self, of: &Tsc) -> u64;
    /// Delays the timers of all devices until `until_ns`, because vCPU `from` still handles their last interrupt.
    fn hold_devices(&self, from: u32, until_ns: u64);

    /// The instant, on the clocks that a vCPU's local APIC counts.
    fn now(&self, of: &Tsc) -> Now {
        let board = self.board();
        let clock = board.clock();
        Now {
            ns: clock.now_ns(),
            tsc: self.counter(of),
            tsc_khz: clock.tsc_khz(),
        }
    }
}

impl<'b, H: Host, B: Backend<H>> RunContext<'b, H, B> {
    /// The VM's counter, which no vCPU has put anything on top of.
    pub(super) fn vm_counter(&self) -> u64 {
        self.board.clock().tsc(self.backend.tsc())
    }

    /// Runs `f` in a window of the host's.
    pub(super) fn window<R>(&self, f: impl FnOnce(&WindowContext<'_, 'b, H, B>, CpuId) -> R) -> R {
        let window = WindowContext(self);
        self.board.host().window(|cpu| f(&window, cpu))
    }
}

impl<H: Host, B: Backend<H>> CodeMemory for &RunContext<'_, H, B> {
    fn translate(&mut self, paging: &Paging, at: Gva, access: Access) -> Result<Gpa, Fault> {
        self.code().translate(paging, at, access)
    }
    fn read_table(&mut self, at: Gpa) -> Result<u64, Fault> {
        self.code().read_table(at)
    }
    fn fetch(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        self.code().fetch(at, buf)
    }
}

impl<H: Host, B: Backend<H>> AnyContext<H, B> for RunContext<'_, H, B> {
    type Code<'c>
        = Filled<'c, H>
    where
        Self: 'c;

    fn backend(&self) -> &B {
        self.backend
    }
    fn shared(&self) -> &VcpuShared<H> {
        self.shared
    }
    fn board(&self) -> WindowBoard<&Board<H>> {
        WindowBoard::new(self.board)
    }
    fn code(&self) -> Filled<'_, H> {
        Filled(self.board.memory())
    }
    fn counter(&self, of: &Tsc) -> u64 {
        self.vm_counter().wrapping_add(of.ahead)
    }
    fn hold_devices(&self, from: u32, until_ns: u64) {
        self.vm.io().hold(from, until_ns);
    }
}

impl<H: Host, B: Backend<H>> AnyContext<H, B> for WindowContext<'_, '_, H, B> {
    type Code<'c>
        = Resident<'c, H>
    where
        Self: 'c;

    fn backend(&self) -> &B {
        self.0.backend
    }
    fn shared(&self) -> &VcpuShared<H> {
        self.0.shared
    }
    fn board(&self) -> WindowBoard<&Board<H>> {
        self.0.board()
    }
    fn code(&self) -> Resident<'_, H> {
        self.0.board().resident()
    }
    /// As the guest's own RDTSC. When the clock stands still already, since the VM is to be paused, so does this: it goes on from there. A counter that
    /// is set by the clock goes on from where this vCPU has seen it.
    fn counter(&self, of: &Tsc) -> u64 {
        let clock = self.0.board.clock();
        match clock.stands_still() && !clock.follows_clock() {
            true => self.0.counter(of),
            false => self.0.backend.tsc().wrapping_add(of.offset),
        }
    }
    fn hold_devices(&self, from: u32, until_ns: u64) {
        self.0.hold_devices(from, until_ns);
    }
}

impl<H: Host, B: Backend<H>> WindowContext<'_, '_, H, B> {
    fn host(&self) -> &H {
        self.0.board.host()
    }
    /// Puts the vCPU on this CPU.
    pub(super) fn load(&self, arch: &mut B::Vcpu, cpu: CpuId) {
        arch.load(self.host(), self.0.backend, cpu);
    }
    /// Enters the guest.
    #[inline]
    pub(super) fn enter(&self, arch: &mut B::Vcpu) -> Exit {
        arch.enter(self.host())
    }
    /// Takes the vCPU off its CPU.
    pub(super) fn unload(&self, arch: &mut B::Vcpu) {
        arch.unload(self.host(), self.0.backend);
    }
    /// The host wants its CPU.
    pub(super) fn must_end(&self) -> bool {
        self.host().window_must_end()
    }
    /// When the first device has something to do.
    pub(super) fn devices_deadline_ns(&self) -> Option<u64> {
        self.0.vm.bus().deadline_ns()
    }
    pub(super) fn run_state(&self) -> RunState {
        self.0.vm.run_state()
    }
    /// Who answers an access without waiting for a lock that sleeps. `None`: it is to be made outside of the window.
    pub(super) fn answerer(
        &self,
        last: &mut Option<Found>,
        at: IoAddress,
        write: bool,
    ) -> Option<Answerer<'_, H>> {
        self.0.vm.bus().answerer_in_window(last, at, write)
    }
    /// A device that vCPU `from` has called in the window has another deadline than before.
    pub(super) fn tell_of_deadline(&self, from: u32) {
        self.0.vm.io().tell_of_deadline(Some(from), true);
    }
}
