// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's life: launch, pause, reset, stop.
//!
//! The run state is one atomic byte. Whoever changes it then calls every vCPU ([`Vm::call_all`]); a vCPU looks at it before
//! each entry. A reset waits until all vCPUs stand at that point, and the last to arrive does it.

use super::{VcpuSlot, Vm};
use crate::backend::Backend;
use crate::devices::{PowerRequest, PowerSink};
use crate::emulator::InstructionBytes;
use crate::host::{Host, Level, Lock, NoMemory, Thread};
use crate::image::OnTripleFault;
use crate::interrupts::pending::Events;
use crate::state::CpuState;
use core::fmt;
use core::sync::atomic::Ordering;

/// What vCPU threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RunState {
    /// No thread runs.
    Stopped,
    /// Run.
    Running,
    /// Wait.
    Paused,
    /// Gather for a reset.
    Resetting,
    /// End.
    Stopping,
}

impl RunState {
    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Running,
            2 => Self::Paused,
            3 => Self::Resetting,
            4 => Self::Stopping,
            _ => Self::Stopped,
        }
    }
}

/// What the owner of a VM sees of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not yet launched.
    Created,
    /// Runs.
    Running,
    /// Waits to be continued.
    Paused,
    /// Was asked to end, or is just ending.
    Stopping,
    /// Ended.
    Stopped(StopReason),
}

/// Why a VM stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest wrote to the test exit port; the status that its tool shall end with.
    Exit(u32),
    /// The owner stopped it.
    Requested,
    /// A triple fault.
    TripleFault {
        /// Where.
        rip: u64,
    },
    /// An instruction that the emulator does not know touched a device or a register.
    Unemulated {
        /// Where.
        rip: u64,
        /// Its bytes.
        bytes: InstructionBytes,
    },
    /// It executed an address where there is no memory.
    NoMemoryAt {
        /// Where.
        rip: u64,
        /// The guest-physical address.
        gpa: u64,
    },
    /// A switch to another task by the processor itself.
    TaskSwitch {
        /// Where.
        rip: u64,
    },
    /// An exit that this VMM does not know.
    UnknownExit {
        /// Where.
        rip: u64,
        /// The vendor's code.
        code: u64,
        /// The vendor's further words.
        info: [u64; 2],
    },
    /// The processor refused to enter the guest.
    BadState(&'static str),
    /// The host had no memory for guest RAM.
    OutOfMemory,
    /// The host's hardware failed in what the guest used.
    MachineCheck,
    /// Virtualization was switched off under it: the host went down.
    HostGone,
    /// Another hypervisor on this host took the processor's virtualization.
    HostTaken,
    /// A reset did not find the kernel loadable again.
    ResetFailed,
}

impl StopReason {
    /// The guest is to blame.
    pub fn is_guest_error(self) -> bool {
        use StopReason::*;
        matches!(
            self,
            TripleFault { .. }
                | Unemulated { .. }
                | NoMemoryAt { .. }
                | TaskSwitch { .. }
                | UnknownExit { .. }
                | BadState(_)
        )
    }
    /// The host is to blame.
    pub fn is_host_error(self) -> bool {
        use StopReason::*;
        matches!(
            self,
            OutOfMemory | MachineCheck | HostGone | HostTaken | ResetFailed
        )
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Exit(status) => write!(f, "the guest ended its test with status {status}"),
            Self::Requested => f.write_str("stopped on request"),
            Self::TripleFault { rip } => write!(
                f,
                "triple fault at rip {rip:#x}: an exception, and its handler, and the double fault's handler failed"
            ),
            Self::Unemulated { rip, bytes } => {
                write!(f, "no emulation for the instruction at rip {rip:#x}:")?;
                let fetched = bytes.bytes.get(..usize::from(bytes.len)).unwrap_or_default();
                fetched.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            Self::NoMemoryAt { rip, gpa } => {
                write!(f, "rip {rip:#x} leads to guest-physical {gpa:#x}, where there is no memory to execute")
            }
            Self::TaskSwitch { rip } => write!(
                f,
                "a hardware task switch at rip {rip:#x}, by a task gate or to a task-state segment: not supported"
            ),
            Self::UnknownExit { rip, code, info } => {
                write!(f, "unknown exit {code:#x} ({:#x}, {:#x}) at rip {rip:#x}", info[0], info[1])
            }
            Self::BadState(what) => write!(f, "the processor refused the guest's state: {what}"),
            Self::OutOfMemory => f.write_str("the host ran out of memory for guest RAM: free some, or give the guest less"),
            Self::MachineCheck => f.write_str("a machine check: the host's hardware failed under this VM; see the host's log"),
            Self::HostGone => f.write_str("virtualization was switched off on this host"),
            Self::HostTaken => f.write_str(
                "another hypervisor took the processor's virtualization: unload it (rmmod kvm_intel or kvm_amd), on AMD load v3vee anew, and start the VM anew",
            ),
            Self::ResetFailed => f.write_str("the guest asked for a reset, and its kernel could not be loaded again"),
        }
    }
}

