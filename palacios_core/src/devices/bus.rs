// SPDX-License-Identifier: MIT OR Apache-2.0
//! The buses: which device answers a port or an address. Each device sits in a slot of its own, behind the slot's lock.
//!
//! Any call into a device may bring its deadline nearer: a read that acknowledges, as well as a write. Whoever makes the
//! call is told, and tells the vCPU that keeps the devices' time.
#![forbid(unsafe_code)]

use super::{Cx, Device};
use crate::addr::Gpa;
use crate::alloc_ext::TryPush;
use crate::host::{Host, Lock, LockClass, NoMemory};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// No deadline.
const NEVER: u64 = u64::MAX;

struct Slot<H: Host> {
    device: H::Mutex<Box<dyn Device>>,
    /// Mirror of the device's own, readable without its lock.
    deadline_ns: AtomicU64,
}

/// All devices of a machine. What answers where is fixed once the machine is built.
pub struct Bus<H: Host> {
    slots: Vec<Slot<H>>,
    ports: Vec<(Range<u16>, usize)>,
    mmio: Vec<(Range<u64>, usize)>,
    /// No device does what its deadline asks for before this time.
    held_until_ns: AtomicU64,
}

impl<H: Host> Bus<H> {
    /// An empty bus.
    pub const fn new() -> Self {
        Self {
            slots: Vec::new(),
            ports: Vec::new(),
            mmio: Vec::new(),
            held_until_ns: AtomicU64::new(0),
        }
    }

    /// Puts a device into the next slot. Where its ports or addresses overlap another's, the earlier device answers.
    pub fn attach(&mut self, host: &H, mut device: Box<dyn Device>) -> Result<(), NoMemory> {
        let slot = self.slots.len();
        if let Some(io) = device.port_io() {
            for ports in io.ports() {
                self.ports.try_push((ports.clone(), slot))?;
            }
        }
        if let Some(io) = device.mmio() {
            for range in io.ranges() {
                self.mmio.try_push((range.clone(), slot))?;
            }
        }
        let deadline_ns = AtomicU64::new(deadline(device.as_mut()));
        let device = host.mutex(LockClass::BusSlot, device)?;
        self.slots.try_push(Slot {
            device,
            deadline_ns,
        })
    }

    /// A read of `size` (1, 2 or 4) bytes; all ones where no device answers. Also whether the device's deadline came nearer.
    #[must_use]
    pub fn port_read(&self, cx: &Cx<'_>, port: u16, size: u8) -> (u32, bool) {
        self.at_port(port, |device| {
            device.port_io().map(|io| io.port_read(cx, port, size))
        })
        .unwrap_or((u32::MAX, false))
    }

    /// A write of the `size` (1, 2 or 4) low bytes; lost where no device answers. `true`: the device's deadline came nearer.
    #[must_use]
    pub fn port_write(&self, cx: &Cx<'_>, port: u16, size: u8, value: u32) -> bool {
        self.at_port(port, |device| {
            device
                .port_io()
                .map(|io| io.port_write(cx, port, size, value))
        })
        .is_some_and(|((), nearer)| nearer)
    }

    /// A read of `size` (1, 2, 4 or 8) bytes; all ones where no device answers. Also whether the device's deadline came
    /// nearer.
    #[must_use]
    pub fn mmio_read(&self, cx: &Cx<'_>, at: Gpa, size: u8) -> (u64, bool) {
        self.at_address(at, size, |device| {
            device.mmio().map(|io| io.mmio_read(cx, at, size))
        })
        .unwrap_or((u64::MAX, false))
    }

    /// A write of the `size` (1, 2, 4 or 8) low bytes; lost where no device answers. `true`: the device's deadline came
    /// nearer.
    #[must_use]
    pub fn mmio_write(&self, cx: &Cx<'_>, at: Gpa, size: u8, value: u64) -> bool {
        self.at_address(at, size, |device| {
            device.mmio().map(|io| io.mmio_write(cx, at, size, value))
        })
        .is_some_and(|((), nearer)| nearer)
    }

