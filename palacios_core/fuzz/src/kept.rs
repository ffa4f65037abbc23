// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every kind of device, saved in the middle of what a guest does to it: one that is made anew and goes on from the record does from then on what the
//! first one does, to the guest and to the machine.
#![forbid(unsafe_code)]

use crate::{size, value, Target};
use palacios_core::devices::testing::{saved, TestMachine, TestStream};
use palacios_core::devices::{Device, Kind, Resources, Space, KINDS};
use palacios_core::ram::RamLayout;
use palacios_core::state_io::StateReader;

type Step = [u8; 8];

/// The target.
pub const TARGET: Target = Target {
    name: "kept",
    run,
    header_bytes: 2,
    step_bytes: 8,
};

const RAM_BYTES: usize = 64 << 10;
const WALL_NS: u64 = 1_700_000_000_000_000_000;
/// Interrupt lines of a PC.
const LINES: u32 = 24;

/// The first byte chooses the kind, the second behind how many steps it is saved.
fn run(data: &[u8]) {
    let &[which, save_behind, ref rest @ ..] = data else {
        return;
    };
    let kind = KINDS[usize::from(which) % KINDS.len()];
    let (steps, _): (Vec<Step>, _) = crate::steps(rest);
    let mut first = Bench::new(kind);
    let (before, behind) = steps.split_at(steps.len().min(save_behind.into()));
    for step in before {
        first.take(step);
    }
    let mut second = first.saved_and_loaded(kind);
    assert_eq!(first.lines(), second.lines(), "{}: lines", kind.name);
    first.forget_effects();
    second.forget_effects();
    for (n, step) in behind.iter().enumerate() {
        let (one, other) = (first.take(step), second.take(step));
        assert_eq!(
            one, other,
            "{}: step {n} behind the save, {step:?}",
            kind.name
        );
    }
    assert_eq!(first.record(), second.record(), "{}: state", kind.name);
}

/// A device in a machine of its own.
struct Bench {
    machine: TestMachine,
    stream: TestStream,
    device: Box<dyn Device>,
}

/// What a step did to the guest and to the machine.
#[derive(Debug, PartialEq)]
struct Effects {
    read: Option<u64>,
    deadline_ns: Option<u64>,
    lines: Vec<bool>,
    output: Vec<u8>,
    input_left: usize,
    others: String,
}

impl Bench {
    fn new(kind: &Kind) -> Self {
        let machine = TestMachine::new();
        machine.wall_at_zero_ns.set(WALL_NS);
        machine.ram.set(vec![0; RAM_BYTES]);
        Self::of(kind, machine, TestStream::default())
    }

    fn of(kind: &Kind, machine: TestMachine, stream: TestStream) -> Self {
        let device = (kind.make)(Resources {
            links: &machine,
            ram: RamLayout::new(1 << 30),
            place: kind.places.first(),
            slot: None,
            stream: kind.has_stream.then(|| Box::new(stream.clone()) as _),
            disk: None,
        });
        Self {
            device: device.expect("there is memory"),
            machine,
            stream,
        }
    }

    fn record(&mut self) -> Vec<u8> {
        saved(|to| self.device.save(to))
    }

    /// Another one that goes on from this one's record, at the same time, with the same memory and the same input before it.
    fn saved_and_loaded(&mut self, kind: &Kind) -> Self {
        let record = self.record();
        let machine = TestMachine::new();
        machine.wall_at_zero_ns.set(WALL_NS);
        machine.now_ns.set(self.machine.now_ns.get());
        machine.ram.set(self.machine.ram.borrow().clone());
        let mut other = Self::of(kind, machine, self.stream.with_the_same_input());
        let restored = other.device.restore(&mut StateReader::new(&record));
        assert_eq!(restored, Ok(()), "{}", kind.name);
        assert_eq!(other.record(), record, "{}", kind.name);
        other
    }

    fn lines(&self) -> Vec<bool> {
        (0..LINES).map(|line| self.machine.line(line)).collect()
    }

    /// What was before does not count: the machine knows of it already.
    fn forget_effects(&mut self) {
        let machine = &self.machine;
        machine.msis.take();
        machine.power.take();
        machine.changes.take();
        machine.forgotten.take();
        machine.legacy_replacement.take();
        self.stream.take_output();
    }

    fn take(&mut self, step: &Step) -> Effects {
        let mut read = None;
        match step[0] % 6 {
            0 | 1 => read = self.access(step, false),
            2 | 3 => _ = self.access(step, true),
            4 => {
                let ns = u64::from(value(step)) << (step[1] & 15);
                self.machine.advance_ns(ns);
                self.work(step);
            }
            _ => {
                self.stream
                    .give_input(&step[4..4 + usize::from(step[1] % 4)]);
                if let Some(input) = self.device.input() {
                    input.input_ready();
                }
            }
        }
        if let Some(timed) = self.device.timed() {
            timed.tick();
        }
        self.effects(read)
    }

    fn effects(&mut self, read: Option<u64>) -> Effects {
        let timed = self.device.timed();
        let deadline_ns = timed.and_then(|timed| timed.deadline_ns());
        let machine = &self.machine;
        Effects {
            read,
            deadline_ns,
            lines: self.lines(),
            output: self.stream.take_output(),
            input_left: self.stream.waiting(),
            others: format!(
                "{:?} {:?} {:?} {:?} {:?}",
                machine.msis.take(),
                machine.power.take(),
                machine.changes.take(),
                machine.forgotten.take(),
                machine.legacy_replacement.take()
            ),
        }
    }

    /// Reads or writes in one of the device's regions.
    fn access(&mut self, step: &Step, write: bool) -> Option<u64> {
        let regions = self.device.regions();
        let region = *regions.get(usize::from(step[3]) % regions.len().max(1))?;
        let size = size(step);
        let offset = match region.space {
            Space::Ports => u64::from(step[1]) % region.length,
            Space::Memory | Space::PciConfig => {
                ((u64::from(step[1]) << 2) % region.length) & !u64::from(size - 1)
            }
        };
        let at = region.at + offset;
        let (machine, device) = (&self.machine, &mut *self.device);
        match write {
            true => {
                machine.write(device, region.space, at, size, value(step).into());
                None
            }
            false => Some(machine.read(device, region.space, at, size)),
        }
    }

    /// Some steps of the device's work, if it has any, with some of its doorbells rung.
    fn work(&mut self, step: &Step) {
        if let Some(work) = self.device.work() {
            let mut rung = u64::from(step[3]);
            for _ in 0..8 {
                let _ = work.step(rung);
                rung >>= 1;
            }
        }
    }
}
