// SPDX-License-Identifier: MIT OR Apache-2.0
//! A driver for tests: what a guest does to a virtio device, on a [`TestMachine`].
#![forbid(unsafe_code)]

use super::{feature, modern, status, InterruptSink, Virtio, VirtioDevice};
use crate::addr::Gpa;
use crate::alloc_ext::NoMemory;
use crate::devices::links::Links;
use crate::devices::testing::{Shared, TestMachine};
use crate::devices::Step;
use crate::interfaces::{GuestMemory, Wake, Wakers};
use std::boxed::Box;
use std::vec::Vec;

/// How much RAM the machine has.
pub const RAM_BYTES: usize = 4 << 20;
/// Where the rings of the first queue are; those of each other one are [`QUEUE_STRIDE`] further.
pub const RINGS: u64 = 0x1_0000;
/// How much memory the rings of a queue have.
pub const QUEUE_STRIDE: u64 = 0x4000;
/// Where buffers are.
pub const BUFFERS: u64 = 0x10_0000;
/// The offsets of a queue's parts.
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it is.
    pub at: u64,
    /// How long it is.
    pub bytes: u32,
    /// The device writes it.
    pub write: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn read(at: u64, bytes: u32) -> Self {
        Self {
            at,
            bytes,
            write: false,
        }
    }
    /// A buffer that the device writes.
    pub fn write(at: u64, bytes: u32) -> Self {
        Self {
            at,
            bytes,
            write: true,
        }
    }
}

/// The interrupts of a device.
#[derive(Clone, Default)]
pub struct TestSink {
    /// The vectors of the messages, in order.
    pub messages: Shared<Vec<u16>>,
}

impl InterruptSink for TestSink {
    fn message(&mut self, vector: u16) {
        self.messages.borrow_mut().push(vector);
    }
}

/// What wakes the worker.
#[derive(Clone, Default)]
pub struct TestWaker(pub Shared<usize>);

impl Wake for TestWaker {
    fn wake(&self) {
        let times = self.0.get();
        self.0.set(times.wrapping_add(1));
    }
}

impl Wakers for TestWaker {
    fn waker(&self) -> Result<Box<dyn Wake>, NoMemory> {
        Ok(Box::new(self.clone()))
    }
}

/// The driver's side of a queue.
#[derive(Clone, Copy, Debug)]
struct Side {
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

/// A device and its driver.
pub struct TestDriver {
    /// The machine.
    pub machine: TestMachine,
    /// The device.
    pub virtio: Virtio,
    /// Its interrupts.
    pub sink: TestSink,
    /// What woke its worker.
    pub waker: TestWaker,
    sides: Vec<Side>,
    next_buffer: u64,
}

impl TestDriver {
    /// A device that nobody has touched, on a machine with RAM, and allowed to master the bus.
    pub fn new(machine: TestMachine, device: Box<dyn VirtioDevice>) -> Self {
        let links = machine.clone();
        Self::with_links(machine, &links, device)
    }
    /// The same with links of its own to that machine.
    pub fn with_links(
        machine: TestMachine,
        links: &dyn Links,
        device: Box<dyn VirtioDevice>,
    ) -> Self {
        if machine.ram.borrow().is_empty() {
            machine.ram.replace(std::vec![0; RAM_BYTES]);
        }
        let mut virtio = Virtio::new(device, links, 16).expect("a test has memory");
        let waker = TestWaker::default();
        virtio.begin(&waker).expect("a test has memory");
        virtio.set_dma_open(true);
        Self {
            machine,
            virtio,
            sink: TestSink::default(),
            waker,
            sides: Vec::new(),
            next_buffer: BUFFERS,
        }
    }

