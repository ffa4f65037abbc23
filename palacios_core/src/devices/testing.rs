// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fake machine for tests: a clock that is set by hand, interrupt lines that are recorded, streams that are buffers.
#![forbid(unsafe_code)]

use super::links::Links;
use super::{ByteStream, Device, IoRegion, Request, Space};
use crate::addr::{Gpa, Hpa, NotRam, PAGE_SIZE};
use crate::alloc_ext::NoMemory;
use crate::interfaces::{
    Clock, DmaMemory, GuestMemory, InterruptLines, LogError, MemoryControl, Msi, MsiSender,
    PinError, PinnedMemory, PowerRequest, PowerSink, RandomSource,
};
use crate::regions::Change;
use crate::state_io::{StateError, StateReader, StateWriter};
use std::boxed::Box;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

/// A value that a test and the devices under test share.
#[derive(Default)]
pub struct Shared<T>(Arc<Mutex<T>>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Shared<T> {
    /// Looks at it.
    pub fn borrow(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("no test panics holding it")
    }
    /// Changes it.
    pub fn borrow_mut(&self) -> MutexGuard<'_, T> {
        self.borrow()
    }
    /// Sets it, and gives what it was.
    pub fn replace(&self, value: T) -> T {
        std::mem::replace(&mut *self.borrow(), value)
    }
    /// Sets it.
    pub fn set(&self, value: T) {
        self.replace(value);
    }
}

impl<T: Copy> Shared<T> {
    /// Its value.
    pub fn get(&self) -> T {
        *self.borrow()
    }
}

impl<T: Default> Shared<T> {
    /// Takes it out.
    pub fn take(&self) -> T {
        std::mem::take(&mut *self.borrow())
    }
}

/// What a device sees of a machine, in the hands of a test. Clones are the same machine.
#[derive(Clone, Default)]
pub struct TestMachine {
    /// The VM's clock.
    pub now_ns: Shared<u64>,
    /// What passes whenever a device looks at the clock: none, or that of a slow host.
    pub look_ns: Shared<u64>,
    /// What the wall clock showed when the VM's clock was zero.
    pub wall_at_zero_ns: Shared<u64>,
    /// Each time that a source raised or lowered an interrupt line, in order.
    pub irqs: Shared<Vec<(u32, bool)>>,
    /// Each switch of the legacy replacement, in order.
    pub legacy_replacement: Shared<Vec<bool>>,
    /// Where the wires of the PCI bus lead to.
    pub wire_routes: Shared<[Option<u8>; 4]>,
    /// The pages whose translations were forgotten, in order.
    pub forgotten: Shared<Vec<Gpa>>,
    /// How memory was changed.
    pub changes: Shared<Vec<Change>>,
    /// The dirty log runs.
    pub logs: Shared<bool>,
    /// Power requests, in order.
    pub power: Shared<Vec<PowerRequest>>,
    /// Message-signalled interrupts, in order.
    pub msis: Shared<Vec<Msi>>,
    /// Pins of guest memory that are held.
    pub pins: Shared<usize>,
    /// How many there may be at once, if not any number.
    pub most_pins: Shared<Option<usize>>,
    /// Guest RAM, from address 0.
    pub ram: Shared<Vec<u8>>,
}

