// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtio device as a PCI function (virtio 1.2: 4.1), for drivers of version 1 and of version 0.9.
//!
//! | base address register | what |
//! | --- | --- |
//! | 0 | ports: the registers of version 0.9, with their doorbell |
//! | 1 | memory: the table of MSI-X, by which each queue has a vector of its own, and changes of the configuration have one |
//! | 2 | memory: common configuration, interrupt status, the device's configuration |
//! | 4 | ports: a doorbell for each queue. An `OUT` says itself what it writes, so it is settled without a look at the instruction |
#![forbid(unsafe_code)]

use super::contract::{DeviceType, InterruptSink, VirtioDevice};
use super::queue::NO_VECTOR;
use super::{legacy, modern, Virtio};
use crate::alloc_ext::NoMemory;
use crate::devices::links::Links;
use crate::devices::pci::config::Config;
use crate::devices::pci::{Bar, Description, Ids, PciDevice, Wires};
use crate::devices::{Disk, Step};
use crate::interfaces::Wakers;
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// Who made it.
const VENDOR: u16 = 0x1af4;
/// The id of a capability that is its vendor's own (PCI 3.0: appendix H).
const VENDOR_CAPABILITY: u8 = 0x09;
/// Bytes of such a capability, with its id and link (virtio 1.2: 4.1.4).
const CAPABILITY_BYTES: u8 = 16;

/// The most queues; each has a doorbell.
const MAX_QUEUES: u16 = 16;
/// How far doorbells are apart.
const DOORBELL_BYTES: u32 = 4;
static DOORBELLS: [(u64, u64); MAX_QUEUES as usize] = {
    let mut all = [(0, 0); MAX_QUEUES as usize];
    let mut number = 0;
    while number < all.len() {
        all[number] = (number as u64 * DOORBELL_BYTES as u64, DOORBELL_BYTES as u64);
        number += 1;
    }
    all
};

const LEGACY: usize = 0;
const TABLE: u8 = 1;
const MODERN: usize = 2;
const NOTIFY: usize = 4;

/// Where things are in the memory of [`MODERN`].
const ISR_AT: u64 = 0x1000;
const DEVICE_AT: u64 = 0x2000;
const MODERN_BYTES: u32 = 0x4000;
/// Of the device's configuration. No device's is longer.
const DEVICE_BYTES: u32 = 0x1000;
/// Ports of [`LEGACY`]: the registers, and the beginning of the device's configuration.
const LEGACY_PORTS: u16 = 128;

/// What a capability leads to (virtio 1.2: 4.1.4).
mod leads_to {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const WINDOW: u8 = 5;
}

/// A virtio device on PCI.
pub struct VirtioPci {
    virtio: Virtio,
    window: Window,
    name: &'static str,
}

impl VirtioPci {
    /// With no driver. `name`: of its kind.
    pub fn new(
        name: &'static str,
        device: Box<dyn VirtioDevice>,
        links: &dyn Links,
    ) -> Result<Self, NoMemory> {
        let vectors = vectors(device.as_ref());
        let virtio = Virtio::new(device, links, vectors)?;
        Ok(Self {
            virtio,
            window: Window::default(),
            name,
        })
    }

    /// The device.
    pub fn virtio(&mut self) -> &mut Virtio {
        &mut self.virtio
    }

    /// The pin is what the interrupt status says, unless the guest has messages.
    fn drive_pin(&self, wires: &mut Wires) {
        match self.virtio.line() && !wires.uses_messages() {
            true => wires.interrupt(0),
            false => wires.acknowledge(),
        }
    }

    /// The queues whose doorbells rang. The first one is of version 0.9, whose value says which queue, and is not kept: it may be any.
    fn notify(&mut self, rung: u64) {
        let queues = match rung & 1 {
            0 => rung >> 1,
            _ => u64::MAX,
        };
        self.virtio.notify(queues);
    }
}

fn queues(device: &dyn VirtioDevice) -> u16 {
    device.queue_count().min(MAX_QUEUES)
}

/// One for each queue, and one for changes of the configuration.
fn vectors(device: &dyn VirtioDevice) -> u16 {
    queues(device).saturating_add(1)
}

/// Where its messages go, if the guest has messages.
struct Sink<'a>(&'a mut Wires);

impl InterruptSink for Sink<'_> {
    fn uses_messages(&self) -> bool {
        self.0.uses_messages()
    }
    fn message(&mut self, vector: u16) {
        if vector != NO_VECTOR && self.0.uses_messages() {
            self.0.interrupt(vector);
        }
    }
}

