// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtio device as its driver sees it, whatever bus it is on: status, features, queues, interrupts (virtio 1.2: 2, 3).
//!
//! ```text
//!   PCI, or another bus:  registers ── modern.rs, legacy.rs ──▶ Virtio ──▶ VirtioDevice      on the vCPU's thread
//!                         doorbells ──▶ worker ──▶ step ───────▶   │   ──▶                    on the worker's
//!                         messages ◀── InterruptSink ◀─────────────┤
//!                         a line ◀── Virtio::line ◀────────────────┘
//! ```
//!
//! The invariant: while [`Virtio::is_live`] does not hold, nothing of the guest's memory is read or written.
#![forbid(unsafe_code)]

use super::contract::{InterruptSink, Rings, VirtioDevice};
use super::error::QueueError;
use super::queue::{Queue, RingFeatures, MAX_QUEUE_SIZE, NO_VECTOR};
use crate::alloc_ext::{NoMemory, TryPush};
use crate::devices::links::{Dma, Links};
use crate::devices::Step;
use crate::interfaces::{Wake, Wakers};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;
use alloc::vec::Vec;

const STATE_VERSION: u32 = 1;
/// No configuration space is larger.
const CONFIG_BYTES: u64 = 0x1000;

/// The device status (virtio 1.2: 2.1).
pub mod status {
    /// The driver knows how to drive the device.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on before it is reset.
    pub const NEEDS_RESET: u8 = 0x40;
    /// The driver has given up.
    pub const FAILED: u8 = 0x80;
    /// All that drivers set.
    pub const OF_DRIVER: u8 = 1 | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// Features of rings and transports (virtio 1.2: 6, 6.3).
pub mod feature {
    /// VIRTIO_F_ANY_LAYOUT, for drivers of version 0.9: buffers may be cut as one likes.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
}

/// The interrupt status (virtio 1.2: 4.1.4.5).
mod isr {
    pub const QUEUE: u8 = 1;
    pub const CONFIG: u8 = 2;
}

/// Which interface the driver uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    Modern,
    /// That of version 0.9.
    Legacy,
}

/// A device with what all virtio devices have.
pub struct Virtio {
    device: Box<dyn VirtioDevice>,
    dma: Dma,
    waker: Option<Box<dyn Wake>>,
    /// How many vectors there are.
    vectors: u16,
    pub(super) queues: Vec<Queue>,
    pub(super) registers: Registers,
    /// The driver has reset it, and something is under way still.
    is_resetting: bool,
    /// What the driver did wrong.
    fault: Option<QueueError>,
}

/// What the driver has set, and reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    pub(super) status: u8,
    /// The driver has used the interface of version 0.9.
    pub(super) is_legacy: bool,
    /// The features that the driver has accepted.
    pub(super) accepted: u64,
    pub(super) offered_select: u32,
    pub(super) accepted_select: u32,
    pub(super) queue_select: u16,
    pub(super) config_vector: u16,
    pub(super) generation: u8,
    isr: u8,
}

impl Registers {
    const AFTER_RESET: Self = Self {
        status: 0,
        is_legacy: false,
        accepted: 0,
        offered_select: 0,
        accepted_select: 0,
        queue_select: 0,
        config_vector: NO_VECTOR,
        generation: 0,
        isr: 0,
    };
}

