// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fake machine for tests: a clock that is set by hand, interrupt lines that are recorded, streams that are buffers.
#![forbid(unsafe_code)]

use super::{ByteStream, Cx, Device};
use crate::addr::{Gpa, NotRam, PAGE_SIZE};
use crate::interfaces::{
    Clock, GuestMemory, IrqSink, LogError, MemoryControl, PowerRequest, PowerSink,
};
use crate::regions::{Change, RegionError};
use crate::state_io::{StateError, StateReader, StateWriter};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

/// What a device sees of a machine, in the hands of a test.
#[derive(Default)]
pub struct TestMachine {
    /// The VM's clock.
    pub now_ns: Cell<u64>,
    /// What passes whenever a device looks at the clock: none, or that of a slow host.
    pub look_ns: Cell<u64>,
    /// What the wall clock showed when the VM's clock was zero.
    pub wall_at_zero_ns: Cell<u64>,
    /// Each change of an interrupt line, in order.
    pub irqs: RefCell<Vec<(u32, bool)>>,
    /// Each switch of the legacy replacement, in order.
    pub legacy_replacement: RefCell<Vec<bool>>,
    /// The pages whose translations were forgotten, in order.
    pub forgotten: RefCell<Vec<Gpa>>,
    /// How memory was changed.
    pub changes: RefCell<Vec<Change>>,
    /// The dirty log runs.
    pub logs: Cell<bool>,
    /// Power requests, in order.
    pub power: RefCell<Vec<PowerRequest>>,
    /// Guest RAM, from address 0.
    pub ram: RefCell<Vec<u8>>,
}

impl TestMachine {
    /// A machine at time zero, without RAM.
    pub fn new() -> Self {
        Self::default()
    }
    /// What devices are handed.
    pub fn cx(&self) -> Cx<'_> {
        Cx {
            clock: self,
            irqs: self,
            memory: self,
            power: self,
            memory_control: self,
        }
    }
    /// Lets time pass.
    pub fn advance_ns(&self, ns: u64) {
        self.now_ns.set(self.now_ns.get().saturating_add(ns));
    }
    /// The level a line was last driven to.
    pub fn line(&self, irq: u32) -> bool {
        let driven = self.irqs.borrow();
        let last = driven.iter().rev().find(|(at, _)| *at == irq);
        last.is_some_and(|(_, level)| *level)
    }
    /// How many rising edges a line has seen.
    pub fn edges(&self, irq: u32) -> usize {
        let mut level = false;
        let driven = self.irqs.borrow();
        let of_line = driven.iter().filter(|(at, _)| *at == irq);
        of_line
            .filter(|(_, now)| !std::mem::replace(&mut level, *now) && *now)
            .count()
    }
    /// Runs a device's due work up to `until_ns`, each deadline at its time, as a host that is never late.
    pub fn run_until(&self, device: &mut dyn Device, until_ns: u64) {
        while let Some(due) = device.timed().and_then(|t| t.deadline_ns()) {
            if due > until_ns {
                break;
            }
            self.now_ns.set(self.now_ns.get().max(due));
            if let Some(timed) = device.timed() {
                timed.tick(&self.cx());
            }
        }
        self.now_ns.set(until_ns);
    }
    /// Reads a byte port.
    pub fn inb(&self, device: &mut dyn Device, port: u16) -> u8 {
        let io = device.port_io().expect("the device has ports");
        io.port_read(&self.cx(), port, 1) as u8
    }
    /// Writes a byte port.
    pub fn outb(&self, device: &mut dyn Device, port: u16, value: u8) {
        let io = device.port_io().expect("the device has ports");
        io.port_write(&self.cx(), port, 1, value.into());
    }
}

impl Clock for TestMachine {
    fn now_ns(&self) -> u64 {
        self.advance_ns(self.look_ns.get());
        self.now_ns.get()
    }
    fn wall_ns(&self) -> u64 {
        let wall = self.wall_at_zero_ns.get();
        wall.saturating_add(Clock::now_ns(self))
    }
}