    /// Reads a register of the common configuration.
    pub fn get(&self, offset: u64, size: u8) -> u64 {
        modern::read(&self.virtio, offset, size)
    }
    /// Writes one.
    pub fn set(&mut self, offset: u64, size: u8, value: u64) {
        modern::write(&mut self.virtio, offset, size, value, &mut self.sink);
    }
    /// The status.
    pub fn status(&self) -> u8 {
        self.get(0x14, 1) as u8
    }
    /// What the device offers.
    pub fn offered(&mut self) -> u64 {
        self.set(0, 4, 1);
        let high = self.get(4, 4);
        self.set(0, 4, 0);
        high << 32 | self.get(4, 4)
    }

    /// Sets the device up with those of `features` that it offers, and queues of `size`. Vectors: 0 for changes, 1 and so on for queues.
    pub fn start(&mut self, features: u64, size: u16) {
        let features = self.offered() & features | feature::VERSION_1;
        self.set(0x14, 1, 3);
        for (select, half) in [(0, features), (1, features >> 32)] {
            self.set(8, 4, select);
            self.set(0xc, 4, half & u64::from(u32::MAX));
        }
        self.set(0x14, 1, 0xb);
        assert_eq!(self.status(), 0xb, "the device takes the features");
        self.set(0x10, 2, 0);
        self.sides.clear();
        for queue in 0..self.get(0x12, 2) {
            self.set(0x16, 2, queue);
            self.set(0x18, 2, size.into());
            self.set(0x1a, 2, queue + 1);
            let rings = RINGS + queue * QUEUE_STRIDE;
            self.machine.ram.borrow_mut()[rings as usize..][..QUEUE_STRIDE as usize].fill(0);
            for (offset, at) in [
                (0x20, rings),
                (0x28, rings + AVAILABLE),
                (0x30, rings + USED),
            ] {
                self.set(offset, 8, at);
            }
            self.set(0x1c, 2, 1);
            self.sides.push(Side {
                size,
                next_descriptor: 0,
                available: 0,
                used: 0,
            });
        }
        self.set(0x14, 1, 0xf);
        assert_eq!(self.status(), 0xf);
    }

