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

/// Who answers an access without waiting for a lock that sleeps. *Any.*
pub struct WindowAnswerer<'a, H: Host>(AnswersInWindow<'a, H>);

enum AnswersInWindow<'a, H: Host> {
    /// A device that is called in the window.
    Device(&'a dyn WindowDevice, Register),
    /// A device in a slot, which nobody else holds.
    Slot(&'a Bus<H>, LockedSlot<'a, H>),
    /// A doorbell of a bus.
    Doorbell(&'a Bus<H>, Target),
    /// Nobody: reads are all ones, and writes are lost.
    Nobody,
}

/// A register of the device in a slot, whose lock this is.
struct LockedSlot<'a, H: Host> {
    device: SlotGuard<'a, H>,
    slot: &'a Slot<H>,
    at: Register,
}

impl<H: Host> LockedSlot<'_, H> {
    fn read(&mut self, bus: &Bus<H>) -> Answer {
        let at = self.at;
        self.device.as_mut().map_or(Answer::NOBODYS, |device| {
            let value = device.read(at.region, at.offset, at.size);
            Answer {
                value,
                new_deadline: bus.look_at_deadline(self.slot, &mut **device),
            }
        })
    }
    fn write(&mut self, bus: &Bus<H>, value: u64) -> Written {
        let at = self.at;
        self.device.as_mut().map_or(Written::default(), |device| {
            device.write(at.region, at.offset, at.size, value);
            let request = device.request();
            Written {
                request: request.map(|request| (self.slot.number, request)),
                new_deadline: bus.look_at_deadline(self.slot, &mut **device),
            }
        })
    }
}

impl<H: Host> WindowAnswerer<'_, H> {
    /// A read.
    pub fn read(self) -> Answer {
        let value = match self.0 {
            AnswersInWindow::Device(device, at) => device.read(at.region, at.offset, at.size),
            AnswersInWindow::Slot(bus, mut slot) => return slot.read(bus),
            AnswersInWindow::Doorbell(..) | AnswersInWindow::Nobody => u64::MAX,
        };
        Answer {
            value,
            ..Answer::NOBODYS
        }
    }
    /// A write of the low bytes of `value`. `true`: the earliest deadline may have changed.
    pub fn write(self, value: u64) -> bool {
        match self.0 {
            AnswersInWindow::Device(device, at) => {
                device.write(at.region, at.offset, at.size, value);
            }
            // It has said that it asks for nothing there.
            AnswersInWindow::Slot(bus, mut slot) => return slot.write(bus, value).new_deadline,
            AnswersInWindow::Doorbell(bus, target) => bus.ring(target),
            AnswersInWindow::Nobody => {}
        }
        false
    }
}

/// Who answers an access.
enum Answerer<'a, H: Host> {
    /// The device in a slot.
    Device(LockedSlot<'a, H>),
    /// One that needs no lock.
    InWindow(WindowAnswerer<'a, H>),
    /// Nobody.
    Nobody,
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
        match self.answerer(last, access) {
            Answerer::Device(mut device) => device.read(self),
            Answerer::InWindow(answerer) => answerer.read(),
            Answerer::Nobody => Answer::NOBODYS,
        }
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
        match self.answerer(last, access) {
            Answerer::Device(mut device) => device.write(self, value),
            Answerer::InWindow(answerer) => Written {
                new_deadline: answerer.write(value),
                request: None,
            },
            Answerer::Nobody => Written::default(),
        }
    }

    /// Who answers an access without waiting for a lock that sleeps: a device that is called in the window, one that nobody else holds, a doorbell, or
    /// nobody. `None`: it is another's. *Any.*
    pub fn answerer_in_window(
        &self,
        last: &mut Option<Found>,
        access: IoAddress,
        write: bool,
    ) -> Option<WindowAnswerer<'_, H>> {
        // Configuration space is behind locks that sleep, whatever lies below its window.
        if self.pci.way(access) != Way::To(access) {
            return None;
        }
        let Some(found) = self.map.find(last, access) else {
            return Some(WindowAnswerer(AnswersInWindow::Nobody));
        };
        self.in_window(found, access).or_else(|| {
            let slot = self.free_slot(found, access, write)?;
            Some(WindowAnswerer(AnswersInWindow::Slot(self, slot)))
        })
    }

    /// The device at an access, locked, if nobody else holds it and it answers in the window.
    fn free_slot(
        &self,
        found: &Found,
        access: IoAddress,
        write: bool,
    ) -> Option<LockedSlot<'_, H>> {
        let slot = self.slot(SlotNumber(found.target().slot))?;
        let (device, at) = (slot.device.try_lock()?, Register::of(found, access));
        let last = at.offset.wrapping_add(u64::from(at.size)).wrapping_sub(1);
        let answers = |device: &dyn Device| {
            (at.offset..=last).all(|offset| device.answers_in_window(at.region, offset, write))
        };
        let is_free = self.map.still_shows(found) && device.as_deref().is_some_and(answers);
        is_free.then_some(LockedSlot { device, slot, at })
    }

    #[inline]
    fn in_window(&self, found: &Found, access: IoAddress) -> Option<WindowAnswerer<'_, H>> {
        let target = found.target();
        let answers = match target.doorbell {
            true => AnswersInWindow::Doorbell(self, target),
            false => {
                AnswersInWindow::Device(self.window_device(target)?, Register::of(found, access))
            }
        };
        Some(WindowAnswerer(answers))
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
                return Answerer::Nobody;
            };
            if let Some(answerer) = self.in_window(found, access) {
                return Answerer::InWindow(answerer);
            }
            let Some(slot) = self.slot(SlotNumber(found.target().slot)) else {
                return Answerer::Nobody;
            };
            let device = slot.device.lock();
            if self.map.still_shows(found) {
                let at = Register::of(found, access);
                return Answerer::Device(LockedSlot { device, slot, at });
            }
        }
    }
}