impl TestMachine {
    /// A machine at time zero, without RAM.
    pub fn new() -> Self {
        Self::default()
    }
    /// Lets time pass.
    pub fn advance_ns(&self, ns: u64) {
        self.now_ns.set(self.now_ns.get().saturating_add(ns));
    }
    /// How many sources hold a line high, after each change.
    fn holders(&self, irq: u32) -> Vec<usize> {
        let mut holders = 0usize;
        let driven = self.irqs.borrow();
        let of_line = driven.iter().filter(|(at, _)| *at == irq);
        let after = of_line.map(|(_, high)| {
            holders = match high {
                true => holders.checked_add(1),
                false => holders.checked_sub(1),
            }
            .expect("a source lets go of what it held");
            holders
        });
        after.collect()
    }
    /// The level of a line.
    pub fn line(&self, irq: u32) -> bool {
        self.holders(irq).last().is_some_and(|holders| *holders > 0)
    }
    /// How many rising edges a line has seen.
    pub fn edges(&self, irq: u32) -> usize {
        let mut level = false;
        let levels = self.holders(irq).into_iter().map(|holders| holders > 0);
        levels
            .filter(|now| !std::mem::replace(&mut level, *now) && *now)
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
                timed.tick();
            }
        }
        self.now_ns.set(until_ns);
    }
    /// The device's region that an access at `at` goes to, and the offset in it.
    fn find(device: &dyn Device, space: Space, at: u64) -> Option<(usize, u64)> {
        let here = |region: &IoRegion| {
            region.on && region.space == space && region.at <= at && at < region.end()
        };
        let number = device.regions().iter().position(here)?;
        let region = device.regions().get(number)?;
        Some((number, at - region.at))
    }
    /// Reads `size` bytes of `space` at `at`; all ones where the device has nothing.
    pub fn read(&self, device: &mut dyn Device, space: Space, at: u64, size: u8) -> u64 {
        let wanted = u64::MAX >> (64 - 8 * u32::from(size));
        let value = Self::find(device, space, at).map_or(u64::MAX, |(region, offset)| {
            device.read(region, offset, size)
        });
        value & wanted
    }
    /// Writes `size` bytes of `space` at `at`.
    pub fn write(&self, device: &mut dyn Device, space: Space, at: u64, size: u8, value: u64) {
        if let Some((region, offset)) = Self::find(device, space, at) {
            device.write(region, offset, size, value);
            self.grant(device);
        }
    }
    /// Changes the machine as a device asks.
    fn grant(&self, device: &mut dyn Device) {
        if let Some(Request::Memory { changes, tag }) = device.request() {
            self.changes.borrow_mut().extend(changes);
            device.memory_changed(tag, Ok(()));
        }
    }
    /// Reads a port.
    pub fn port_read(&self, device: &mut dyn Device, port: u16, size: u8) -> u32 {
        self.read(device, Space::Ports, port.into(), size) as u32
    }
    /// Writes a port.
    pub fn port_write(&self, device: &mut dyn Device, port: u16, size: u8, value: u32) {
        self.write(device, Space::Ports, port.into(), size, value.into());
    }
    /// Reads a byte port.
    pub fn inb(&self, device: &mut dyn Device, port: u16) -> u8 {
        self.port_read(device, port, 1) as u8
    }
    /// Writes a byte port.
    pub fn outb(&self, device: &mut dyn Device, port: u16, value: u8) {
        self.port_write(device, port, 1, value.into());
    }
}

impl RandomSource for TestMachine {
    /// No surprise.
    fn fill(&mut self, buf: &mut [u8]) -> bool {
        buf.fill(0x11);
        true
    }
}

/// The links of a machine, but for those in whose place a test has put its own.
pub struct OwnLinks<'a> {
    machine: &'a TestMachine,
    lines: Option<MakesLink<'a, dyn InterruptLines>>,
    dma: Option<MakesLink<'a, dyn DmaMemory>>,
}

type MakesLink<'a, T> = &'a dyn Fn() -> Box<T>;

impl<'a> OwnLinks<'a> {
    /// With interrupt lines of the test's.
    pub fn with_lines(machine: &'a TestMachine, lines: MakesLink<'a, dyn InterruptLines>) -> Self {
        Self {
            machine,
            lines: Some(lines),
            dma: None,
        }
    }
    /// With a way to guest memory of the test's, for transfers.
    pub fn with_dma(machine: &'a TestMachine, dma: MakesLink<'a, dyn DmaMemory>) -> Self {
        Self {
            machine,
            lines: None,
            dma: Some(dma),
        }
    }
}

impl Links for OwnLinks<'_> {
    fn clock(&self) -> Result<Box<dyn Clock>, NoMemory> {
        self.machine.clock()
    }
    fn interrupt_lines(&self) -> Result<Box<dyn InterruptLines>, NoMemory> {
        self.lines
            .map_or_else(|| self.machine.interrupt_lines(), |make| Ok(make()))
    }
    fn power(&self) -> Result<Box<dyn PowerSink>, NoMemory> {
        self.machine.power()
    }
    fn msi(&self) -> Result<Box<dyn MsiSender>, NoMemory> {
        self.machine.msi()
    }
    fn dma_memory(&self) -> Result<Box<dyn DmaMemory>, NoMemory> {
        self.dma
            .map_or_else(|| self.machine.dma_memory(), |make| Ok(make()))
    }
    fn memory(&self) -> Result<Box<dyn GuestMemory>, NoMemory> {
        self.machine.memory()
    }
    fn random(&self) -> Result<Box<dyn RandomSource>, NoMemory> {
        self.machine.random()
    }
    fn memory_control(&self) -> Result<Box<dyn MemoryControl>, NoMemory> {
        self.machine.memory_control()
    }
}

