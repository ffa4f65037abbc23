// SPDX-License-Identifier: MIT OR Apache-2.0
//! The block device: a disk, over a store of the host's (virtio 1.2: 5.2).
//!
//! ```text
//!   chain:  header │ data …          │ status        a write
//!           header │ data …            status        a read: the device writes the data, too
//!              │       │ pinned           ▲
//!              ▼       ▼                  │ OK, IOERR, UNSUPP
//!           request ── submit ──▶ store ──┘ next_done
//! ```
//!
//! What the driver asks for and cannot have is answered as a disk would answer it. A chain that is no request breaks the device.
#![forbid(unsafe_code)]

mod config;
mod request;

pub use config::{feature, MAX_RANGE_SECTORS, QUEUE_SIZE, SEG_MAX, SIZE_MAX};

use super::chain::Chain;
use super::contract::{DeviceType, Rings, VirtioDevice};
use super::error::QueueError;
use super::pci::VirtioPci;
use crate::addr::Gpa;
use crate::alloc_ext::{try_box, NoMemory, TryPush};
use crate::block::ram::RamStore;
use crate::block::{BlockError, BlockInfo, BlockRequest, BlockStore, Done};
use crate::devices::kind::{Kind, Machines};
use crate::devices::links::Dma;
use crate::devices::pci::Function;
use crate::devices::{Disk, Step};
use crate::interfaces::Wakers;
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;
use alloc::vec::Vec;
use config::Cache;
use request::{Asked, Request};

/// How machines come to have one. One without a store, which only a description in code can have, is an empty disk.
pub static KIND: Kind = Kind {
    name: "disk",
    machines: Machines::Described("v3vee,virtio-blk"),
    has_store: true,
    is_pci: true,
    make: |mut wanted| {
        let disk = match wanted.disk.take() {
            Some(disk) => Blk::new(disk.store, disk.queues, disk.serial.as_str())?,
            None => Blk::new(try_box(RamStore::new(0)?.read_only())?, 1, KIND.name)?,
        };
        let function = VirtioPci::new(KIND.name, try_box(disk)?, wanted.links)?;
        Function::boxed(wanted, function)
    },
    ..Kind::OF_EVERY_PC
};

const STATE_VERSION: u32 = 1;
/// The most queues.
pub const MAX_QUEUES: u16 = 16;
/// How many requests are with the store at most.
const MAX_IN_FLIGHT: usize = 256;
/// How many requests a step takes.
const STEP_REQUESTS: usize = 32;
/// How long the disk's name is.
pub const ID_BYTES: usize = 20;

/// What a request ends with (virtio 1.2: 5.2.6).
mod status {
    pub const OK: u8 = 0;
    pub const IO_ERROR: u8 = 1;
    pub const UNSUPPORTED: u8 = 2;
}

fn status_of(result: Result<(), BlockError>) -> u8 {
    match result {
        Ok(()) => status::OK,
        Err(BlockError::Unsupported) => status::UNSUPPORTED,
        Err(_) => status::IO_ERROR,
    }
}

/// A request that is with the store, as its chain will be put back.
#[derive(Clone, Copy)]
struct InFlight {
    queue: u16,
    head: u16,
    /// Where its status goes.
    status_at: Gpa,
    /// How many bytes of data are written if it ends well.
    data_bytes: u32,
}

/// What a disk has done since it was made.
#[derive(Default)]
struct Counters {
    /// Requests that read.
    reads: u64,
    /// Bytes that they read.
    read_bytes: u64,
    /// Requests that wrote.
    writes: u64,
    /// Bytes that they wrote.
    written_bytes: u64,
    /// Flushes.
    flushes: u64,
    /// Requests that did not end well.
    errors: u64,
}

