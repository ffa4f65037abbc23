// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's accesses to ports and to device memory, the devices' time, and their work.
//!
//! Any call into a device may change the time at which one is to be called next. The first vCPU keeps the devices' time, and
//! is told. Any write, and any step of its work, may have a device ask for a change of the machine.
#![forbid(unsafe_code)]

use super::board::Board;
use super::links::BoardLink;
use crate::alloc_ext::{try_box, NoMemory};
use crate::boot::pci::{self, ConfigSpace};
use crate::devices::bus::{Bus, DetachError, Found, SlotNumber, Written};
use crate::devices::layout::AttachError;
use crate::devices::{Device, IoAddress, Request, Step};
use crate::host::Host;
use crate::interrupts::pending::Events;
use crate::names::DeviceId;
use crate::pump::Pump;
use crate::worker::{Work, Worker};
use alloc::boxed::Box;
use core::ops::Deref;

/// The devices on their buses, and the board that they are wired to.
pub(crate) struct Io<H: Host> {
    /// Before the board: devices hold links to that.
    bus: H::Shared<Bus<H>>,
    board: H::Shared<Board<H>>,
}

impl<H: Host> Clone for Io<H> {
    fn clone(&self) -> Self {
        Self {
            bus: self.bus.clone(),
            board: self.board.clone(),
        }
    }
}

/// The VM's own hold on its devices: when it goes, their workers end.
pub(super) struct OwnIo<H: Host>(Io<H>);

impl<H: Host> OwnIo<H> {
    pub(super) fn new(bus: H::Shared<Bus<H>>, board: H::Shared<Board<H>>) -> Self {
        Self(Io { bus, board })
    }
}

impl<H: Host> Deref for OwnIo<H> {
    type Target = Io<H>;
    fn deref(&self) -> &Io<H> {
        &self.0
    }
}

impl<H: Host> Drop for OwnIo<H> {
    fn drop(&mut self) {
        self.bus.end_workers();
    }
}

impl<H: Host> Io<H> {
    /// What devices and vCPUs are wired to.
    pub(crate) fn board(&self) -> &Board<H> {
        &self.board
    }
    pub(crate) fn bus(&self) -> &Bus<H> {
        &self.bus
    }

    /// A read by vCPU `from`, which found `last` when it looked last. All ones where nobody answers.
    pub(crate) fn read(&self, from: u32, last: &mut Option<Found>, at: IoAddress) -> u64 {
        let answer = self.bus.read(last, at);
        self.tell_of_deadline(Some(from), answer.new_deadline);
        answer.value
    }

    /// A write by vCPU `from` of the low bytes of `value`. Lost where nobody answers.
    pub(crate) fn write(&self, from: u32, last: &mut Option<Found>, at: IoAddress, value: u64) {
        let written = self.bus.write(last, at, value);
        self.tell_of_deadline(Some(from), written.new_deadline);
        if let Some((device, request)) = written.request {
            self.grant(device, request);
        }
    }

    /// Does what firmware does with the PCI bus at power-on.
    pub(super) fn set_up_pci(&self) {
        pci::set_up(self, self.board.memory().layout());
    }

    /// Changes the machine as a device asks.
    #[cold]
    fn grant(&self, device: SlotNumber, request: Request) {
        match request {
            Request::Regions => self.bus.update_regions(device),
            Request::Eject(slots) => self.eject(slots),
            Request::Memory { changes, tag } => {
                let changed = self.board.change(&changes);
                let new_deadline = self.bus.memory_changed(device, tag, changed);
                self.tell_of_deadline(None, new_deadline);
            }
        }
    }

    /// Tells the first vCPU, which keeps the devices' time, that the earliest deadline may have changed. `from` is the vCPU that
    /// called the device, or `None` for others. The first vCPU itself looks before each entry, and need not be told.
    pub(crate) fn tell_of_deadline(&self, from: Option<u32>, new_deadline: bool) {
        if let (true, Some(first)) = (new_deadline && from != Some(0), self.board.vcpus().first()) {
            first.post(Events::DEADLINE);
        }
    }

    /// Delays the timers of all devices until `until_ns`, because vCPU `from` still handles their last interrupt.
    pub(crate) fn hold(&self, from: u32, until_ns: u64) {
        let new_deadline = self.bus.hold(until_ns);
        self.tell_of_deadline(Some(from), new_deadline);
    }

    /// Has the devices look for new input in their streams.
    pub(super) fn input_ready(&self) {
        let new_deadline = self.bus.input_ready();
        self.tell_of_deadline(None, new_deadline);
    }

    /// Attaches a device under a name. If it has work, or a stream to descriptors, it is given a worker, which is named after the VM and the device.
    ///
    /// # Errors
    /// Why not; the machine is as it was then.
    pub(super) fn attach(
        &self,
        name: DeviceId,
        device: Box<dyn Device>,
        pump: Option<Pump<H>>,
    ) -> Result<(), AttachError> {
        let slot = self.bus.attach(name, device)?;
        if pump.is_some() || self.bus.has_work(slot) {
            if let Err(NoMemory) = self.make_worker(&name, slot, pump) {
                self.bus.detach(slot);
                return Err(AttachError::NoMemory);
            }
        }
        self.tell_of_deadline(None, true);
        Ok(())
    }

