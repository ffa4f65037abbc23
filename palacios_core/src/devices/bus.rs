// SPDX-License-Identifier: MIT OR Apache-2.0
//! The buses: which device answers a port or an address. Each device sits in a slot of its own, behind the slot's lock. An access
//! looks up the slot without a lock, and takes that of the slot alone: two vCPUs at two devices do not wait for each other.
//!
//! Any call into a device may change its deadline: a read that acknowledges, as well as a write. Whoever makes the call is told
//! if the earliest of all may have changed, and tells the vCPU that keeps the devices' time.
//!
//! Devices come and go while the machine runs. The map may change between a look-up and the slot's lock, so the look-up is
//! checked under the lock, and done again. Who takes a device away shows a map without it first and then waits for the slot's lock;
//! behind that, nobody calls it.
#![forbid(unsafe_code)]

mod accesses;
mod deadlines;
mod disks;
mod saved;
mod slots;
mod workers;

use super::doorbell::Doorbells;
use super::layout::{self, AttachError, Layout, Named, Target};
pub use super::map::Found;
use super::map::Map;
use super::pci::routing::{Routing, Way};
use super::{Device, IoRegion, Request, Space, WindowDevice};
use crate::alloc_ext::TryPush;
use crate::host::{Host, Lock, LockClass, NoMemory};
use crate::names::DeviceId;
use crate::regions::RegionError;
use crate::worker::Worker;
pub use accesses::Answerer;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub use disks::{NewSize, ResizeError};
pub use saved::{path_of, place_of, SavedDevice, PCI_KIND, PCI_PATH};

/// The most devices that a machine has.
pub const MAX_DEVICES: usize = 64;
/// No deadline.
const NEVER: u64 = u64::MAX;

/// A place for a device. It stays where it is as long as the machine.
struct Slot<H: Host> {
    number: SlotNumber,
    device: H::Mutex<Option<Box<dyn Device>>>,
    /// Mirror of the device's own, readable without its lock.
    deadline_ns: AtomicU64,
    doorbells: Doorbells,
    /// Who steps the device's work, if it has any.
    worker: H::SpinLock<Option<Worker<H>>>,
}

/// The lock of a slot, held.
type SlotGuard<'a, H> =
    <<H as Host>::Mutex<Option<Box<dyn Device>>> as Lock<Option<Box<dyn Device>>>>::Guard<'a>;

/// The slot of a device on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotNumber(u16);

/// All devices of a machine.
pub struct Bus<H: Host> {
    slots: Vec<Slot<H>>,
    /// These have the numbers behind those of the slots.
    in_window: Vec<Box<dyn WindowDevice>>,
    /// Slots from this one on never had a device.
    used: AtomicUsize,
    map: Map,
    /// The ways into configuration space of PCI.
    pci: Routing,
    /// Held over changes.
    attached: H::Mutex<Attached>,
    /// The earliest deadline of all. While one is put off it may be too late; who does that has it told when it is right again.
    earliest_ns: AtomicU64,
    /// No device does what its deadline asks for before this time.
    held_until_ns: AtomicU64,
}

/// What is attached, as those see it who change it.
struct Attached {
    /// The devices, in the order in which they came.
    devices: Vec<Listed>,
    /// All regions, those of the device that was attached first at the front.
    regions: Vec<Named>,
    /// Where they are laid out.
    layout: Layout,
    /// Workers are not at rest.
    works: bool,
}

/// Why a device cannot be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetachError {
    /// The VM has no device of that name.
    NoSuchDevice,
    /// It belongs to every PC.
    NotRemovable,
    /// No guest can be asked for it: it is no PCI device, or the VM does not run.
    NobodyToAsk,
}

/// A device that is attached.
#[derive(Clone, Copy)]
struct Listed {
    slot: SlotNumber,
    name: DeviceId,
    kind: &'static str,
    is_removable: bool,
    /// Somebody takes it away.
    goes: bool,
}

/// A device that is attached, for people.
pub struct DeviceInfo {
    /// What it is known by.
    pub name: DeviceId,
    /// Its kind.
    pub kind: &'static str,
    /// It may be taken away.
    pub is_removable: bool,
    /// Where it answers.
    pub regions: Vec<IoRegion>,
}

/// What a read gave.
pub struct Answer {
    /// The value: all ones where nobody answers.
    pub value: u64,
    /// The earliest deadline may have changed.
    pub new_deadline: bool,
}

impl Answer {
    /// Nobody answers.
    const NOBODYS: Self = Self {
        value: u64::MAX,
        new_deadline: false,
    };
}

/// What a write, or a step of a device's work, did beside.
#[derive(Default)]
pub struct Written {
    /// The earliest deadline may have changed.
    pub new_deadline: bool,
    /// What the device in that slot asks for.
    pub request: Option<(SlotNumber, Request)>,
}