    /// The earliest deadline of any device, or the end of a [`Bus::hold`].
    pub fn deadline_ns(&self) -> Option<u64> {
        let earliest = self
            .slots
            .iter()
            .map(|slot| slot.deadline_ns.load(Ordering::Relaxed))
            .min();
        let earliest = earliest.filter(|at| *at != NEVER);
        earliest.map(|at| at.max(self.held_until_ns.load(Ordering::Relaxed)))
    }

    /// Delays all devices: they meet their deadlines at `until_ns` at the earliest. `true`: the time that
    /// was given before was later.
    pub fn hold(&self, until_ns: u64) -> bool {
        self.held_until_ns.swap(until_ns, Ordering::Relaxed) > until_ns
    }

    /// Has all devices whose deadline is past do their work.
    pub fn tick(&self, cx: &Cx<'_>) {
        let now_ns = cx.clock.now_ns();
        for slot in &self.slots {
            if slot.deadline_ns.load(Ordering::Relaxed) <= now_ns {
                slot.with(|device| device.timed().map(|timed| timed.tick(cx)));
            }
        }
    }

    /// Has all devices look at the clocks, whatever their deadlines.
    pub fn tick_all(&self, cx: &Cx<'_>) {
        for slot in &self.slots {
            slot.with(|device| device.timed().map(|timed| timed.tick(cx)));
        }
    }

    /// Has all devices look at their input streams. `true`: a device's deadline came nearer.
    #[must_use]
    pub fn input_ready(&self, cx: &Cx<'_>) -> bool {
        let look = |slot: &Slot<H>| {
            let told = slot.with(|device| device.input().map(|input| input.input_ready(cx)));
            told.is_some_and(|((), nearer)| nearer)
        };
        self.slots
            .iter()
            .fold(false, |nearer, slot| look(slot) | nearer)
    }

    /// Power-on state for all.
    pub fn reset(&self) {
        self.held_until_ns.store(0, Ordering::Relaxed);
        for slot in &self.slots {
            slot.with(|device| {
                device.reset();
                Some(())
            });
        }
    }

    /// Saves all devices, in the order they were attached.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        self.slots
            .iter()
            .try_for_each(|slot| slot.device.lock().save(to))
    }

    /// Restores all devices, in the order they were attached.
    pub fn restore(&self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        for slot in &self.slots {
            let restored = slot.with(|device| Some(device.restore(from)));
            restored.map_or(Ok(()), |(restored, _)| restored)?;
        }
        Ok(())
    }

    fn at_port<R>(
        &self,
        port: u16,
        f: impl FnOnce(&mut dyn Device) -> Option<R>,
    ) -> Option<(R, bool)> {
        let (_, slot) = self.ports.iter().find(|(ports, _)| ports.contains(&port))?;
        self.slots.get(*slot)?.with(f)
    }

    fn at_address<R>(
        &self,
        at: Gpa,
        size: u8,
        f: impl FnOnce(&mut dyn Device) -> Option<R>,
    ) -> Option<(R, bool)> {
        let end = at.checked_add(u64::from(size))?;
        let (_, slot) = self
            .mmio
            .iter()
            .find(|(range, _)| range.start <= at.0 && end.0 <= range.end)?;
        self.slots.get(*slot)?.with(f)
    }
}

impl<H: Host> Default for Bus<H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<H: Host> Slot<H> {
    /// What `f` answers, and whether the deadline came nearer: than this device's own was, not than the earliest of all,
    /// which others may just be taking away.
    fn with<R>(&self, f: impl FnOnce(&mut dyn Device) -> Option<R>) -> Option<(R, bool)> {
        let mut device = self.device.lock();
        let answer = f(device.as_mut());
        let new_ns = deadline(device.as_mut());
        let old_ns = self.deadline_ns.swap(new_ns, Ordering::Relaxed);
        answer.map(|answer| (answer, new_ns < old_ns))
    }
}

fn deadline(device: &mut dyn Device) -> u64 {
    device
        .timed()
        .and_then(|timed| timed.deadline_ns())
        .unwrap_or(NEVER)
}
