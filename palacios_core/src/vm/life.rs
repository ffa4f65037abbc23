// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's life: what its owner can call (launch, pause, resume, stop), and the threads of its vCPUs from start to end.
//!
//! A reset waits until all vCPUs have left their loops, and the last to arrive does it.
//!
//! **Order of rest.** First the vCPUs leave the guest: no device is called, and no doorbell rings any more. Then the devices' workers come to rest,
//! in the order of their slots. Then the VM's clock stops. So it is for a pause, for a reset (whose clock goes on) and for the end. To go on is the
//! same backwards.

use super::states::{LifeError, RunEnd, RunState, State};
use super::stop_reason::StopReason;
use super::Vm;
use crate::backend::Backend;
use crate::host::{Host, Level, Lock, NoMemory, Thread};
use crate::interfaces::MemoryControl;
use crate::vcpu::{self, RunContext};
use core::sync::atomic::Ordering;

impl<H: Host, B: Backend<H>> Vm<H, B> {
    /// The state, as the owner sees it. *Thread.*
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Whether nothing can wake the guest any more: it runs, but each vCPU halts with interrupts off, or waits for another to
    /// start it, and nothing is on its way to any. It can still be stopped. *Thread.*
    pub fn is_dead(&self) -> bool {
        self.shared.is_dead()
    }

    /// Has the VM stop, and does not wait for that: [`Vm::state`] says when it has. One that was not launched yet has then
    /// stopped at once. *Thread.*
    ///
    /// # Errors
    /// `WrongState` if it has stopped already.
    pub fn stop(&self) -> Result<(), LifeError> {
        if self.shared.request_stop(StopReason::Requested) {
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
            let mut life = self.shared.life.lock();
            (life.is_new, life.reason) = (false, Some(StopReason::Requested));
        }
        self.shared.observer.state_changed();
        Ok(())
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
            let mut life = vm.shared.life.lock();
            (life.is_new, life.reason) = (false, None);
        }
        vm.reset_shared();
        vm.alive.store(vm.vcpus(), Ordering::SeqCst);
        vm.waiting.store(0, Ordering::SeqCst);
        vm.shared.clock().resume(vm.backend.tsc());
        vm.shared.bus().run_workers();
        vm.shared
            .run_state
            .store(RunState::Running as u8, Ordering::SeqCst);
        vm.shared.observer.state_changed();
        for index in 0..vm.vcpus() {
            let this = vm.clone();
            let started = vm
                .thread(index)
                .map_or(Ok(()), |thread| thread.start(move || this.vcpu_main(index)));
            if let Err(error) = started {
                // Those that were not started count as ended.
                vm.shared.request_stop(StopReason::OutOfMemory);
                (index..vm.vcpus()).for_each(|_| vm.thread_ended());
                vm.join();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Pauses the VM and its clock. Returns when no vCPU is in the guest and all devices are at rest. *Thread.*
    ///
    /// # Errors
    /// `WrongState` unless it is running, or if a device does not come to rest: that stops the VM.
    pub fn pause(&self) -> Result<(), LifeError> {
        let _control = self.control.lock();
        if !self.shared.change(RunState::Running, RunState::Paused) {
            return Err(LifeError::WrongState(self.state()));
        }
        self.shared.call_all();
        // The clock stops when no vCPU can read it: a guest must not see a time twice.
        for vcpu in self.shared.board().vcpus() {
            vcpu.leave_guest(self.shared.host(), u64::MAX);
        }
        let at_rest = self.shared.rest_workers();
        self.shared.clock().pause(self.backend.tsc());
        self.shared.observer.state_changed();
        at_rest.map_err(|()| LifeError::WrongState(self.state()))
    }

    /// Lets a paused VM go on. *Thread.*
    ///
    /// # Errors
    /// `WrongState` unless it is paused.
    pub fn resume(&self) -> Result<(), LifeError> {
        let _control = self.control.lock();
        if self.shared.run_state() != RunState::Paused {
            return Err(LifeError::WrongState(self.state()));
        }
        self.shared.clock().resume(self.backend.tsc());
        self.shared.bus().run_workers();
        if !self.shared.change(RunState::Paused, RunState::Running) {
            // It was stopped just now. If its last thread has ended already, nobody else brings them to rest again.
            let _ = self.shared.rest_workers();
        }
        self.shared.call_all();
        self.shared.observer.state_changed();
        Ok(())
    }

    /// Waits until all threads have ended. To be called only after the VM was told to stop. *Thread.*
    pub fn join(&self) {
        for vcpu in self.shared.board().vcpus() {
            vcpu.thread().join();
        }
    }

    /// One vCPU's thread, from start to end.
    pub(crate) fn vcpu_main(&self, index: u32) {
        let slot = self.vcpus.get(index as usize);
        let (Some(slot), Some(shared)) = (slot, self.shared.vcpu(index)) else {
            return;
        };
        let context = RunContext {
            vm: &self.shared,
            board: self.shared.board(),
            backend: &*self.backend,
            shared,
        };
        let taken = slot.lock().take();
        if let Some(mut vcpu) = taken {
            vcpu.reset(&context);
            while vcpu.run(&context) == RunEnd::Reset {
                self.gather_for_reset(index);
                vcpu.reset(&context);
            }
            *slot.lock() = Some(vcpu);
        }
        self.thread_ended();
    }

    fn thread_ended(&self) {
        if self.alive.fetch_sub(1, Ordering::SeqCst) == 1 {
            // It ends one way or the other: what does not rest makes no step any more.
            let _ = self.shared.rest_workers();
            self.shared.clock().pause(self.backend.tsc());
            self.shared
                .run_state
                .store(RunState::Stopped as u8, Ordering::SeqCst);
            if let State::Stopped(reason) = self.state() {
                if reason.is_guest_error() || reason.is_host_error() {
                    self.shared.log(Level::Error, format_args!("{reason}"));
                }
            }
            self.shared.observer.state_changed();
        }
    }

    /// A vCPU waits until the machine was reset. The last to arrive does it.
    fn gather_for_reset(&self, index: u32) {
        if self.waiting.fetch_add(1, Ordering::SeqCst) + 1 == self.vcpus() {
            self.reset_gathered();
        } else {
            self.shared.wait_while(index, RunState::Resetting);
        }
    }

    fn reset_gathered(&self) {
        self.waiting.store(0, Ordering::SeqCst);
        if self.shared.rest_workers().is_err() {
            return;
        }
        if self.reset_machine().is_ok() {
            self.shared.bus().run_workers();
            self.shared.change(RunState::Resetting, RunState::Running);
            self.shared.call_all();
        } else {
            self.shared.request_stop(StopReason::ResetFailed);
        }
    }

    /// Resets the devices and the interrupt controllers, and loads the kernel again. Each vCPU resets itself.
    fn reset_machine(&self) -> Result<(), ()> {
        self.shared.board().power.clear();
        self.shared.told_dead.store(false, Ordering::SeqCst);
        self.shared.bus().reset();
        let board = self.shared.board();
        board.with_chipset(|chipset, sink| chipset.reset(sink));
        self.reset_shared();
        board.end_log();
        self.with_memory(|memory, flush| memory.reset_map(flush))
            .map_err(|NoMemory| ())?;
        self.load_image().map_err(|error| {
            self.shared
                .log(Level::Error, format_args!("reset: {error}"))
        })
    }

    fn reset_shared(&self) {
        for vcpu in self.shared.board().vcpus() {
            vcpu::reset_shared(vcpu, &*self.backend);
        }
    }
}