impl IrqSink for TestMachine {
    fn set_irq(&self, irq: u32, level: bool) {
        self.irqs.borrow_mut().push((irq, level));
    }
    fn set_legacy_replacement(&self, on: bool) {
        self.legacy_replacement.borrow_mut().push(on);
    }
}

impl MemoryControl for TestMachine {
    fn forget(&self, at: Gpa) {
        self.forgotten.borrow_mut().push(at);
    }
    fn change(&self, changes: &[Change]) -> Result<(), RegionError> {
        self.changes.borrow_mut().extend(changes);
        Ok(())
    }
    fn discard(&self, _at: Gpa, bytes: u64) -> u64 {
        bytes / PAGE_SIZE
    }
    fn begin_log(&self) -> Result<(), LogError> {
        match self.logs.replace(true) {
            true => Err(LogError::Running),
            false => Ok(()),
        }
    }
    fn take_dirty(&self, first: u64, words: &mut [u64]) {
        words.fill(first);
    }
    fn end_log(&self) {
        self.logs.set(false);
    }
}

impl PowerSink for TestMachine {
    fn request(&self, what: PowerRequest) {
        self.power.borrow_mut().push(what);
    }
}

impl GuestMemory for TestMachine {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        let ram = self.ram.borrow();
        let start = usize::try_from(at.0).map_err(|_| NotRam(at))?;
        let end = start.checked_add(buf.len()).ok_or(NotRam(at))?;
        buf.copy_from_slice(ram.get(start..end).ok_or(NotRam(at))?);
        Ok(())
    }
    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
        let mut ram = self.ram.borrow_mut();
        let start = usize::try_from(at.0).map_err(|_| NotRam(at))?;
        let end = start.checked_add(data.len()).ok_or(NotRam(at))?;
        let room = ram.get_mut(start..end).ok_or(NotRam(at))?;
        room.copy_from_slice(data);
        Ok(())
    }
}

/// A stream whose two ends a test holds: clones share their bytes.
#[derive(Clone, Default)]
pub struct TestStream {
    output: Arc<Mutex<Vec<u8>>>,
    input: Arc<Mutex<VecDeque<u8>>>,
}

impl TestStream {
    /// Takes what the device wrote so far.
    pub fn take_output(&self) -> Vec<u8> {
        std::mem::take(&mut *self.output.lock().expect("no test panics holding it"))
    }
    /// Leaves input for the device.
    pub fn give_input(&self, data: &[u8]) {
        let mut input = self.input.lock().expect("no test panics holding it");
        input.extend(data);
    }
    /// How much input the device has not taken.
    pub fn waiting(&self) -> usize {
        self.input.lock().expect("no test panics holding it").len()
    }
}

impl ByteStream for TestStream {
    fn write(&mut self, data: &[u8]) {
        let mut output = self.output.lock().expect("no test panics holding it");
        output.extend_from_slice(data);
    }
    fn read(&mut self, buf: &mut [u8]) -> usize {
        let mut input = self.input.lock().expect("no test panics holding it");
        let count = buf.len().min(input.len());
        for (to, from) in buf.iter_mut().zip(input.drain(..count)) {
            *to = from;
        }
        count
    }
}

/// The record a device, or anything with such a method, saves.
pub fn saved(save: impl FnOnce(&mut StateWriter<'_>) -> Result<(), StateError>) -> Vec<u8> {
    let mut record = Vec::new();
    save(&mut StateWriter::new(&mut record)).expect("a test has memory");
    record
}

/// Restores `record` into `to`, and asserts that it saves the same record again.
pub fn assert_restores(record: &[u8], to: &mut dyn Device) {
    let restored = to.restore(&mut StateReader::new(record));
    assert_eq!(restored, Ok(()));
    assert_eq!(saved(|w| to.save(w)), record);
}

/// Hands a device a record it may not have written: it must take or refuse it, and one refused must leave no trace.
pub fn assert_survives(record: &[u8], device: &mut dyn Device) {
    let before = saved(|w| device.save(w));
    if device.restore(&mut StateReader::new(record)).is_err() {
        assert_eq!(saved(|w| device.save(w)), before);
    }
}