/// The device.
pub struct Blk {
    store: Box<dyn BlockStore>,
    /// What the driver was told of the store.
    info: BlockInfo,
    /// The driver is to be told that this has changed.
    has_changed: bool,
    id: [u8; ID_BYTES],
    queues: u16,
    /// The queue that is served next.
    next_queue: u16,
    features: u64,
    cache: Cache,
    chain: Chain,
    /// Requests with the store, by token.
    in_flight: Vec<Option<InFlight>>,
    /// Tokens that no request has.
    free: Vec<u32>,
    /// What the store could not take yet.
    held: Option<BlockRequest>,
    /// The chain is a request of this queue, which waits: too many transfers use its memory.
    waiting: Option<u16>,
    counters: Counters,
}

impl Blk {
    /// A disk over a store, with `queues` queues, from 1 to [`MAX_QUEUES`]. `id` is what the guest knows it by; what is longer than
    /// [`ID_BYTES`] is cut off.
    pub fn new(store: Box<dyn BlockStore>, queues: u16, id: &str) -> Result<Self, NoMemory> {
        let (mut in_flight, mut free) = (Vec::new(), Vec::new());
        for token in 0..MAX_IN_FLIGHT {
            in_flight.try_push(None)?;
            free.try_push(token as u32)?;
        }
        let mut name = [0; ID_BYTES];
        name.iter_mut()
            .zip(id.bytes())
            .for_each(|(to, from)| *to = from);
        Ok(Self {
            info: store.info(),
            store,
            has_changed: false,
            id: name,
            queues: queues.clamp(1, MAX_QUEUES),
            next_queue: 0,
            features: 0,
            cache: Cache::default(),
            chain: Chain::new(QUEUE_SIZE)?,
            in_flight,
            free,
            held: None,
            waiting: None,
            counters: Counters::default(),
        })
    }

    /// Its store.
    pub fn store(&mut self) -> &mut dyn BlockStore {
        self.store.as_mut()
    }

    /// Takes in how the store is now.
    fn look_at_store(&mut self) {
        let now = self.store.info();
        self.has_changed |= now.sectors != self.info.sectors;
        // What was offered to the driver stays; the store says of each request whether it can be.
        self.info.sectors = now.sectors;
    }

    /// Gives the store a request again that it could not take. `false`: it still cannot.
    fn submit_held(&mut self) -> bool {
        match self.held.take() {
            Some(request) => self.submit(request),
            None => true,
        }
    }

    /// The driver has reset the device: what the store has not taken, it never will.
    fn drop_held(&mut self) {
        self.waiting = None;
        if let Some(request) = self.held.take() {
            if let Some(slot) = self.in_flight.get_mut(request.token as usize) {
                *slot = None;
                // Room for all tokens was reserved.
                let _ = self.free.try_push(request.token);
            }
        }
    }

    fn submit(&mut self, request: BlockRequest) -> bool {
        self.held = self.store.submit(request).err();
        self.held.is_none()
    }

    /// Takes the next request of a queue, and sees to it. `false`: there is none.
    fn take(&mut self, rings: &mut Rings<'_>, queue: u16) -> Result<bool, QueueError> {
        match rings.take(queue, &mut self.chain)? {
            true => self.see_to(rings, queue).map(|()| true),
            false => Ok(false),
        }
    }

    /// Sees to the request again that waits. `false`: it waits still.
    fn retry(&mut self, rings: &mut Rings<'_>) -> Result<bool, QueueError> {
        if let Some(queue) = self.waiting.take() {
            self.see_to(rings, queue)?;
        }
        Ok(self.waiting.is_none())
    }

    /// Sees to the request in the chain, which is of that queue.
    fn see_to(&mut self, rings: &mut Rings<'_>, queue: u16) -> Result<(), QueueError> {
        let request = Request::read(rings.dma(), &self.chain)?;
        let asked = request.ask(rings.dma(), &self.chain, self.limits())?;
        let head = self.chain.head();
        match asked {
            Asked::Store(operation, data_bytes) => {
                // There is a token: whoever takes a request looks first.
                let Some(token) = self.free.pop() else {
                    return Ok(());
                };
                if let Some(slot) = self.in_flight.get_mut(token as usize) {
                    *slot = Some(InFlight {
                        queue,
                        head,
                        status_at: request.status_at,
                        data_bytes,
                    });
                }
                self.submit(BlockRequest { token, operation });
            }
            Asked::Later => self.waiting = Some(queue),
            Asked::Id => {
                let written = request.write_id(rings.dma(), &self.chain, &self.id)?;
                put(rings, queue, head, request.status_at, status::OK, written)?;
            }
            Asked::Refused(error) => {
                self.counters.errors = self.counters.errors.wrapping_add(1);
                let status = status_of(Err(error));
                put(rings, queue, head, request.status_at, status, 0)?;
            }
        }
        Ok(())
    }