impl Links for TestMachine {
    fn clock(&self) -> Result<Box<dyn Clock>, NoMemory> {
        Ok(Box::new(self.clone()))
    }
    fn interrupt_lines(&self) -> Result<Box<dyn InterruptLines>, NoMemory> {
        Ok(Box::new(self.clone()))
    }
    fn power(&self) -> Result<Box<dyn PowerSink>, NoMemory> {
        Ok(Box::new(self.clone()))
    }
    fn msi(&self) -> Result<Box<dyn MsiSender>, NoMemory> {
        Ok(Box::new(self.clone()))
    }
    fn dma_memory(&self) -> Result<Box<dyn DmaMemory>, NoMemory> {
        Ok(Box::new(self.clone()))
    }
    fn memory(&self) -> Result<Box<dyn GuestMemory>, NoMemory> {
        Ok(Box::new(self.clone()))
    }
    fn random(&self) -> Result<Box<dyn RandomSource>, NoMemory> {
        Ok(Box::new(self.clone()))
    }
    fn memory_control(&self) -> Result<Box<dyn MemoryControl>, NoMemory> {
        Ok(Box::new(self.clone()))
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

impl InterruptLines for TestMachine {
    fn raise(&self, number: u32) {
        self.irqs.borrow_mut().push((number, true));
    }
    fn lower(&self, number: u32) {
        self.irqs.borrow_mut().push((number, false));
    }
    fn set_legacy_replacement(&self, on: bool) {
        self.legacy_replacement.borrow_mut().push(on);
    }
    fn route_wire(&self, wire: usize, irq: Option<u8>) {
        self.wire_routes.borrow_mut()[wire] = irq;
    }
}

impl MemoryControl for TestMachine {
    fn forget(&self, at: Gpa) {
        self.forgotten.borrow_mut().push(at);
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

impl MsiSender for TestMachine {
    fn send(&self, msi: Msi) {
        self.msis.borrow_mut().push(msi);
    }
}

impl DmaMemory for TestMachine {
    fn pin(&self, at: Gpa, bytes: u64, write: bool) -> Result<Box<dyn PinnedMemory>, PinError> {
        let ram = self.ram.borrow().len() as u64;
        match at.0.checked_add(bytes) {
            Some(end) if end <= ram => {}
            _ => return Err(PinError::NotMemory(at)),
        }
        if self.pins.get() >= self.most_pins.get().unwrap_or(usize::MAX) {
            return Err(PinError::TooMany);
        }
        let now = self.pins.get().saturating_add(1);
        self.pins.set(now);
        let machine = self.clone();
        Ok(Box::new(TestPin {
            at,
            bytes,
            write,
            machine,
        }))
    }
}

/// A pin of a [`TestMachine`]'s, whose memory the host has where the guest has it.
struct TestPin {
    at: Gpa,
    bytes: u64,
    write: bool,
    machine: TestMachine,
}

impl TestPin {
    /// Where `len` bytes at `at` in it are, if it has so many there.
    fn reach(&self, at: u64, len: usize) -> Option<Gpa> {
        let end = at.checked_add(len as u64)?;
        (end <= self.bytes).then_some(Gpa(self.at.0 + at))
    }
}

impl PinnedMemory for TestPin {
    fn pieces(&self, piece: &mut dyn FnMut(Hpa, u64)) {
        piece(Hpa(self.at.0), self.bytes);
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> bool {
        let at = self.reach(at, buf.len());
        at.is_some_and(|at| GuestMemory::read(&self.machine, at, buf).is_ok())
    }
    fn write(&self, at: u64, data: &[u8]) -> bool {
        let at = self.reach(at, data.len()).filter(|_| self.write);
        at.is_some_and(|at| GuestMemory::write(&self.machine, at, data).is_ok())
    }
}

impl Drop for TestPin {
    fn drop(&mut self) {
        let left = self.machine.pins.get() - 1;
        self.machine.pins.set(left);
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
    /// Another one, with nothing sent and the same input before it.
    pub fn with_the_same_input(&self) -> Self {
        let input = self.input.lock().expect("no test panics holding it");
        Self {
            output: Arc::default(),
            input: Arc::new(Mutex::new(input.clone())),
        }
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
