// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accesses, and who answers them: a device in a slot, behind the slot's lock, or one that is called in the window; a doorbell; or nobody.
#![forbid(unsafe_code)]

use super::{Answer, Bus, Found, Slot, SlotGuard, SlotNumber, Target, Way, Written, MAX_DEVICES};
use crate::devices::{Device, IoAddress, WindowDevice};
use crate::host::{Host, Lock};

/// What an access goes to in a device.
#[derive(Clone, Copy)]
struct Register {
    region: usize,
    offset: u64,
    size: u8,
}

impl Register {
    fn of(found: &Found, access: IoAddress) -> Self {
        Self {
            region: found.target().region.into(),
            offset: found.offset(access),
            size: access.size,
        }
    }
}

/// Who answers an access.
pub struct Answerer<'a, H: Host>(Who<'a, H>);

enum Who<'a, H: Host> {
    /// A device that is called in the window.
    Device(&'a dyn WindowDevice, Register),
    /// A device in a slot, whose lock this is.
    Slot(&'a Bus<H>, &'a Slot<H>, SlotGuard<'a, H>, Register),
    /// A doorbell of a bus.
    Doorbell(&'a Bus<H>, Target),
    /// Nobody: reads are all ones, and writes are lost.
    Nobody,
}

impl<H: Host> Answerer<'_, H> {
    /// A read.
    pub fn read(self) -> Answer {
        let mut answer = Answer::NOBODYS;
        match self.0 {
            Who::Device(device, at) => answer.value = device.read(at.region, at.offset, at.size),
            Who::Slot(bus, slot, mut device, at) => {
                if let Some(device) = device.as_mut() {
                    answer.value = device.read(at.region, at.offset, at.size);
                    answer.new_deadline = bus.look_at_deadline(slot, &mut **device);
                }
            }
            Who::Doorbell(..) | Who::Nobody => {}
        }
        answer
    }

    /// A write of the low bytes of `value`.
    pub fn write(self, value: u64) -> Written {
        let mut written = Written::default();
        match self.0 {
            Who::Device(device, at) => device.write(at.region, at.offset, at.size, value),
            Who::Slot(bus, slot, mut device, at) => {
                if let Some(device) = device.as_mut() {
                    device.write(at.region, at.offset, at.size, value);
                    written.request = device.request().map(|request| (slot.number, request));
                    written.new_deadline = bus.look_at_deadline(slot, &mut **device);
                }
            }
            Who::Doorbell(bus, target) => bus.ring(target),
            Who::Nobody => {}
        }
        written
    }
}

impl<H: Host> Bus<H> {
    /// A read. `last` is the caller's: what it found last on this bus. *Thread.*
    #[must_use]
    pub fn read(&self, last: &mut Option<Found>, access: IoAddress) -> Answer {
        let access = match self.pci.way(access) {
            Way::To(access) => access,
            Way::AddressRegister => {
                return Answer {
                    value: self.pci.address().into(),
                    ..Answer::NOBODYS
                }
            }
        };
        self.answerer(last, access).read()
    }

    /// A write of the low bytes of `value`; lost where no device answers. *Thread.*
    #[must_use]
    pub fn write(&self, last: &mut Option<Found>, access: IoAddress, value: u64) -> Written {
        let access = match self.pci.way(access) {
            Way::To(access) => access,
            Way::AddressRegister => {
                self.pci.set_address(value as u32);
                return Written::default();
            }
        };
        self.answerer(last, access).write(value)
    }

    /// Who answers an access without waiting for a lock that sleeps: a device that is called in the window, one that nobody else holds, a doorbell, or
    /// nobody. `None`: it is another's. *Any.*
    pub fn answerer_in_window(
        &self,
        last: &mut Option<Found>,
        access: IoAddress,
        write: bool,
    ) -> Option<Answerer<'_, H>> {
        // Configuration space is behind locks that sleep, whatever lies below its window.
        if self.pci.way(access) != Way::To(access) {
            return None;
        }
        let Some(found) = self.map.find(last, access) else {
            return Some(Answerer(Who::Nobody));
        };
        self.in_window(found, access)
            .or_else(|| self.free_slot(found, access, write))
    }

    /// The device at an access, locked, if nobody else holds it and it answers in the window.
    fn free_slot(&self, found: &Found, access: IoAddress, write: bool) -> Option<Answerer<'_, H>> {
        let slot = self.slot(SlotNumber(found.target().slot))?;
        let (device, at) = (slot.device.try_lock()?, Register::of(found, access));
        let last = at.offset.wrapping_add(u64::from(at.size)).wrapping_sub(1);
        let answers = |device: &dyn Device| {
            (at.offset..=last).all(|offset| device.answers_in_window(at.region, offset, write))
        };
        let is_free = self.map.still_shows(found) && device.as_deref().is_some_and(answers);
        is_free.then_some(Answerer(Who::Slot(self, slot, device, at)))
    }

    #[inline]
    fn in_window(&self, found: &Found, access: IoAddress) -> Option<Answerer<'_, H>> {
        let target = found.target();
        Some(Answerer(match target.doorbell {
            true => Who::Doorbell(self, target),
            false => Who::Device(self.window_device(target)?, Register::of(found, access)),
        }))
    }

    /// A write to a doorbell.
    fn ring(&self, target: Target) {
        if let Some(slot) = self.slots.get(usize::from(target.slot)) {
            if slot.doorbells.ring(target.region) {
                if let Some(worker) = &*slot.worker.lock() {
                    worker.wake();
                }
            }
        }
    }

    fn window_device(&self, target: Target) -> Option<&dyn WindowDevice> {
        let index = usize::from(target.slot).checked_sub(MAX_DEVICES)?;
        self.in_window.get(index).map(|device| &**device)
    }

    /// Finds who answers an access, and locks it.
    #[inline]
    fn answerer(&self, last: &mut Option<Found>, access: IoAddress) -> Answerer<'_, H> {
        loop {
            let Some(found) = self.map.find(last, access) else {
                return Answerer(Who::Nobody);
            };
            if let Some(answerer) = self.in_window(found, access) {
                return answerer;
            }
            let Some(slot) = self.slot(SlotNumber(found.target().slot)) else {
                return Answerer(Who::Nobody);
            };
            let device = slot.device.lock();
            if self.map.still_shows(found) {
                let at = Register::of(found, access);
                return Answerer(Who::Slot(self, slot, device, at));
            }
        }
    }
}