    fn limits(&self) -> request::Limits {
        request::Limits {
            info: self.info,
            can_discard: self.features & feature::DISCARD != 0,
            can_write_zeroes: self.features & feature::WRITE_ZEROES != 0,
            through: self.cache.writes_through(self.features),
        }
    }

    /// Puts back all that the store has done. One that fails does not keep the others from being let go of.
    fn put_done(&mut self, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        let mut result = Ok(());
        while let Some(done) = self.store.next_done() {
            let token = done.request.token;
            self.count(&done);
            let Done {
                request,
                result: ended,
            } = done;
            // What was pinned is let go of before the driver knows.
            drop(request);
            let slot = self.in_flight.get_mut(token as usize);
            let Some(of) = slot.and_then(Option::take) else {
                continue;
            };
            // Room for all tokens was reserved.
            let _ = self.free.try_push(token);
            let written = if ended.is_ok() { of.data_bytes } else { 0 };
            if result.is_ok() {
                let status = status_of(ended);
                result = put(rings, of.queue, of.head, of.status_at, status, written);
            }
        }
        result
    }

    fn count(&mut self, done: &Done) {
        use crate::block::Operation;
        let counters = &mut self.counters;
        let (requests, bytes) = match &done.request.operation {
            _ if done.result.is_err() => (&mut counters.errors, None),
            Operation::Read { memory, .. } => {
                let bytes = (&mut counters.read_bytes, memory.bytes());
                (&mut counters.reads, Some(bytes))
            }
            Operation::Flush => (&mut counters.flushes, None),
            Operation::Write { memory, .. } => {
                let bytes = (&mut counters.written_bytes, memory.bytes());
                (&mut counters.writes, Some(bytes))
            }
            Operation::Discard(_) | Operation::WriteZeroes { .. } => (&mut counters.writes, None),
        };
        *requests = requests.wrapping_add(1);
        if let Some((total, bytes)) = bytes {
            *total = total.wrapping_add(bytes);
        }
    }

    /// A request of its own that ends wakes it. Without one, it is others who use the memory that a request waits for, and it looks again.
    fn step_while_waiting(&self) -> Step {
        match self.waiting.is_some() && self.free.len() == self.in_flight.len() {
            true => Step::Again,
            false => Step::Idle,
        }
    }

    fn may_take(&self) -> bool {
        self.held.is_none() && self.waiting.is_none() && !self.free.is_empty()
    }

    /// Takes requests of all queues in turn. `true`: there may be more.
    fn take_some(&mut self, rings: &mut Rings<'_>) -> Result<bool, QueueError> {
        let (mut left, mut empty) = (STEP_REQUESTS, 0);
        while left > 0 && empty < self.queues {
            if !self.may_take() {
                return Ok(false);
            }
            let queue = self.next_queue;
            self.next_queue = match queue.wrapping_add(1) {
                next if next < self.queues => next,
                _ => 0,
            };
            match self.take(rings, queue)? {
                true => (left, empty) = (left.wrapping_sub(1), 0),
                false => empty = empty.wrapping_add(1),
            }
        }
        Ok(left == 0)
    }
}

/// Writes a request's status and puts its chain back. `data_bytes` were written before that.
fn put(
    rings: &mut Rings<'_>,
    queue: u16,
    head: u16,
    status_at: Gpa,
    status: u8,
    data_bytes: u32,
) -> Result<(), QueueError> {
    if !rings.is_live() {
        return Ok(());
    }
    write_status(rings.dma(), status_at, status)?;
    rings.put(queue, head, data_bytes.wrapping_add(1))
}