/// The class of a device, for those who know nothing of virtio (PCI Code and ID Assignment 1.11: 1).
const fn class(of: DeviceType) -> u32 {
    match of {
        DeviceType::Block => 0x01_0000,
        DeviceType::Entropy => 0xff_0000,
    }
}

/// The device ids of version 0.9 do not follow the types (virtio 1.2: 4.1.2.1).
const fn transitional_id(of: DeviceType) -> u16 {
    match of {
        DeviceType::Block => 0x1001,
        DeviceType::Entropy => 0x1005,
    }
}

/// A capability by which a driver that reaches configuration space alone, such as firmware, reads and writes the base address registers:
/// it writes where, and how many bytes, and then accesses the data (virtio 1.2: 4.1.4.9).
#[derive(Clone, Copy, Default)]
struct Window {
    /// Where the capability is.
    at: u8,
}

impl Window {
    const BAR: u8 = 4;
    const OFFSET: u8 = 8;
    const LENGTH: u8 = 12;
    const DATA: u8 = 16;

    /// Behind its id and link: the base address register, offset and length, and the data.
    const WRITABLE: [u8; CAPABILITY_BYTES as usize + 2] = {
        let mut bits = [0xff; CAPABILITY_BYTES as usize + 2];
        [bits[0], bits[1], bits[3], bits[4], bits[5]] = [0; 5];
        bits
    };

    fn add(config: &mut Config) -> Self {
        let at = lead(
            config,
            leads_to::WINDOW,
            0,
            (0, 0),
            &[0; 4],
            &Self::WRITABLE,
        );
        Self {
            at: at.unwrap_or_default(),
        }
    }

    /// Where it leads: the base address register, the offset there and how many bytes; if an access at `offset` of configuration space goes there.
    fn leads(self, config: &Config, offset: u64) -> Option<(usize, u64, u8)> {
        let data = u64::from(self.at.wrapping_add(Self::DATA));
        if self.at == 0 || !(data..data.saturating_add(4)).contains(&offset) {
            return None;
        }
        let at = |field: u8| self.at.wrapping_add(field);
        let bar = usize::from(config.byte(at(Self::BAR)));
        let offset = config.double_word(at(Self::OFFSET));
        match config.double_word(at(Self::LENGTH)) {
            size @ (1 | 2 | 4) if offset % size == 0 => Some((bar, offset.into(), size as u8)),
            _ => None,
        }
    }

    fn data(self) -> u8 {
        self.at.wrapping_add(Self::DATA)
    }
}

/// Adds a capability that leads to `bytes` at `offset` of a base address register. `more` is behind that. Returns where it is.
fn lead(
    config: &mut Config,
    to: u8,
    bar: usize,
    (offset, bytes): (u32, u32),
    more: &[u8],
    writable: &[u8],
) -> Option<u8> {
    let mut body = [0; CAPABILITY_BYTES as usize + 2];
    let length = usize::from(CAPABILITY_BYTES).wrapping_sub(2);
    let [o0, o1, o2, o3] = offset.to_le_bytes();
    let [b0, b1, b2, b3] = bytes.to_le_bytes();
    let whole = CAPABILITY_BYTES.wrapping_add(more.len() as u8);
    let fields = [
        whole, to, bar as u8, 0, 0, 0, o0, o1, o2, o3, b0, b1, b2, b3,
    ];
    let all = fields.iter().chain(more);
    body.iter_mut()
        .zip(all)
        .for_each(|(byte, value)| *byte = *value);
    let used = length.saturating_add(more.len());
    let body = body.get(..used).unwrap_or_default();
    config.add_capability(VENDOR_CAPABILITY, body, writable)
}

