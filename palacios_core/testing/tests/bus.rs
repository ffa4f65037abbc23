// SPDX-License-Identifier: MIT OR Apache-2.0
//! The buses under several threads: devices that come, go and move while others are called.

use palacios_core::devices::bus::{Bus, SlotNumber};
use palacios_core::devices::{Device, IoAddress, IoRegion, Request, Step, Work};
use palacios_core::names::DeviceId;
use palacios_core::state_io::{StateError, StateReader, StateWriter};
use palacios_testing::{Config, TestHost};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread;

/// Reads of each thread.
const READS: u32 = 20_000;
/// Changes of the map, at least.
const ROUNDS: u32 = 300;
const THREADS: u32 = 4;
const NAMES: [DeviceId; 3] = [
    DeviceId::of_kind("zero"),
    DeviceId::of_kind("one"),
    DeviceId::of_kind("two"),
];

/// A device that reads as its number and the offset of the access. What is written is where its region moves to, or 0: it is
/// switched off.
struct Probe {
    number: u64,
    regions: [IoRegion; 1],
    moved: bool,
    /// It is attached.
    there: Arc<AtomicBool>,
}

impl Probe {
    fn boxed(number: u64, region: IoRegion, there: &Arc<AtomicBool>) -> Box<Self> {
        there.store(true, Ordering::SeqCst);
        Box::new(Self {
            number,
            regions: [region],
            moved: false,
            there: there.clone(),
        })
    }
}

impl Device for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }
    fn reset(&mut self) {}
    fn save(&self, _: &mut StateWriter<'_>) -> Result<(), StateError> {
        Ok(())
    }
    fn restore(&mut self, _: &mut StateReader<'_>) -> Result<(), StateError> {
        Ok(())
    }
    fn regions(&self) -> &[IoRegion] {
        &self.regions
    }
    fn answers_in_window(&self, _: usize, _: u64, write: bool) -> bool {
        !write
    }
    fn read(&mut self, region: usize, offset: u64, _: u8) -> u64 {
        assert!(self.there.load(Ordering::SeqCst), "it is gone");
        assert_eq!(region, 0);
        self.number << 32 | offset
    }
    fn write(&mut self, _: usize, _: u64, _: u8, value: u64) {
        let [region] = &mut self.regions;
        *region = match value {
            0 => region.switched(false),
            at => region.switched(true).moved_to(at),
        };
        self.moved = true;
    }
    fn request(&mut self) -> Option<Request> {
        std::mem::take(&mut self.moved).then_some(Request::Regions)
    }
    fn work(&mut self) -> Option<&mut dyn Work> {
        Some(self)
    }
}

/// There is more to do when a bell rang.
impl Work for Probe {
    fn step(&mut self, rung: u64) -> Step {
        match rung {
            0 => Step::Idle,
            _ => Step::Again,
        }
    }
    fn is_at_rest(&self) -> bool {
        true
    }
}

fn with_bus(test: impl Fn(&Bus<TestHost>)) {
    TestHost::run(Config::default(), |host| {
        test(&Bus::new(host, Vec::new()).unwrap());
    });
}

fn port(at: u16) -> IoAddress {
    IoAddress::port(at, 4)
}

/// A write, and what the device asks for because of it, as a vCPU does it.
fn write(bus: &Bus<TestHost>, at: u16, value: u64) {
    let answer = bus.write(&mut None, port(at), value);
    match answer.request {
        Some((slot, Request::Regions)) => bus.update_regions(slot),
        Some((_, other)) => panic!("{other:?}"),
        None => {}
    }
}

/// How often the map has changed. Who waits for more sees enough when the thread that changes it ends, as it wishes or not.
struct Rounds<'a>(&'a AtomicU32);

impl Drop for Rounds<'_> {
    fn drop(&mut self) {
        self.0.store(u32::MAX, Ordering::SeqCst);
    }
}

/// Reads all over the ports in four threads while `change` changes the map; each answer is given to `check`, with its address.
fn storm(bus: &Bus<TestHost>, change: impl Fn(u32), check: impl Fn(u16, u64) + Sync) {
    let rounds = AtomicU32::new(0);
    let read_all = |n: u32| {
        let (mut last, mut read) = (None, 0);
        while read < READS || rounds.load(Ordering::SeqCst) < ROUNDS {
            let at = 0x100 + ((read * 7 + n) % 0x60) as u16;
            // Every second one as in a window, if nobody else is at the device.
            let in_window = match read % 2 {
                0 => bus.answerer_in_window(&mut last, port(at), false),
                _ => None,
            };
            let answer = match in_window {
                Some(answerer) => answerer.read(),
                None => bus.read(&mut last, port(at)),
            };
            check(at, answer.value);
            read = read.wrapping_add(1);
        }
    };
    thread::scope(|scope| {
        let read_all = &read_all;
        let threads: Vec<_> = (0..THREADS)
            .map(|n| scope.spawn(move || read_all(n)))
            .collect();
        let all = Rounds(&rounds);
        while threads.iter().any(|thread| !thread.is_finished()) {
            change(all.0.fetch_add(1, Ordering::SeqCst));
        }
    });
}