impl Virtio {
    /// A device that no driver has touched. `vectors`: how many messages the transport has.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        links: &dyn Links,
        vectors: u16,
    ) -> Result<Self, NoMemory> {
        let mut queues = Vec::new();
        for _ in 0..device.queue_count() {
            let size = device.queue_size().min(MAX_QUEUE_SIZE);
            queues.try_push(Queue::new(size))?;
        }
        Ok(Self {
            device,
            dma: links.dma()?,
            waker: None,
            vectors,
            queues,
            registers: Registers::AFTER_RESET,
            is_resetting: false,
            fault: None,
        })
    }

    /// The device itself.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }
    /// The device itself.
    pub fn device_mut(&mut self) -> &mut dyn VirtioDevice {
        self.device.as_mut()
    }
    /// What the driver did wrong, if the device wants to be reset.
    pub fn fault(&self) -> Option<QueueError> {
        self.fault
    }
    /// The driver has set it up, and it may work.
    pub fn is_live(&self) -> bool {
        let has = |bits| self.registers.status & bits == bits;
        // Old drivers use the queues before they say that they are ready (virtio 1.2: 3.1.2).
        let is_set_up = match self.registers.is_legacy {
            true => has(status::DRIVER),
            false => has(status::FEATURES_OK | status::DRIVER_OK),
        };
        let is_broken = self.registers.status & (status::NEEDS_RESET | status::FAILED) != 0;
        is_set_up && !is_broken && !self.is_resetting
    }
    /// The driver lets it master the bus, or not. Without that it does nothing.
    pub fn set_dma_open(&mut self, open: bool) {
        let was_open = self.dma.is_open();
        self.dma.set_open(open);
        if open && !was_open {
            self.wake();
        }
    }
    /// Whether an interrupt line is to be high.
    pub fn line(&self) -> bool {
        self.registers.isr != 0
    }

    // The worker.

    /// It has a worker now.
    pub fn begin(&mut self, wakers: &dyn Wakers) -> Result<(), NoMemory> {
        self.waker = Some(wakers.waker()?);
        self.device.begin(wakers)
    }
    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
    /// Something may wait in these queues, a bit for each; behind the 64th all are looked at. The worker has to look.
    pub fn notify(&mut self, queues: u64) {
        for (number, queue) in self.queues.iter_mut().enumerate() {
            if number >= 64 || queues & 1 << number != 0 {
                queue.set_pending();
            }
        }
    }
    /// The driver has notified by a register that is no doorbell.
    pub(super) fn notify_one(&mut self, number: u16) {
        if let Some(queue) = self.queues.get_mut(usize::from(number)) {
            queue.set_pending();
            self.wake();
        }
    }

    /// A step of its work.
    pub fn step(&mut self, sink: &mut dyn InterruptSink) -> Step {
        self.make_step(true, sink)
    }
    /// A step in which nothing new is taken. It waits for those who work on what was: a disk may need longer than one looks in vain.
    pub fn finish(&mut self, sink: &mut dyn InterruptSink) -> Step {
        self.device.drain();
        self.make_step(false, sink)
    }
    /// Nothing is under way.
    pub fn is_at_rest(&self) -> bool {
        self.device.in_flight() == 0
    }

    fn make_step(&mut self, begins: bool, sink: &mut dyn InterruptSink) -> Step {
        let live = self.is_live();
        let features = self.ring_features();
        let mut rings = Rings {
            queues: &mut self.queues,
            dma: &self.dma,
            features,
            begins: begins && live && self.dma.is_open(),
            live,
        };
        let stepped = self.device.step(&mut rings);
        let published = if live { self.publish(sink) } else { Ok(()) };
        if self.device.take_config_change() {
            self.config_changed(sink);
        }
        if self.is_resetting && self.device.in_flight() == 0 {
            self.complete_reset();
        }
        match (stepped, published) {
            (Ok(step), Ok(())) => step,
            (Err(error), _) | (_, Err(error)) => {
                self.break_down(error, sink);
                Step::Idle
            }
        }
    }

    /// Shows the driver what was done, with one interrupt for a queue at most.
    fn publish(&mut self, sink: &mut dyn InterruptSink) -> Result<(), QueueError> {
        let features = self.ring_features();
        for queue in &mut self.queues {
            if queue.publish(&self.dma, features)? {
                if !sink.uses_messages() {
                    self.registers.isr |= isr::QUEUE;
                }
                sink.message(queue.vector);
            }
        }
        Ok(())
    }

    /// The configuration space has changed (virtio 1.2: 2.5.2, 4.1.5.4).
    fn config_changed(&mut self, sink: &mut dyn InterruptSink) {
        self.registers.generation = self.registers.generation.wrapping_add(1);
        if self.registers.status & status::DRIVER_OK != 0 && !self.is_resetting {
            self.interrupt_for_config(sink);
        }
    }

    fn interrupt_for_config(&mut self, sink: &mut dyn InterruptSink) {
        self.registers.isr |= isr::CONFIG;
        sink.message(self.registers.config_vector);
    }

    /// The driver broke the rules: nothing goes on until it resets the device (virtio 1.2: 2.1.2).
    pub(super) fn break_down(&mut self, error: QueueError, sink: &mut dyn InterruptSink) {
        if self.registers.status & status::NEEDS_RESET != 0 || self.is_resetting {
            return;
        }
        self.fault = Some(error);
        self.registers.status |= status::NEEDS_RESET;
        if self.registers.status & status::DRIVER_OK != 0 {
            self.interrupt_for_config(sink);
        }
    }

    // The registers.

    fn ring_features(&self) -> RingFeatures {
        let has = |bit| self.registers.accepted & bit != 0;
        RingFeatures {
            indirect: has(feature::INDIRECT_DESC),
            event_index: has(feature::EVENT_IDX),
        }
    }

    pub(super) fn offered(&self, interface: Interface) -> u64 {
        let of_rings = feature::INDIRECT_DESC | feature::EVENT_IDX;
        let offered = self.device.features() | of_rings;
        match interface {
            Interface::Modern => offered | feature::VERSION_1,
            Interface::Legacy => (offered | feature::ANY_LAYOUT) & u64::from(u32::MAX),
        }
    }

    /// The driver accepts some of the features in `mask`; what is not offered is none.
    pub(super) fn accept(&mut self, interface: Interface, mask: u64, features: u64) {
        let is_settled = self.registers.status & (status::FEATURES_OK | status::DRIVER_OK) != 0;
        if is_settled || self.is_resetting {
            return;
        }
        self.registers.is_legacy = interface == Interface::Legacy;
        let others = self.registers.accepted & !mask;
        // One that was not offered is kept as it is, so that FEATURES_OK is refused. Old drivers do not ask.
        let features = match interface {
            Interface::Modern => features,
            Interface::Legacy => features & self.offered(interface),
        };
        self.registers.accepted = others | features & mask;
        if self.is_live() {
            // An old driver that began before it said so.
            self.device.activate(self.registers.accepted);
        }
    }

    /// What the driver reads as the status.
    pub(super) fn status(&self) -> u8 {
        self.registers.status
    }

    pub(super) fn write_status(&mut self, interface: Interface, new: u8) {
        if new == 0 {
            return self.begin_reset(interface);
        }
        if self.is_resetting {
            return;
        }
        let before = self.registers.status;
        let mut now = before | new & status::OF_DRIVER;
        if interface == Interface::Legacy {
            // There was no such step (virtio 1.2: 3.1.2).
            now = now & !status::FEATURES_OK | before & status::FEATURES_OK;
            self.use_legacy();
        } else if now & !before & status::FEATURES_OK != 0 && !self.features_fit() {
            now &= !status::FEATURES_OK;
        }
        let was_live = self.is_live();
        self.registers.status = now;
        if self.is_live() && (!was_live || now & !before & status::DRIVER_OK != 0) {
            self.device.activate(self.registers.accepted);
            self.notify(u64::MAX);
            self.wake();
        }
    }

    /// Whether the device can work with the features that the driver accepted (virtio 1.2: 2.2).
    fn features_fit(&self) -> bool {
        let accepted = self.registers.accepted;
        let offered = self.offered(Interface::Modern);
        accepted & !offered == 0
            && accepted & feature::VERSION_1 != 0
            && self.device.accepts(accepted)
    }

    /// The driver resets the device. It reads the status until that is 0 (virtio 1.2: 4.1.4.3.1, 4.1.4.3.2); old drivers do not, and have the
    /// device wait.
    fn begin_reset(&mut self, interface: Interface) {
        self.is_resetting = true;
        if interface == Interface::Legacy && self.device.in_flight() > 0 {
            self.take_all_back();
        }
        match self.device.in_flight() {
            0 => self.complete_reset(),
            _ => self.wake(),
        }
    }

    /// Waits for what is under way; it goes nowhere.
    fn take_all_back(&mut self) {
        self.device.drain();
        let mut rings = Rings {
            queues: &mut self.queues,
            dma: &self.dma,
            features: RingFeatures::default(),
            begins: false,
            live: false,
        };
        while let Ok(Step::Again) = self.device.step(&mut rings) {}
    }

    /// The driver uses the interface of version 0.9, in which nobody refuses features: what is not offered is not accepted.
    pub(super) fn use_legacy(&mut self) {
        self.registers.is_legacy = true;
        self.registers.accepted &= self.offered(Interface::Legacy);
    }

    fn complete_reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(Queue::reset);
        // The driver may compare the generation with one from before (virtio 1.2: 4.1.4.3.1).
        let generation = self.registers.generation;
        self.registers = Registers {
            generation,
            ..Registers::AFTER_RESET
        };
        (self.is_resetting, self.fault) = (false, None);
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.dma.set_open(false);
        if self.device.in_flight() > 0 {
            self.is_resetting = true;
            self.take_all_back();
        }
        self.complete_reset();
        self.registers.generation = 0;
    }

    /// The queue that the driver has selected, unless the driver's writes are void now.
    pub(super) fn selected_for_writes(&mut self) -> Option<&mut Queue> {
        match self.is_resetting {
            true => None,
            false => self
                .queues
                .get_mut(usize::from(self.registers.queue_select)),
        }
    }
    pub(super) fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.registers.queue_select))
    }

    /// The vector that stands in a register behind a write: one that there is, or none (virtio 1.2: 4.1.5.1.3).
    pub(super) fn vector(&self, written: u16) -> u16 {
        match written < self.vectors {
            true => written,
            false => NO_VECTOR,
        }
    }

    /// Reads the interrupt status, which that clears (virtio 1.2: 4.1.4.5).
    pub fn take_isr(&mut self) -> u8 {
        core::mem::take(&mut self.registers.isr)
    }

    /// Reads the device's configuration space. `size`: 1, 2, 4 or 8.
    pub fn read_config(&self, offset: u64, size: u8) -> u64 {
        let mut bytes = [0; 8];
        let wanted = bytes.get_mut(..size.into()).unwrap_or_default();
        if offset < CONFIG_BYTES {
            self.device.read_config(offset, wanted);
        }
        u64::from_le_bytes(bytes)
    }
    /// Writes the device's configuration space.
    pub fn write_config(&mut self, offset: u64, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        let data = bytes.get(..size.into()).unwrap_or_default();
        if offset < CONFIG_BYTES {
            self.device.write_config(offset, data);
        }
    }

    // Saved state.

    /// Writes its state. It is at rest.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        let now = &self.registers;
        to.u8(now.status)?;
        to.bool(now.is_legacy)?;
        to.u64(now.accepted)?;
        to.u32(now.offered_select)?;
        to.u32(now.accepted_select)?;
        to.u16(now.queue_select)?;
        to.u16(now.config_vector)?;
        to.u8(now.generation)?;
        to.u8(now.isr)?;
        to.u16(self.queues.len() as u16)?;
        self.queues.iter().try_for_each(|queue| queue.save(to))?;
        self.device.save(to)
    }

    /// Takes that back, whole or not at all. Whether DMA is open, and what the line is, is the transport's to say.
    pub fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let registers = Registers {
            status: from.u8()?,
            is_legacy: from.bool("the driver's interface")?,
            accepted: from.u64()?,
            offered_select: from.u32()?,
            accepted_select: from.u32()?,
            queue_select: from.u16()?,
            config_vector: from.u16()?,
            generation: from.u8()?,
            isr: from.u8()?,
        };
        self.check_restored(&registers)?;
        if usize::from(from.u16()?) != self.queues.len() {
            return Err(StateError::Value("the number of queues"));
        }
        let mut queues = Vec::new();
        for queue in &self.queues {
            let queue = queue.restored(from)?;
            if self.vector(queue.vector) != queue.vector {
                return Err(StateError::Value("a queue's vector"));
            }
            queues.try_push(queue)?;
        }
        self.device.restore(from, registers.accepted)?;
        (self.registers, self.queues) = (registers, queues);
        (self.is_resetting, self.fault) = (false, None);
        self.wake();
        Ok(())
    }

    fn check_restored(&self, restored: &Registers) -> Result<(), StateError> {
        let offered = self.offered(Interface::Modern) | self.offered(Interface::Legacy);
        let has_agreed = restored.status & status::FEATURES_OK != 0 || restored.is_legacy;
        if has_agreed && restored.accepted & !offered != 0 {
            return Err(StateError::Value("a feature"));
        }
        if restored.status & !(status::OF_DRIVER | status::NEEDS_RESET) != 0 {
            return Err(StateError::Value("the status"));
        }
        if restored.isr & !(isr::QUEUE | isr::CONFIG) != 0 {
            return Err(StateError::Value("the interrupt status"));
        }
        match self.vector(restored.config_vector) == restored.config_vector {
            true => Ok(()),
            false => Err(StateError::Value("the vector of changes")),
        }
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