impl PciDevice for VirtioPci {
    fn description(&self) -> Description {
        let of = self.virtio.device().device_type();
        let queues = queues(self.virtio.device());
        let doorbells = DOORBELLS.get(..queues.into()).unwrap_or_default();
        let ids = Ids {
            subsystem: of as u16,
            ..Ids::new(VENDOR, transitional_id(of), class(of), 0)
        };
        let mut description = Description::new(self.name, ids);
        description.bars = [
            Bar::ports(LEGACY_PORTS).with_doorbells(&[(legacy::NOTIFY, 2)]),
            Bar::NONE,
            Bar::memory(MODERN_BYTES),
            Bar::NONE,
            Bar::ports(queues.saturating_mul(DOORBELL_BYTES as u16)).with_doorbells(doorbells),
            Bar::NONE,
        ];
        description.msix = Some((vectors(self.virtio.device()), TABLE));
        description
    }
    fn prepare(&mut self, config: &mut Config) {
        let common = (0, modern::BYTES as u32);
        let queues = u32::from(queues(self.virtio.device()));
        let doorbells = (0, queues.saturating_mul(DOORBELL_BYTES));
        let device = (DEVICE_AT as u32, DEVICE_BYTES);
        let multiplier = DOORBELL_BYTES.to_le_bytes();
        for (to, bar, place, more) in [
            (leads_to::COMMON, MODERN, common, &[][..]),
            (leads_to::NOTIFY, NOTIFY, doorbells, &multiplier),
            (leads_to::ISR, MODERN, (ISR_AT as u32, 1), &[]),
            (leads_to::DEVICE, MODERN, device, &[]),
        ] {
            lead(config, to, bar, place, more, &[]);
        }
        self.window = Window::add(config);
    }
    fn reset(&mut self, _: &mut Wires) {
        self.virtio.reset();
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        self.virtio.save(to)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.virtio.restore(from)
    }

    fn read(&mut self, wires: &mut Wires, bar: usize, offset: u64, size: u8) -> u64 {
        let value = match bar {
            LEGACY => legacy::read(&mut self.virtio, wires.uses_messages(), offset, size),
            MODERN if offset < ISR_AT => modern::read(&self.virtio, offset, size),
            MODERN if offset < DEVICE_AT => match offset {
                ISR_AT => self.virtio.take_isr().into(),
                _ => 0,
            },
            MODERN => self
                .virtio
                .read_config(offset.wrapping_sub(DEVICE_AT), size),
            _ => 0,
        };
        // The read may have cleared the interrupt status.
        self.drive_pin(wires);
        value
    }
    fn write(&mut self, wires: &mut Wires, bar: usize, offset: u64, size: u8, value: u64) {
        match bar {
            LEGACY => {
                let has_msix = wires.uses_messages();
                let sink = &mut Sink(wires);
                legacy::write(&mut self.virtio, has_msix, offset, size, value, sink);
            }
            MODERN if offset < ISR_AT => {
                modern::write(&mut self.virtio, offset, size, value, &mut Sink(wires));
            }
            MODERN if offset >= DEVICE_AT => {
                let offset = offset.wrapping_sub(DEVICE_AT);
                self.virtio.write_config(offset, size, value);
            }
            // The bus knows the doorbells; this one rang in the window.
            NOTIFY => {
                let queue = offset / u64::from(DOORBELL_BYTES);
                self.virtio.notify_one(queue.min(u16::MAX.into()) as u16);
            }
            _ => {}
        }
        self.drive_pin(wires);
    }
    fn config_is_read(&mut self, wires: &mut Wires, offset: u64) {
        if let Some((bar, at, size)) = self.window.leads(wires.config(), offset) {
            let value = self.read(wires, bar, at, size);
            let data = self.window.data();
            wires.config_mut().write(data.into(), size, value);
        }
    }
    fn config_was_written(&mut self, wires: &mut Wires, offset: u64) {
        if let Some((bar, at, size)) = self.window.leads(wires.config(), offset) {
            let value = wires.config().read(self.window.data().into(), size);
            self.write(wires, bar, at, size, value);
        }
    }
    fn configured(&mut self, wires: &mut Wires) {
        self.virtio.set_dma_open(wires.dma().is_open());
        self.drive_pin(wires);
    }

    fn begin(&mut self, wakers: &dyn Wakers) -> Result<(), NoMemory> {
        self.virtio.begin(wakers)
    }
    fn step(&mut self, wires: &mut Wires, rung: u64) -> Step {
        self.notify(rung);
        let step = self.virtio.step(&mut Sink(wires));
        self.drive_pin(wires);
        step
    }
    fn finish(&mut self, wires: &mut Wires) -> Step {
        let step = self.virtio.finish(&mut Sink(wires));
        self.drive_pin(wires);
        step
    }
    fn is_at_rest(&self) -> bool {
        self.virtio.is_at_rest()
    }
    fn disk(&mut self) -> Option<&mut dyn Disk> {
        self.virtio.device_mut().disk()
    }
    fn counters(&self, tell: &mut dyn FnMut(&'static str, u64)) {
        self.virtio.device().counters(tell);
    }
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