impl<H: Host> Bus<H> {
    /// A bus with those devices alone that are called in the window.
    ///
    /// # Errors
    /// If they overlap, or if there is no memory.
    pub fn new(host: &H, in_window: Vec<Box<dyn WindowDevice>>) -> Result<Self, AttachError> {
        let mut slots = Vec::new();
        for number in 0..MAX_DEVICES {
            slots.try_push(Slot {
                number: SlotNumber(number as u16),
                device: host.mutex(LockClass::BusSlot, None)?,
                deadline_ns: AtomicU64::new(NEVER),
                doorbells: Doorbells::new(),
                worker: host.spin_lock(LockClass::SlotWorker, None)?,
            })?;
        }
        let mut regions = Vec::new();
        for (number, device) in (MAX_DEVICES as u16..).zip(&in_window) {
            for named in named(DeviceId::of_kind(device.name()), device.regions(), number) {
                regions.try_push(named)?;
            }
        }
        layout::check(&[], &regions)?;
        let map = Map::new()?;
        let mut attached = Attached {
            devices: Vec::new(),
            regions,
            layout: Layout::new()?,
            works: false,
        };
        attached.show_on(&map);
        Ok(Self {
            slots,
            in_window,
            used: AtomicUsize::new(0),
            map,
            pci: Routing::default(),
            attached: host.mutex(LockClass::BusMap, attached)?,
            earliest_ns: AtomicU64::new(NEVER),
            held_until_ns: AtomicU64::new(0),
        })
    }

    /// Puts a device into a slot, under a name. From then on it answers, and its deadlines are met. *Thread.*
    ///
    /// # Errors
    /// If it would answer where another does, if its name is taken, or if there is no room for it. Then the machine is as it was.
    pub fn attach(
        &self,
        name: DeviceId,
        device: Box<dyn Device>,
    ) -> Result<SlotNumber, AttachError> {
        let mut attached = self.attached.lock();
        let slot = self.slots.iter().find(|slot| attached.is_free(slot.number));
        let slot = slot.ok_or(AttachError::Full)?;
        let number = slot.number;
        attached.add(name, number, device.as_ref())?;
        self.look_at_deadline(slot, &mut **slot.device.lock().insert(device));
        let used = usize::from(number.0).wrapping_add(1);
        self.used.fetch_max(used, Ordering::Relaxed);
        attached.show_on(&self.map);
        Ok(number)
    }

    /// Takes a device out of its slot: first no access finds it any more, then its worker comes to rest
    /// and ends, then it leaves. Behind that nobody calls it.
    /// `None`: there is none, or somebody else takes it away. *Thread.*
    pub fn detach(&self, number: SlotNumber) -> Option<Box<dyn Device>> {
        let slot = self.slot(number)?;
        {
            let mut attached = self.attached.lock();
            let is_it = |device: &&mut Listed| device.slot == number && !device.goes;
            attached.devices.iter_mut().find(is_it)?.goes = true;
            let others = |named: &Named| named.target.slot != number.0;
            attached.regions.retain(others);
            attached.show_on(&self.map);
        }
        let worker = slot.worker.lock().take();
        if let Some(worker) = worker {
            // One that does not rest makes no step either.
            let _ = worker.rest();
            worker.end();
        }
        let device = slot.device.lock().take()?;
        slot.deadline_ns.store(NEVER, Ordering::Relaxed);
        slot.doorbells.take();
        self.find_earliest();
        let mut attached = self.attached.lock();
        attached.devices.retain(|device| device.slot != number);
        Some(device)
    }

    /// The slot of the device of a name, and whether it may be taken away. *Thread.*
    pub fn find(&self, name: &DeviceId) -> Option<(SlotNumber, bool)> {
        let attached = self.attached.lock();
        let found = attached.devices.iter().find(|device| device.name == *name);
        found.map(|device| (device.slot, device.is_removable))
    }

    /// Whether a device answers at a port, or will when it is switched on. *Thread.*
    pub fn has_device_at(&self, port: u16) -> bool {
        let attached = self.attached.lock();
        let is_there = |named: &Named| {
            let region = named.region;
            region.space == Space::Ports && (region.at..region.end()).contains(&port.into())
        };
        attached.regions.iter().any(is_there)
    }

    /// All devices, in the order in which they came. *Thread.*
    pub fn devices(&self) -> Result<Vec<DeviceInfo>, NoMemory> {
        let attached = self.attached.lock();
        let mut all = Vec::new();
        for device in &attached.devices {
            let mut regions = Vec::new();
            let of_device = |named: &&Named| named.target.slot == device.slot.0;
            for named in attached.regions.iter().filter(of_device) {
                regions.try_push(named.region)?;
            }
            all.try_push(DeviceInfo {
                name: device.name,
                kind: device.kind,
                is_removable: device.is_removable,
                regions,
            })?;
        }
        Ok(all)
    }

