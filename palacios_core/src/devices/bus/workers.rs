// SPDX-License-Identifier: MIT OR Apache-2.0
//! The workers of devices: who steps the work of the device in a slot, and how all of them come to rest.
#![forbid(unsafe_code)]

use super::{Bus, Slot, SlotNumber, Written};
use crate::alloc_ext::NoMemory;
use crate::devices::device::{Device, Step, Work};
use crate::host::{Host, Lock};
use crate::interfaces::Wakers;
use crate::worker::{NeverRests, Worker};
use alloc::boxed::Box;

impl<H: Host> Bus<H> {
    /// Whether the device in a slot has work, and so wants a worker.
    pub fn has_work(&self, number: SlotNumber) -> bool {
        self.slot(number).is_some_and(|slot| {
            let mut device = slot.device.lock();
            device
                .as_mut()
                .is_some_and(|device| device.work().is_some())
        })
    }

    /// Gives a slot its worker, which is at rest. It runs if the others do. `false`: the device was taken away meanwhile, and nobody ends the worker
    /// but the caller. *Thread.*
    #[must_use]
    pub fn set_worker(&self, number: SlotNumber, worker: &Worker<H>) -> bool {
        let attached = self.attached.lock();
        let mut devices = attached.devices.iter();
        let is_there = devices.any(|device| device.slot == number && !device.goes);
        let Some(slot) = self.slot(number).filter(|_| is_there) else {
            return false;
        };
        // Who rings wakes it from here on.
        *slot.worker.lock() = Some(worker.clone());
        if attached.works {
            worker.run();
        }
        true
    }

    fn workers(&self) -> impl Iterator<Item = (&Slot<H>, Worker<H>)> {
        self.used().iter().filter_map(|slot| {
            let worker = slot.worker.lock().clone();
            worker.map(|worker| (slot, worker))
        })
    }

    /// All workers do their work from now on. *Thread.*
    pub fn run_workers(&self) {
        let mut attached = self.attached.lock();
        attached.works = true;
        self.workers().for_each(|(_, worker)| worker.run());
    }

    /// Brings all workers to rest: first none begins a step any more, then each is waited for, in the order of their slots. *Thread.*
    ///
    /// # Errors
    /// The name of a device that did not come to rest in time. Its worker makes no step either.
    pub fn rest_workers(&self) -> Result<(), &'static str> {
        {
            let mut attached = self.attached.lock();
            attached.works = false;
            self.workers().for_each(|(_, worker)| worker.halt());
        }
        let mut all_rest = Ok(());
        for (slot, worker) in self.workers() {
            if worker.rest() == Err(NeverRests) {
                let device = slot.device.lock();
                all_rest = Err(device.as_ref().map_or("", |device| device.name()));
            }
        }
        all_rest
    }

    /// Ends all workers. *Thread.*
    pub fn end_workers(&self) {
        for slot in self.used() {
            let worker = slot.worker.lock().take();
            if let Some(worker) = worker {
                worker.end();
            }
        }
    }

    /// The device in a slot has a worker now. *Thread.*
    pub fn begin_work(&self, number: SlotNumber, wakers: &dyn Wakers) -> Result<(), NoMemory> {
        let device = self.slot(number).map(|slot| slot.device.lock());
        let begin = |device: &mut Box<dyn Device>| match device.work() {
            Some(work) => work.begin(wakers),
            None => Ok(()),
        };
        device.map_or(Ok(()), |mut device| device.as_mut().map_or(Ok(()), begin))
    }

    /// A step of the work of the device in a slot: what it left, and what it did beside. *Thread.*
    pub fn step(&self, number: SlotNumber) -> (Step, Written) {
        let rung = self.slot(number).map_or(0, |slot| slot.doorbells.take());
        self.make_step(number, |work| work.step(rung))
    }

    /// The same while it is brought to rest: bells that rang wait until it works again. *Thread.*
    pub fn finish(&self, number: SlotNumber) -> (Step, Written) {
        self.make_step(number, |work| work.finish())
    }

    fn make_step(
        &self,
        number: SlotNumber,
        make: impl FnOnce(&mut dyn Work) -> Step,
    ) -> (Step, Written) {
        let (mut step, mut written) = (Step::Idle, Written::default());
        if let Some(slot) = self.slot(number) {
            written.new_deadline = self.call(slot, |device| {
                if let Some(work) = device.work() {
                    step = make(work);
                    written.request = device.request().map(|request| (number, request));
                }
            });
        }
        (step, written)
    }

    /// Whether nothing of the work of the device in a slot is under way. *Thread.*
    pub fn is_at_rest(&self, number: SlotNumber) -> bool {
        let rests =
            |device: &mut Box<dyn Device>| device.work().is_none_or(|work| work.is_at_rest());
        let device = self.slot(number).map(|slot| slot.device.lock());
        device.is_none_or(|mut device| device.as_mut().is_none_or(rests))
    }
}