/// What a dead VM is told to its owner as: see [`Vm::is_dead`].
pub const DEAD: &str = "dead: every CPU is halted with interrupts off, or was never started";

/// Why a call came at the wrong time, or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeError {
    /// Not in this state.
    WrongState(State),
    /// No memory for it.
    NoMemory,
    /// The kernel could not be loaded again.
    NotLoadable,
}

impl From<NoMemory> for LifeError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// What is under the lock of a VM's state.
pub(super) struct Life {
    pub(super) boot_state: CpuState,
    /// Neither launched nor stopped yet.
    is_new: bool,
    reason: Option<StopReason>,
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

impl<H: Host, B: Backend<H>> Vm<H, B> {
    pub(crate) fn run_state(&self) -> RunState {
        RunState::from_byte(self.run_state.load(Ordering::SeqCst))
    }

    /// The state, as the owner sees it. *Thread.*
    pub fn state(&self) -> State {
        match self.run_state() {
            RunState::Running | RunState::Resetting => State::Running,
            RunState::Paused => State::Paused,
            RunState::Stopping => State::Stopping,
            RunState::Stopped => {
                let life = self.life.lock();
                match (life.is_new, life.reason) {
                    (true, _) => State::Created,
                    (false, reason) => State::Stopped(reason.unwrap_or(StopReason::Requested)),
                }
            }
        }
    }

    /// Whether nothing can wake the guest any more: it runs, but each vCPU halts with interrupts off, or waits for another to
    /// start it, and nothing is on its way to any. It can still be stopped. *Thread.*
    pub fn is_dead(&self) -> bool {
        let nothing_waits = || {
            let posted = |slot: &VcpuSlot<H, B>| slot.shared.pending.has_events();
            self.run_state() == RunState::Running
                && !self.vcpus.iter().any(posted)
                && !self.chipset.lock().sends_events()
        };
        self.stuck.all(self.vcpus(), nothing_waits)
    }

    /// A vCPU is stuck from now on; the last one finds that the VM is dead.
    pub(crate) fn vcpu_is_stuck(&self) {
        self.stuck.enter();
        if self.is_dead() && !self.told_dead.swap(true, Ordering::SeqCst) {
            self.log(Level::Warning, format_args!("{DEAD}"));
            self.observer.state_changed();
        }
    }
    /// A vCPU that was stuck no longer is; what woke it, it takes only now.
    pub(crate) fn vcpu_moves(&self) {
        self.stuck.leave();
    }