    fn make_worker(
        &self,
        name: &DeviceId,
        slot: SlotNumber,
        pump: Option<Pump<H>>,
    ) -> Result<(), NoMemory> {
        let work = try_box(SlotWork {
            io: self.clone(),
            slot,
            pump,
        })?;
        let (host, vm) = (self.board.host(), self.board.name());
        let worker = Worker::new(host, format_args!("v3-{vm}:{name}"))?;
        let given = worker.give(work);
        if !self.bus.set_worker(slot, &worker) {
            // The guest has ejected the device already.
            worker.end();
        }
        given
    }

    /// What devices are made with.
    pub(super) fn links(&self) -> BoardLink<H> {
        BoardLink(self.board.clone())
    }

    /// Takes a device away.
    ///
    /// # Errors
    /// If there is none of that name, or if it belongs to every PC.
    pub(super) fn detach(&self, name: &DeviceId) -> Result<(), DetachError> {
        let (slot, is_removable) = self.bus.find(name).ok_or(DetachError::NoSuchDevice)?;
        if !is_removable {
            return Err(DetachError::NotRemovable);
        }
        self.take_away(slot);
        Ok(())
    }

    /// Asks the guest, if that `runs`, to eject a device.
    ///
    /// # Errors
    /// As [`Io::detach`]; or there is no guest to be asked for it.
    pub(super) fn ask_to_eject(&self, name: &DeviceId, runs: bool) -> Result<(), DetachError> {
        let (slot, is_removable) = self.bus.find(name).ok_or(DetachError::NoSuchDevice)?;
        if !is_removable {
            return Err(DetachError::NotRemovable);
        }
        let function = self.bus.function_of(slot).filter(|_| runs);
        let function = function.ok_or(DetachError::NobodyToAsk)?;
        match self.bus.tell_slots(|slots| slots.is_to_go(function.slot())) {
            true => Ok(()),
            false => Err(DetachError::NobodyToAsk),
        }
    }

    fn take_away(&self, slot: SlotNumber) {
        // As long as nobody else can be in its slot of the PCI bus.
        if let Some(function) = self.bus.function_of(slot) {
            self.bus.tell_slots(|slots| slots.is_gone(function.slot()));
        }
        let device = self.bus.detach(slot);
        self.tell_of_deadline(None, true);
        drop(device);
    }

    /// The guest has ejected what is in those slots of the PCI bus.
    fn eject(&self, slots: u32) {
        // Each slot once: who comes into it meanwhile was not ejected.
        for bit in (0..u32::BITS).map(|number| slots & 1u32.wrapping_shl(number)) {
            if let Some(slot) = self.bus.find_in_pci_slots(bit) {
                self.take_away(slot);
            }
        }
    }
}

impl<H: Host> ConfigSpace for Io<H> {
    fn read(&self, at: u64, size: u8) -> u32 {
        let at = IoAddress::pci_config(at, size);
        self.bus.read(&mut None, at).value as u32
    }
    fn write(&self, at: u64, size: u8, value: u32) {
        let at = IoAddress::pci_config(at, size);
        let written = self.bus.write(&mut None, at, value.into());
        if let Some((device, request)) = written.request {
            self.grant(device, request);
        }
    }
}

/// The work of the device in a slot.
struct SlotWork<H: Host> {
    io: Io<H>,
    slot: SlotNumber,
    /// What carries the bytes of the device's stream.
    pump: Option<Pump<H>>,
}

impl<H: Host> SlotWork<H> {
    /// Carries some bytes, without the slot's lock. `true`: it may go on.
    fn pump(&mut self) -> bool {
        let pumped = self.pump.as_mut().map(Pump::step);
        pumped.is_some_and(|pumped| {
            if pumped.input {
                let new_deadline = self.io.bus.input_ready_in(self.slot);
                self.io.tell_of_deadline(None, new_deadline);
            }
            pumped.again
        })
    }

    fn make_step(&mut self, step: impl FnOnce(&Bus<H>, SlotNumber) -> (Step, Written)) -> Step {
        let pumped = self.pump();
        let (step, written) = step(&self.io.bus, self.slot);
        self.io.tell_of_deadline(None, written.new_deadline);
        if let Some((device, request)) = written.request {
            self.io.grant(device, request);
        }
        match pumped {
            true => Step::Again,
            false => step,
        }
    }
}

impl<H: Host> Work<H> for SlotWork<H> {
    fn begin(&mut self, worker: &Worker<H>) -> Result<(), NoMemory> {
        if let Some(pump) = &mut self.pump {
            pump.begin(worker.clone())?;
        }
        self.io.bus.begin_work(self.slot, worker)
    }
    fn step(&mut self) -> Step {
        self.make_step(Bus::step)
    }
    fn finish(&mut self) -> Step {
        self.make_step(Bus::finish)
    }
    fn is_at_rest(&mut self) -> bool {
        let pumped = self.pump.as_ref().is_none_or(Pump::is_at_rest);
        pumped && self.io.bus.is_at_rest(self.slot)
    }
}
