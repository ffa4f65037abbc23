// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a virtio device and its transport owe each other.
#![forbid(unsafe_code)]

use super::chain::Chain;
use super::error::QueueError;
use super::queue::{Queue, RingFeatures};
use crate::alloc_ext::NoMemory;
use crate::devices::links::Dma;
use crate::devices::{Disk, Step};
use crate::interfaces::Wakers;
use crate::state_io::{StateError, StateReader, StateWriter};

/// The kind of a device (virtio 1.2: 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceType {
    /// A block device.
    Block = 2,
    /// An entropy source.
    Entropy = 4,
}

/// A device behind a transport. It knows queues and a configuration space, and neither PCI nor interrupts.
///
/// A device is *live* when the driver has set it up, and until that resets it. While it is live it takes chains from its queues and
/// puts them back. When the driver resets it, what is under way may go on for a while: the device takes nothing new, and what it puts back
/// goes nowhere. When nothing is under way any more, [`VirtioDevice::reset`] is called.
pub trait VirtioDevice: Send {
    /// A short name of its kind.
    fn name(&self) -> &'static str;
    /// Its kind.
    fn device_type(&self) -> DeviceType;
    /// What it offers beside the features of rings and transports.
    fn features(&self) -> u64;
    /// Whether it can work with these.
    fn accepts(&self, _features: u64) -> bool {
        true
    }
    /// How many queues it has, from 1 on.
    fn queue_count(&self) -> u16;
    /// How large each may be: a power of two up to [`super::queue::MAX_QUEUE_SIZE`].
    fn queue_size(&self) -> u16;
    /// The bytes of its configuration space at `offset`. What is behind its end stays as it is in `bytes`, which is zero.
    fn read_config(&self, offset: u64, bytes: &mut [u8]);
    /// A write to it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Something in its configuration space has changed by itself since this was last asked.
    fn take_config_change(&mut self) -> bool {
        false
    }

    /// Called once, before the first step. `wakers` make what has a step follow.
    fn begin(&mut self, _wakers: &dyn Wakers) -> Result<(), NoMemory> {
        Ok(())
    }
    /// It is live now, with these features.
    fn activate(&mut self, _features: u64) {}
    /// A short piece of work.
    ///
    /// # Errors
    /// What the driver did wrong. The device then works on nothing until it is reset.
    fn step(&mut self, rings: &mut Rings<'_>) -> Result<Step, QueueError>;
    /// How many chains were taken and are not back.
    fn in_flight(&self) -> usize {
        0
    }
    /// Waits until nobody else works on what was taken, so that steps without a pause end it. May take long.
    fn drain(&mut self) {}
    /// The disk, if it is one.
    fn disk(&mut self) -> Option<&mut dyn Disk> {
        None
    }
    /// As [`Device::counters`](crate::devices::Device::counters).
    fn counters(&self, _tell: &mut dyn FnMut(&'static str, u64)) {}

    /// Back to how it was made. Nothing is in flight.
    fn reset(&mut self);
    /// Writes what a guest can observe of it. Nothing is in flight.
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError>;
    /// Takes that back, whole or not at all. `features` are those that the driver had accepted.
    fn restore(&mut self, from: &mut StateReader<'_>, features: u64) -> Result<(), StateError>;
}

/// What a device needs its queues for, in one step.
pub struct Rings<'a> {
    pub(super) queues: &'a mut [Queue],
    pub(super) dma: &'a Dma,
    pub(super) features: RingFeatures,
    /// Chains may be taken.
    pub(super) begins: bool,
    /// Chains go back to the driver.
    pub(super) live: bool,
}

impl Rings<'_> {
    /// The device's way to guest memory.
    pub fn dma(&self) -> &Dma {
        self.dma
    }
    /// Chains go back to the driver. If not, nothing of the guest's memory may be written any more.
    pub fn is_live(&self) -> bool {
        self.live
    }
    /// Whether chains may wait in a queue and may be taken.
    pub fn is_pending(&self, queue: u16) -> bool {
        let found = self.queues.get(usize::from(queue));
        self.begins && found.is_some_and(Queue::is_pending)
    }
    /// Takes the next chain of a queue. `false`: there is none, or none is to be taken now.
    pub fn take(&mut self, queue: u16, chain: &mut Chain) -> Result<bool, QueueError> {
        match self.queues.get_mut(usize::from(queue)) {
            Some(queue) if self.begins => queue.take(self.dma, self.features, chain),
            _ => Ok(false),
        }
    }
    /// Puts a chain back, by its head, into which `written` bytes were written. The driver is told at the end of the step.
    pub fn put(&mut self, queue: u16, head: u16, written: u32) -> Result<(), QueueError> {
        match self.queues.get_mut(usize::from(queue)) {
            Some(queue) if self.live && queue.is_ready() => queue.put(self.dma, head, written),
            _ => Ok(()),
        }
    }
}

/// How a device's messages leave it. A transport that has a line drives that by [`Virtio::line`](super::Virtio::line).
pub trait InterruptSink {
    /// The guest has messages. Then nobody looks at the interrupt status for queues (virtio 1.2: 4.1.4.5.1).
    fn uses_messages(&self) -> bool {
        false
    }
    /// The message of a vector is due. [`super::queue::NO_VECTOR`]: the driver wants none.
    fn message(&mut self, vector: u16);
}