/// In a window nobody waits for a device, and only accesses are made that the device allows there.
#[test]
fn a_device_that_is_free_answers_in_the_window() {
    with_bus(|bus| {
        let there = Arc::new(AtomicBool::new(false));
        let device = Probe::boxed(1, IoRegion::ports(0x100, 4), &there);
        bus.attach(NAMES[1], device).unwrap();
        let answerer = |write| bus.answerer_in_window(&mut None, port(0x100), write);
        let first = answerer(false).expect("nobody else holds it");
        assert!(answerer(false).is_none(), "the first one holds it");
        assert_eq!(first.read().value, 1 << 32);
        assert!(answerer(false).is_some());
        assert!(answerer(true).is_none(), "its writes may sleep");
        let beyond = bus.answerer_in_window(&mut None, port(0x200), true);
        assert!(beyond.is_some_and(|nobody| !nobody.write(1).new_deadline));
    });
}

/// Devices are attached and detached. Who answers is one that was at that address, and it is there.
#[test]
fn devices_come_and_go_under_four_threads() {
    with_bus(|bus| {
        let there: [_; 3] = std::array::from_fn(|_| Arc::new(AtomicBool::new(false)));
        let at = |number: u64| 0x100 + 0x18 * number as u16;
        let come_and_go = |round: u32| {
            let number = u64::from(round % 3);
            let there = &there[number as usize];
            let device = Probe::boxed(number, IoRegion::ports(at(number), 0x20), there);
            match bus.attach(NAMES[number as usize], device) {
                Ok(slot) => {
                    thread::yield_now();
                    assert!(bus.detach(slot).is_some());
                    there.store(false, Ordering::SeqCst);
                    assert!(bus.detach(slot).is_none(), "it is gone already");
                }
                Err(error) => panic!("{error}"),
            }
        };
        storm(bus, come_and_go, |port, value| {
            if value != u64::MAX {
                let base = at(value >> 32);
                assert_eq!(u64::from(port), u64::from(base) + (value & 0xffff));
            }
        });
    });
}

/// A device moves, and is switched off and on. Its neighbour, which it moves over at times, stays where it is.
#[test]
fn a_region_moves_under_four_threads() {
    with_bus(|bus| {
        let there = Arc::new(AtomicBool::new(true));
        let control = IoRegion::ports(0x10, 4);
        let neighbour = Probe::boxed(1, IoRegion::ports(0x120, 0x10), &there);
        bus.attach(NAMES[1], neighbour).unwrap();
        let mover = bus
            .attach(NAMES[2], Probe::boxed(2, control, &there))
            .unwrap();
        let moves = [0x100, 0x118, 0x14c, 0x10];
        let mut now = 0x10;
        // Only this thread writes, at the address of the last move.
        let now = std::cell::RefCell::new(&mut now);
        let change = |round: u32| {
            let to = moves[round as usize % moves.len()];
            let mut now = now.borrow_mut();
            write(bus, **now, u64::from(to));
            **now = to;
        };
        storm(bus, change, |port, value| match value >> 32 {
            1 => assert_eq!(u64::from(port), 0x120 + (value & 0xffff)),
            2 => {
                let base = u64::from(port) - (value & 0xffff);
                assert!([0x100, 0x118, 0x14c].contains(&base), "{base:#x}");
                assert!(!(0x120..0x130).contains(&port), "it is the neighbour's");
            }
            _ => assert_eq!(value, u64::MAX),
        });
        assert!(bus.detach(mover).is_some());
    });
}

#[test]
fn a_region_is_switched_off_and_reset_shows_it_again() {
    with_bus(|bus| {
        let there = Arc::new(AtomicBool::new(true));
        let slot: SlotNumber = bus
            .attach(NAMES[0], Probe::boxed(5, IoRegion::ports(0x100, 4), &there))
            .unwrap();
        let read = |at| bus.read(&mut None, port(at)).value;
        assert_eq!(read(0x102), 5 << 32 | 2);
        write(bus, 0x100, 0);
        assert_eq!(read(0x102), u64::MAX);
        // Nobody is there to be written to.
        write(bus, 0x100, 0x200);
        assert_eq!(read(0x200), u64::MAX);
        let mut device = bus.detach(slot).unwrap();
        device.write(0, 0, 4, 0x200);
        bus.attach(NAMES[0], device).unwrap();
        assert_eq!(read(0x203), 5 << 32 | 3);
        // To where there are no ports.
        write(bus, 0x200, 0xfffe);
        assert_eq!((read(0xfffe), read(0x200)), (u64::MAX, u64::MAX));
    });
}

#[test]
fn a_bell_that_rang_before_a_reset_is_not_heard_behind_it() {
    with_bus(|bus| {
        let there = Arc::new(AtomicBool::new(true));
        let bell = IoRegion::ports(0x100, 4).doorbell();
        let slot = bus.attach(NAMES[1], Probe::boxed(1, bell, &there)).unwrap();
        write(bus, 0x100, 0);
        assert_eq!(bus.step(slot).0, Step::Again);
        assert_eq!(bus.step(slot).0, Step::Idle, "it rang once");
        write(bus, 0x100, 0);
        bus.reset();
        assert_eq!(bus.step(slot).0, Step::Idle);
        write(bus, 0x100, 0);
        assert_eq!(bus.step(slot).0, Step::Again, "it rings as before");
    });
}

#[test]
fn a_bell_waits_while_its_device_is_brought_to_rest() {
    with_bus(|bus| {
        let there = Arc::new(AtomicBool::new(true));
        let bell = IoRegion::ports(0x100, 4).doorbell();
        let slot = bus.attach(NAMES[1], Probe::boxed(1, bell, &there)).unwrap();
        write(bus, 0x100, 0);
        assert_eq!(bus.finish(slot).0, Step::Idle);
        assert_eq!(bus.step(slot).0, Step::Again);
    });
}