    /// Has the map show the regions of a device as they are now. *Thread.*
    pub fn update_regions(&self, number: SlotNumber) {
        let mut attached = self.attached.lock();
        self.look_at_regions(&mut attached, number);
        attached.show_on(&self.map);
    }

    /// As [`Bus::update_regions`], for all devices.
    fn update_all_regions(&self) {
        let mut attached = self.attached.lock();
        for number in 0..self.used().len() {
            self.look_at_regions(&mut attached, SlotNumber(number as u16));
        }
        attached.show_on(&self.map);
    }

    fn look_at_regions(&self, attached: &mut Attached, number: SlotNumber) {
        let Some(slot) = self.slot(number) else {
            return;
        };
        let of_device = |named: &&mut Named| named.target.slot == number.0;
        let device = slot.device.lock();
        let now = device.as_ref().map_or(&[][..], |device| device.regions());
        for (named, now) in attached.regions.iter_mut().filter(of_device).zip(now) {
            named.region = *now;
        }
    }

    /// Tells a device how the change of memory went that it had asked for. `true`: the earliest deadline may have changed.
    /// *Thread.*
    pub fn memory_changed(
        &self,
        number: SlotNumber,
        tag: u64,
        changed: Result<(), RegionError>,
    ) -> bool {
        let tell = |device: &mut dyn Device| device.memory_changed(tag, changed);
        self.slot(number).is_some_and(|slot| self.call(slot, tell))
    }

    fn slot(&self, number: SlotNumber) -> Option<&Slot<H>> {
        self.slots.get(usize::from(number.0))
    }

    /// The slots that have, or had, a device.
    fn used(&self) -> &[Slot<H>] {
        let used = self.used.load(Ordering::Relaxed);
        self.slots.get(..used).unwrap_or_default()
    }

    /// Calls the device in a slot, if there is one. `true`: the earliest deadline may have changed.
    fn call(&self, slot: &Slot<H>, call: impl FnOnce(&mut dyn Device)) -> bool {
        let mut device = slot.device.lock();
        device.as_mut().is_some_and(|device| {
            call(&mut **device);
            self.look_at_deadline(slot, &mut **device)
        })
    }

    /// Has the device in a slot look at its input stream. `true`: the earliest deadline may have changed. *Thread.*
    #[must_use]
    pub fn input_ready_in(&self, number: SlotNumber) -> bool {
        self.slot(number)
            .is_some_and(|slot| self.call(slot, look_for_input))
    }

    /// Has all devices look at their input streams. `true`: the earliest deadline may have changed.
    #[must_use]
    pub fn input_ready(&self) -> bool {
        self.used().iter().fold(false, |new_deadline, slot| {
            self.call(slot, look_for_input) | new_deadline
        })
    }

    /// Power-on state for all. Their workers are at rest; a bell that rang is not heard.
    pub fn reset(&self) {
        self.held_until_ns.store(0, Ordering::Relaxed);
        self.pci.set_address(0);
        for slot in self.used() {
            self.call(slot, |device| device.reset());
            slot.doorbells.take();
        }
        self.update_all_regions();
    }
}

impl Attached {
    fn is_free(&self, slot: SlotNumber) -> bool {
        self.devices.iter().all(|device| device.slot != slot)
    }

    /// Notes a device. On an error nothing has changed.
    fn add(
        &mut self,
        name: DeviceId,
        slot: SlotNumber,
        device: &dyn Device,
    ) -> Result<(), AttachError> {
        if self.devices.iter().any(|device| device.name == name) {
            return Err(AttachError::NameTaken(name));
        }
        let mut new = Vec::new();
        for named in named(name, device.regions(), slot.0) {
            new.try_push(named)?;
        }
        layout::check(&self.regions, &new)?;
        let reserved = self.regions.try_reserve(new.len());
        reserved.map_err(|_| NoMemory)?;
        self.devices.try_push(Listed {
            slot,
            name,
            kind: device.name(),
            is_removable: device.is_removable(),
            goes: false,
        })?;
        for named in new {
            self.regions.try_push(named)?;
        }
        Ok(())
    }

    fn show_on(&mut self, map: &Map) {
        self.layout.lay_out(&self.regions);
        map.show(&self.layout);
    }
}

/// The regions of the device with a number.
fn named(name: DeviceId, regions: &[IoRegion], slot: u16) -> impl Iterator<Item = Named> + '_ {
    let named = move |(region_number, region): (u16, &IoRegion)| Named {
        name,
        region: *region,
        target: Target {
            slot,
            region: region_number,
            doorbell: region.doorbell,
        },
    };
    (0..).zip(regions).map(named)
}

fn look_for_input(device: &mut dyn Device) {
    if let Some(input) = device.input() {
        input.input_ready();
    }
}