    /// Reads memory.
    pub fn read_memory(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut buf = std::vec![0; bytes];
        let read = GuestMemory::read(&self.machine, Gpa(at), &mut buf);
        read.expect("memory");
        buf
    }
    /// Writes memory.
    pub fn write_memory(&self, at: u64, data: &[u8]) {
        GuestMemory::write(&self.machine, Gpa(at), data).expect("memory");
    }
    fn read_u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read_memory(at, 2).try_into().expect("two bytes"))
    }
    /// Memory for a buffer, which was not given out before in a long time.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let end = RAM_BYTES as u64;
        if self.next_buffer + bytes as u64 > end {
            self.next_buffer = BUFFERS;
        }
        let at = self.next_buffer;
        self.next_buffer = (at + bytes as u64).next_multiple_of(16);
        at
    }

    /// Writes a descriptor of a queue's table.
    pub fn descriptor(&self, queue: u16, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let at = RINGS + u64::from(queue) * QUEUE_STRIDE + u64::from(index) * 16;
        self.write_memory(at, &descriptor(buffer, flags, next));
    }
    /// Offers the chain that begins at a descriptor.
    pub fn offer_head(&mut self, queue: u16, head: u16) {
        let rings = RINGS + u64::from(queue) * QUEUE_STRIDE + AVAILABLE;
        let side = &mut self.sides[usize::from(queue)];
        let slot = u64::from(side.available % side.size);
        side.available = side.available.wrapping_add(1);
        let index = side.available;
        self.write_memory(rings + 4 + slot * 2, &head.to_le_bytes());
        self.write_memory(rings + 2, &index.to_le_bytes());
    }
    /// Offers buffers as a chain; returns its head.
    pub fn offer(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        let side = self.sides[usize::from(queue)];
        let at = |n: usize| (side.next_descriptor + n as u16) % side.size;
        for (n, buffer) in buffers.iter().enumerate() {
            let more = n + 1 < buffers.len();
            self.descriptor(queue, at(n), *buffer, u16::from(more), at(n + 1));
        }
        let head = side.next_descriptor;
        self.sides[usize::from(queue)].next_descriptor = at(buffers.len());
        self.offer_head(queue, head);
        head
    }
    /// Offers buffers by an indirect table.
    pub fn offer_indirect(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        let table = self.allocate(buffers.len() * 16);
        for (n, buffer) in buffers.iter().enumerate() {
            let more = n + 1 < buffers.len();
            let raw = descriptor(*buffer, u16::from(more), n as u16 + 1);
            self.write_memory(table + n as u64 * 16, &raw);
        }
        let side = &mut self.sides[usize::from(queue)];
        let head = side.next_descriptor;
        side.next_descriptor = (head + 1) % side.size;
        let of_table = Buffer::read(table, buffers.len() as u32 * 16);
        self.descriptor(queue, head, of_table, 4, 0);
        self.offer_head(queue, head);
        head
    }

    /// Has the rings of a queue stand where they are when so many chains went round, modulo 2^16.
    pub fn skip_to(&mut self, queue: u16, index: u16) {
        let rings = RINGS + u64::from(queue) * QUEUE_STRIDE;
        for ring in [AVAILABLE, USED] {
            self.write_memory(rings + ring + 2, &index.to_le_bytes());
        }
        let side = &mut self.sides[usize::from(queue)];
        (side.available, side.used) = (index, index);
    }
    /// Notifies of all queues, and steps until the device idles. Returns how many steps that took.
    pub fn run(&mut self) -> usize {
        self.virtio.notify(u64::MAX);
        self.step_until_idle()
    }
    /// Notifies of all queues, and makes one step.
    pub fn step_once(&mut self) -> Step {
        self.virtio.notify(u64::MAX);
        self.virtio.step(&mut self.sink)
    }
    /// Steps until the device idles.
    pub fn step_until_idle(&mut self) -> usize {
        for steps in 1..100_000 {
            if self.virtio.step(&mut self.sink) == Step::Idle {
                return steps;
            }
        }
        panic!("the device never idles");
    }
    /// The next chain that came back: its head and how much was written.
    pub fn take_used(&mut self, queue: u16) -> Option<(u32, u32)> {
        let rings = RINGS + u64::from(queue) * QUEUE_STRIDE + USED;
        let index = self.read_u16(rings + 2);
        let side = &mut self.sides[usize::from(queue)];
        if side.used == index {
            return None;
        }
        let slot = u64::from(side.used % side.size);
        side.used = side.used.wrapping_add(1);
        let raw = self.read_memory(rings + 4 + slot * 8, 8);
        let word = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes"));
        Some((word(0), word(4)))
    }
    /// Asks for an interrupt when the device has put so many chains back.
    pub fn set_used_event(&self, queue: u16, index: u16) {
        let size = u64::from(self.sides[usize::from(queue)].size);
        let at = RINGS + u64::from(queue) * QUEUE_STRIDE + AVAILABLE + 4 + 2 * size;
        self.write_memory(at, &index.to_le_bytes());
    }
    /// At which index the device wants to be notified.
    pub fn avail_event(&self, queue: u16) -> u16 {
        let size = u64::from(self.sides[usize::from(queue)].size);
        self.read_u16(RINGS + u64::from(queue) * QUEUE_STRIDE + USED + 4 + 8 * size)
    }
    /// The flags of the used ring.
    pub fn used_flags(&self, queue: u16) -> u16 {
        self.read_u16(RINGS + u64::from(queue) * QUEUE_STRIDE + USED)
    }
    /// Sets the flags of the available ring.
    pub fn set_available_flags(&self, queue: u16, flags: u16) {
        let at = RINGS + u64::from(queue) * QUEUE_STRIDE + AVAILABLE;
        self.write_memory(at, &flags.to_le_bytes());
    }
    /// The device wants to be reset.
    pub fn needs_reset(&self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }
}

fn descriptor(buffer: Buffer, flags: u16, next: u16) -> [u8; 16] {
    let flags = flags | u16::from(buffer.write) << 1;
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&buffer.at.to_le_bytes());
    raw[8..12].copy_from_slice(&buffer.bytes.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    raw
}
