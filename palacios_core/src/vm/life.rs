// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's life: what its owner can call (launch, stop), how it ends, and its reset. How it is held is in `hold.rs`.
//!
//! A reset waits until all vCPUs have left their loops, and the last to arrive does it.
//!
//! **Order of rest.** First the vCPUs leave the guest: no device is called, and no doorbell rings any more. Then the devices' workers come to rest,
//! in the order of their slots. Then the VM's clock stops. So it is for a pause, for a reset (whose clock goes on) and for the end. To go on is the
//! same backwards.

use super::run_word::RunState;
use super::states::{LifeError, State};
use super::stop_reason::StopReason;
use super::Vm;
use crate::host::{Host, Level, Lock, NoMemory, Thread};
use crate::interfaces::MemoryControl;
use crate::vcpu;
use core::sync::atomic::Ordering;

impl<H: Host> Vm<H> {
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
        if !self.shared.run.stop_new() {
            // It was launched just now.
            drop(control);
            return self.stop();
        }
        self.shared.observer.state_changed();
        Ok(())
    }

    /// Starts the VM, with a thread for each vCPU; one that has stopped starts again from its image. *Thread.*
    ///
    /// # Errors
    /// Those of [`Vm::begin`]; `NoMemory` if a thread cannot be started, and then the VM has stopped.
    pub fn launch(vm: &H::Shared<Self>) -> Result<(), LifeError> {
        let _control = vm.control.lock();
        vm.has_threads.store(true, Ordering::SeqCst);
        vm.begin_life()?;
        for index in 0..vm.vcpus() {
            let this = vm.clone();
            let started = vm
                .thread(index)
                .map_or(Ok(()), |thread| thread.start(move || this.drive(index)));
            if let Err(error) = started {
                // Those that were not started count as ended.
                vm.shared.request_stop(StopReason::OutOfMemory);
                for seat in vm.seats.iter().skip(index as usize) {
                    seat.lock().lives = false;
                    vm.vcpu_ended();
                }
                vm.join();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Starts the VM, as [`Vm::launch`] does, but starts no threads: [`Vm::step`] steps its vCPUs. *Thread.*
    ///
    /// # Errors
    /// `WrongState` unless the VM is new or has stopped; `NotLoadable` if its kernel cannot be loaded again.
    pub fn begin(&self) -> Result<(), LifeError> {
        let _control = self.control.lock();
        self.has_threads.store(false, Ordering::SeqCst);
        self.begin_life()
    }

    /// From new or stopped to running, or to paused if somebody holds the VM.
    fn begin_life(&self) -> Result<(), LifeError> {
        match self.state() {
            State::Created => {}
            State::Stopped(_) => {
                self.join();
                self.reset_machine().map_err(|()| LifeError::NotLoadable)?;
            }
            state => return Err(LifeError::WrongState(state)),
        }
        self.shared.life.lock().reason = None;
        let goes_on = self.loaded.swap(false, Ordering::SeqCst);
        if !goes_on {
            self.reset_shared();
            self.shared.io().set_up_pci();
        }
        self.alive.store(self.vcpus(), Ordering::SeqCst);
        self.waiting.store(0, Ordering::SeqCst);
        for seat in &self.seats {
            seat.lock().lives = true;
        }
        if !self.shared.run.is_held() {
            self.set_going();
        }
        self.shared.run.launch(!goes_on);
        self.shared.observer.state_changed();
        Ok(())
    }

    /// The clock and the devices' workers go, before the first vCPU does.
    pub(super) fn set_going(&self) {
        self.shared.clock().resume(self.processor.tsc());
        self.shared.bus().run_workers();
    }

    /// Devices come to rest, and then the clock stops. No vCPU is in the guest, which could read it: it must not see a time twice.
    ///
    /// # Errors
    /// If a device does not come to rest: that stops the VM.
    pub(super) fn bring_to_rest(&self) -> Result<(), ()> {
        let at_rest = self.shared.rest_workers();
        self.shared.clock().pause(self.processor.tsc());
        at_rest
    }

    /// Waits until all threads have ended. To be called only after the VM was told to stop. *Thread.*
    pub fn join(&self) {
        for vcpu in self.shared.board().vcpus() {
            vcpu.thread().join();
        }
    }

    /// A vCPU has ended. The last one ends the VM.
    pub(super) fn vcpu_ended(&self) {
        if self.alive.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        // It ends one way or the other: what does not rest makes no step any more.
        let _ = self.bring_to_rest();
        self.shared.run.ended();
        if let State::Stopped(reason) = self.state() {
            if reason.is_guest_error() || reason.is_host_error() {
                self.shared.log(Level::Error, format_args!("{reason}"));
            }
        }
        self.shared.observer.state_changed();
    }

    /// A vCPU waits until the machine was reset. The last to arrive does it.
    pub(super) fn gather_for_reset(&self) {
        if self.waiting.fetch_add(1, Ordering::SeqCst).wrapping_add(1) != self.vcpus() {
            return;
        }
        self.waiting.store(0, Ordering::SeqCst);
        if self.shared.rest_workers().is_err() {
            return;
        }
        match self.reset_machine() {
            Ok(()) => self.go_on_after_reset(),
            Err(()) => _ = self.shared.request_stop(StopReason::ResetFailed),
        }
    }

    fn go_on_after_reset(&self) {
        self.shared.bus().run_workers();
        if self.shared.run.reset_done() == Some(RunState::Paused) {
            // Somebody held it meanwhile.
            let _ = self.bring_to_rest();
        }
        self.shared.call_all();
    }

    /// Resets the devices and the interrupt controllers, and loads the kernel again. Each vCPU resets itself.
    pub(super) fn reset_machine(&self) -> Result<(), ()> {
        self.shared.board().power.clear();
        self.shared.told_dead.store(false, Ordering::SeqCst);
        self.shared.bus().reset();
        let board = self.shared.board();
        board.with_chipset(|chipset, sink| chipset.reset(sink));
        self.reset_shared();
        self.shared.io().set_up_pci();
        board.end_log();
        self.with_memory(|memory, flush| memory.reset_map(flush))
            .map_err(|NoMemory| ())?;
        self.loaded.store(false, Ordering::SeqCst);
        self.ram_is_empty.store(false, Ordering::SeqCst);
        self.load_image().map_err(|error| {
            self.shared
                .log(Level::Error, format_args!("reset: {error}"))
        })
    }

    pub(super) fn reset_shared(&self) {
        for vcpu in self.shared.board().vcpus() {
            vcpu::reset_shared(vcpu, &*self.processor);
        }
    }
}