fn write_status(dma: &Dma, at: Gpa, status: u8) -> Result<(), QueueError> {
    Ok(dma.write(at, &[status])?)
}

impl VirtioDevice for Blk {
    fn name(&self) -> &'static str {
        "disk"
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }
    fn features(&self) -> u64 {
        config::features(&self.info)
    }
    fn queue_count(&self) -> u16 {
        self.queues
    }
    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }
    fn read_config(&self, offset: u64, bytes: &mut [u8]) {
        let image = config::image(&self.info, self.queues, self.cache);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = image.get(from..).unwrap_or_default();
        bytes
            .iter_mut()
            .zip(there)
            .for_each(|(to, from)| *to = *from);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (config::WRITEBACK, [value], true) =
            (offset, data, self.features & feature::CONFIG_WCE != 0)
        {
            self.cache.set_writeback(*value);
        }
    }
    fn take_config_change(&mut self) -> bool {
        core::mem::take(&mut self.has_changed)
    }

    fn begin(&mut self, wakers: &dyn Wakers) -> Result<(), NoMemory> {
        self.store.begin(wakers.waker()?)
    }
    fn activate(&mut self, features: u64) {
        self.features = features;
    }
    fn step(&mut self, rings: &mut Rings<'_>) -> Result<Step, QueueError> {
        self.look_at_store();
        self.put_done(rings)?;
        if !rings.is_live() {
            self.drop_held();
        }
        if !self.submit_held() || !self.retry(rings)? {
            return Ok(self.step_while_waiting());
        }
        let more = self.take_some(rings)?;
        // Some stores are done at once.
        self.put_done(rings)?;
        // If the store could take no more and has done some since, it can now.
        match more || self.held.is_some() && self.submit_held() {
            true => Ok(Step::Again),
            false => Ok(self.step_while_waiting()),
        }
    }
    fn in_flight(&self) -> usize {
        let with_store = self.in_flight.len().saturating_sub(self.free.len());
        with_store.saturating_add(self.waiting.is_some().into())
    }
    fn drain(&mut self) {
        self.store.drain();
    }
    fn disk(&mut self) -> Option<&mut dyn Disk> {
        Some(self)
    }
    fn counters(&self, tell: &mut dyn FnMut(&'static str, u64)) {
        let counters = &self.counters;
        for (name, value) in [
            ("reads", counters.reads),
            ("read_bytes", counters.read_bytes),
            ("writes", counters.writes),
            ("write_bytes", counters.written_bytes),
            ("flushes", counters.flushes),
            ("errors", counters.errors),
        ] {
            tell(name, value);
        }
    }

    fn reset(&mut self) {
        (self.held, self.waiting) = (None, None);
        (self.features, self.next_queue) = (0, 0);
        self.cache = Cache::default();
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        if !self.store.outlives_vm() {
            return Err(StateError::LostWithVm);
        }
        to.u32(STATE_VERSION)?;
        to.u64(self.info.sectors)?;
        to.bool(self.cache.is_writeback())
    }
    fn restore(&mut self, from: &mut StateReader<'_>, features: u64) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let sectors = from.u64()?;
        let mut cache = Cache::default();
        cache.set_writeback(from.bool("the cache's mode")?.into());
        let now = self.store.info();
        if now.sectors < sectors {
            return Err(StateError::SmallerStore);
        }
        // If the store is larger now, the next step finds that, and the guest is told.
        self.info = BlockInfo { sectors, ..now };
        (self.cache, self.features) = (cache, features);
        Ok(())
    }
}

impl Disk for Blk {
    fn info(&self) -> BlockInfo {
        self.store.info()
    }
    fn resize(&mut self, bytes: u64) -> Result<(), BlockError> {
        self.store.resize(bytes)
    }
}

#[cfg(test)]
mod tests;
