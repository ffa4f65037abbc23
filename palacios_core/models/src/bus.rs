// SPDX-License-Identifier: MIT OR Apache-2.0
//! The models of the buses: a map that changes under who looks at it, and a device that goes under who calls it.

use crate::layout::{Layout, Named, Target};
use crate::map::Map;
use crate::models;
use crate::models::ALL;
use crate::names::DeviceId;
use crate::region::{IoAddress, IoRegion};
use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::thread;
use std::sync::Arc;

/// The address that is looked up.
const AT: u64 = 8;

/// A layout in which the device in `slot` answers at `AT`, in a region that begins so many addresses before.
fn layout(slot: u16) -> Layout {
    let named = Named {
        name: DeviceId::new("device").unwrap(),
        region: IoRegion::memory(AT - u64::from(slot), 100),
        target: Target {
            slot,
            region: 0,
            doorbell: false,
        },
    };
    let mut layout = Layout::new().unwrap();
    layout.lay_out(&[named]);
    layout
}

/// The map changes twice while somebody looks something up: what is found is of one layout.
fn map_against_reader() {
    let map = Arc::new(Map::new().unwrap());
    map.show(&layout(1));
    let of_reader = map.clone();
    let reader = thread::spawn(move || {
        let at = IoAddress::memory(AT, 1);
        let mut last = None;
        for _ in 0..2 {
            let found = of_reader.find(&mut last, at).expect("of two layouts");
            let slot = found.target().slot;
            assert_eq!(u64::from(slot), found.offset(at), "of two layouts");
        }
    });
    map.show(&layout(2));
    map.show(&layout(3));
    reader.join().unwrap();
}

/// A slot as the bus has it. Loom finds an access to the device that is not ordered before its end.
struct Slot {
    lock: Mutex<()>,
    device: UnsafeCell<bool>,
}

// SAFETY: the device is for whoever holds the lock, or took it away, which is what is proved.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

/// As `Bus::access` against `Bus::detach`. `check`: the look-up is checked under the slot's lock.
fn access_against_detach(check: bool) {
    let bus = Arc::new((
        Map::new().unwrap(),
        Slot {
            lock: Mutex::new(()),
            device: UnsafeCell::new(true),
        },
    ));
    bus.0.show(&layout(1));
    let of_vcpu = bus.clone();
    let vcpu = thread::spawn(move || {
        let (map, slot) = &*of_vcpu;
        let mut last = None;
        // If the map has changed, it is looked up again, and there is nobody.
        let Some(found) = map.find(&mut last, IoAddress::memory(AT, 1)) else {
            return;
        };
        let _locked = slot.lock.lock().unwrap();
        if !check || map.still_shows(found) {
            // SAFETY: this thread holds the lock.
            let there = slot.device.with(|device| unsafe { *device });
            assert!(there, "the device is gone");
        }
    });
    let (map, slot) = &*bus;
    map.show(&Layout::new().unwrap());
    drop(slot.lock.lock().unwrap());
    // SAFETY: nobody calls the device any more.
    slot.device.with_mut(|device| unsafe { *device = false });
    vcpu.join().unwrap();
}

models! {
    map_against_reader: ALL, map_against_reader();
        fails: Relaxed, map_against_reader(), "of two layouts";
    access_against_detach: ALL, access_against_detach(true);
        fails: AsWritten, access_against_detach(false), "Causality violation";
}