    /// Starts the VM; one that has stopped starts again from its image. *Thread.*
    ///
    /// # Errors
    /// `WrongState` unless the VM is new or has stopped; `NotLoadable` if its kernel cannot be loaded again; `NoMemory` if a
    /// thread cannot be started, and then the VM has stopped.
    pub fn launch(vm: &H::Shared<Self>) -> Result<(), LifeError> {
        let _control = vm.control.lock();
        match vm.state() {
            State::Created => {}
            State::Stopped(_) => {
                vm.join();
                vm.reset_machine().map_err(|()| LifeError::NotLoadable)?;
            }
            state => return Err(LifeError::WrongState(state)),
        }
        {
            let mut life = vm.life.lock();
            (life.is_new, life.reason) = (false, None);
        }
        vm.reset_shared();
        vm.alive.store(vm.vcpus(), Ordering::SeqCst);
        vm.waiting.store(0, Ordering::SeqCst);
        vm.clock.resume(vm.backend.tsc());
        vm.run_state
            .store(RunState::Running as u8, Ordering::SeqCst);
        vm.observer.state_changed();
        for index in 0..vm.vcpus() {
            let this = vm.clone();
            let started = vm
                .thread(index)
                .map_or(Ok(()), |thread| thread.start(move || this.vcpu_main(index)));
            if let Err(error) = started {
                // Those that were not started count as ended.
                vm.request_stop(StopReason::OutOfMemory);
                (index..vm.vcpus()).for_each(|_| vm.thread_ended());
                vm.join();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Has the VM stop, and does not wait for that: [`Vm::state`] says when it has. One that was not launched yet has then
    /// stopped at once. *Thread.*
    ///
    /// # Errors
    /// `WrongState` if it has stopped already.
    pub fn stop(&self) -> Result<(), LifeError> {
        if self.request_stop(StopReason::Requested) {
            return Ok(());
        }
        match self.state() {
            State::Created => self.stop_before_launch(),
            State::Stopping => Ok(()),
            state => Err(LifeError::WrongState(state)),
        }
    }

    fn stop_before_launch(&self) -> Result<(), LifeError> {
        let control = self.control.lock();
        if self.state() != State::Created {
            // It was launched just now.
            drop(control);
            return self.stop();
        }
        {
            let mut life = self.life.lock();
            (life.is_new, life.reason) = (false, Some(StopReason::Requested));
        }
        self.observer.state_changed();
        Ok(())
    }

    /// Has the VM stand still, its clock too; returns when no vCPU is in the guest. *Thread.*
    ///
    /// # Errors
    /// `WrongState` unless it is running.
    pub fn pause(&self) -> Result<(), LifeError> {
        let _control = self.control.lock();
        if !self.change(RunState::Running, RunState::Paused) {
            return Err(LifeError::WrongState(self.state()));
        }
        self.call_all();
        // What a guest has seen of its clock cannot be taken back: it stops when nobody can look.
        for slot in &self.vcpus {
            slot.shared.leave_guest(&self.host, u64::MAX);
        }
        self.clock.pause(self.backend.tsc());
        self.observer.state_changed();
        Ok(())
    }

    /// Lets a paused VM go on. *Thread.*
    ///
    /// # Errors
    /// `WrongState` unless it is paused.
    pub fn resume(&self) -> Result<(), LifeError> {
        let _control = self.control.lock();
        if self.run_state() != RunState::Paused {
            return Err(LifeError::WrongState(self.state()));
        }
        self.clock.resume(self.backend.tsc());
        self.change(RunState::Paused, RunState::Running);
        self.call_all();
        self.observer.state_changed();
        Ok(())
    }

    /// Waits until all threads have ended. Only once the VM was told to stop. *Thread.*
    pub fn join(&self) {
        for slot in &self.vcpus {
            slot.shared.thread().join();
        }
    }

    /// A vCPU cannot go on: the machine ends, or starts anew where it is to do so after a triple fault.
    pub(crate) fn vcpu_failed(&self, reason: StopReason) {
        match (reason, self.on_triple_fault) {
            (StopReason::TripleFault { .. }, OnTripleFault::Reset) => {
                self.power.request(PowerRequest::Reset);
            }
            (reason, _) => _ = self.request_stop(reason),
        }
    }

    /// Ends the VM for `reason`, the first one given. `false`: it is not running.
    pub(crate) fn request_stop(&self, reason: StopReason) -> bool {
        {
            let mut life = self.life.lock();
            let running = [RunState::Running, RunState::Paused, RunState::Resetting];
            if !running
                .into_iter()
                .any(|from| self.change(from, RunState::Stopping))
            {
                return false;
            }
            life.reason = Some(reason);
        }
        self.call_all();
        self.observer.state_changed();
        true
    }

    /// Honours what the guest asked of its power supply; `false` if it asked nothing. The request stays: where the VM has
    /// just been paused, a reset waits until it goes on.
    pub(crate) fn honour_power_request(&self) -> bool {
        let request = self.power.waiting();
        match request {
            None => {}
            Some(PowerRequest::Off) => {
                self.request_stop(StopReason::PoweredOff);
            }
            Some(PowerRequest::Exit(status)) => {
                self.request_stop(StopReason::Exit(status));
            }
            Some(PowerRequest::Reset) => self.gather_for_reset(),
        }
        request.is_some()
    }

    fn gather_for_reset(&self) {
        if self.change(RunState::Running, RunState::Resetting) {
            self.call_all();
        }
    }

    /// One vCPU's thread, from start to end.
    pub(crate) fn vcpu_main(&self, index: u32) {
        let Some(slot) = self.vcpus.get(index as usize) else {
            return;
        };
        let taken = slot.vcpu.lock().take();
        if let Some(mut vcpu) = taken {
            vcpu.reset(self);
            vcpu.run(self, &slot.shared);
            *slot.vcpu.lock() = Some(vcpu);
        }
        self.thread_ended();
    }

    fn thread_ended(&self) {
        if self.alive.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.clock.pause(self.backend.tsc());
            self.run_state
                .store(RunState::Stopped as u8, Ordering::SeqCst);
            if let State::Stopped(reason) = self.state() {
                if reason.is_guest_error() || reason.is_host_error() {
                    self.log(Level::Error, format_args!("{reason}"));
                }
            }
            self.observer.state_changed();
        }
    }

    /// A vCPU waits while the VM is paused or resets; `false` when it is to end. After a reset, `reset` was `true`.
    pub(crate) fn wait_to_run(&self, index: u32) -> Go {
        match self.run_state() {
            RunState::Running => Go::On,
            RunState::Stopping | RunState::Stopped => Go::End,
            RunState::Paused => {
                // No timer wakes it meanwhile. It is armed anew afterwards.
                if let Some(thread) = self.thread(index) {
                    thread.arm(None);
                }
                self.wait_while(index, RunState::Paused);
                Go::Again
            }
            RunState::Resetting => {
                if self.waiting.fetch_add(1, Ordering::SeqCst) + 1 == self.vcpus() {
                    self.reset_gathered();
                } else {
                    self.wait_while(index, RunState::Resetting);
                }
                Go::Reset
            }
        }
    }

    fn wait_while(&self, index: u32, state: RunState) {
        let Some(shared) = self.shared(index) else {
            return;
        };
        while self.run_state() == state {
            // Taken, so that the next change is news again, and comes with a call. The news of this very change may come only
            // now, and on top of it none would.
            shared.pending.take(Events::STATE);
            shared.park_unless(&self.host, || {
                self.run_state() != state || shared.pending.has(Events::STATE)
            });
        }
    }

    fn reset_gathered(&self) {
        self.waiting.store(0, Ordering::SeqCst);
        if self.reset_machine().is_ok() {
            self.change(RunState::Resetting, RunState::Running);
            self.call_all();
        } else {
            self.request_stop(StopReason::ResetFailed);
        }
    }

    /// Devices as after power-on, the kernel loaded again. The vCPUs do their own part.
    fn reset_machine(&self) -> Result<(), ()> {
        self.power.clear();
        self.told_dead.store(false, Ordering::SeqCst);
        *self.chipset.lock() = crate::interrupts::chipset::Chipset::new();
        self.bus.reset();
        self.reset_shared();
        self.load_image()
            .map_err(|error| self.log(Level::Error, format_args!("reset: {error}")))
    }

    fn reset_shared(&self) {
        for slot in &self.vcpus {
            crate::vcpu::reset_shared(&slot.shared, self.backend());
        }
    }

    fn change(&self, from: RunState, to: RunState) -> bool {
        self.run_state
            .compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Has every vCPU look at the run state.
    fn call_all(&self) {
        for slot in &self.vcpus {
            if slot.shared.pending.post(Events::STATE) {
                slot.shared.kick();
            }
        }
    }
}

/// What a vCPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Go {
    /// Run.
    On,
    /// Look again.
    Again,
    /// Start anew, then look again.
    Reset,
    /// End.
    End,
}
