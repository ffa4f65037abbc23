// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the author of a PCI device writes, and the function that is made of it.
//!
//! ```text
//!  Bus ── region 0 ────────▶ configuration space ──▶ Wires: command, interrupts, DMA
//!      ── regions 1 … ─────▶ table of MSI-X      ──▶ Wires
//!                     '────▶ other base address registers, expansion ROM ──▶ PciDevice::read, write
//!                     '────▶ regions of the device's own                 ──▶ PciDevice::read, write
//! ```
#![forbid(unsafe_code)]

use super::bar::{self, Bar};
use super::config::{command, register, Config};
use super::description::Description;
use super::msix::MsiX;
use super::wires::Wires;
use super::Bdf;
use crate::alloc_ext::{try_box, NoMemory, TryPush};
use crate::devices::links::Links;
use crate::devices::{Device, Disk, IoRegion, Request, Resources, Step, Timed, Work};
use crate::interfaces::Wakers;
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;
use alloc::vec::Vec;

const STATE_VERSION: u32 = 1;
/// The number of the first region of the device's own, where [`PciDevice::read`] has the number of a base address register.
pub const OWN_REGIONS: usize = bar::COUNT;

/// A PCI device of one function, as its author writes it. `wires` is what it reaches the rest of the machine by.
pub trait PciDevice: Send {
    /// What it is. Asked once.
    fn description(&self) -> Description;
    /// Registers and capabilities of its own in configuration space, behind the header. Called once.
    fn prepare(&mut self, _config: &mut Config) {}
    /// As after power-on.
    fn reset(&mut self, wires: &mut Wires);
    /// As [`Device::save`]; configuration space and interrupts are saved already.
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError>;
    /// As [`Device::restore`].
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError>;

    /// As [`Device::answers_in_window`], of a base address register or a region of its own.
    fn answers_in_window(&self, _bar: usize, _offset: u64, _write: bool) -> bool {
        false
    }
    /// A read at `offset` of a base address register, [`bar::ROM`] or a region of its own.
    fn read(&mut self, _wires: &mut Wires, _bar: usize, _offset: u64, _size: u8) -> u64 {
        u64::MAX
    }
    /// A write there.
    fn write(&mut self, _wires: &mut Wires, _bar: usize, _offset: u64, _size: u8, _value: u64) {}
    /// Configuration space may have changed: by a write, a reset, or a state that was restored. A device that pins memory lets go of it if
    /// [`Wires::dma`] is closed now.
    fn configured(&mut self, _wires: &mut Wires) {}
    /// Configuration space is about to be read there: the device may put something there first.
    fn config_is_read(&mut self, _wires: &mut Wires, _offset: u64) {}
    /// Configuration space was written there, and [`PciDevice::configured`] was called.
    fn config_was_written(&mut self, _wires: &mut Wires, _offset: u64) {}
    /// Regions that no base address register moves. Their list keeps its length; what is in it may change when [`PciDevice::configured`] is called.
    fn regions(&self) -> &[IoRegion] {
        &[]
    }
    /// What is to change in the machine because of a write.
    fn request(&mut self) -> Option<Request> {
        None
    }

    /// It has work, and is given a worker. One with doorbells has.
    fn has_work(&self) -> bool {
        false
    }
    /// As [`Work::begin`].
    fn begin(&mut self, _wakers: &dyn Wakers) -> Result<(), NoMemory> {
        Ok(())
    }
    /// As [`Work::step`]. Doorbells are numbered from 0 in the order of their registers.
    fn step(&mut self, _wires: &mut Wires, _rung: u64) -> Step {
        Step::Idle
    }
    /// As [`Work::finish`].
    fn finish(&mut self, wires: &mut Wires) -> Step {
        self.step(wires, 0)
    }
    /// As [`Work::is_at_rest`].
    fn is_at_rest(&self) -> bool {
        true
    }
    /// As [`Device::disk`].
    fn disk(&mut self) -> Option<&mut dyn Disk> {
        None
    }
    /// As [`Device::counters`].
    fn counters(&self, _tell: &mut dyn FnMut(&'static str, u64)) {}
    /// As [`Timed::deadline_ns`].
    fn deadline_ns(&self) -> Option<u64> {
        None
    }
    /// As [`Timed::tick`].
    fn tick(&mut self, _wires: &mut Wires) {}
}

/// What a region of a function is.
#[derive(Clone, Copy)]
struct Piece {
    /// The number of its base address register.
    bar: usize,
    /// Where it begins there.
    offset: u64,
    is_doorbell: bool,
}

/// A function in a slot of the bus.
pub struct Function<D> {
    device: D,
    wires: Wires,
    description: Description,
    bars: [Bar; bar::COUNT],
    /// Of each region behind that of configuration space, up to those of the device's own.
    pieces: Vec<Piece>,
    regions: Vec<IoRegion>,
    moved: bool,
}

impl<D: PciDevice + 'static> Function<D> {
    /// What a [`Kind`](crate::devices::Kind) of PCI devices makes: a device in the slot that was chosen for it.
    pub fn boxed(wanted: Resources<'_>, device: D) -> Result<Box<dyn Device>, NoMemory> {
        Ok(try_box(Self::new(wanted.links, wanted.bdf(), device)?)?)
    }
}

impl<D: PciDevice> Function<D> {
    /// Puts a device at a place.
    pub fn new(links: &dyn Links, at: Bdf, mut device: D) -> Result<Self, NoMemory> {
        let description = device.description();
        let bars = all_bars(&description);
        let mut config = Config::new()?;
        put_header(&description, &mut config);
        for (number, bar) in bars.iter().enumerate() {
            bar.put(number, &mut config);
        }
        device.prepare(&mut config);
        let wires = Wires::new(links, at, config, &description)?;
        let (mut pieces, mut regions) = (Vec::new(), Vec::new());
        regions.try_push(at.region())?;
        for (number, bar) in bars.iter().enumerate() {
            for (range, is_doorbell) in bar.pieces() {
                let bytes = range.end.wrapping_sub(range.start);
                let region = match bar.is_ports() {
                    true => IoRegion::ports(0, bytes as u16),
                    false => IoRegion::memory(0, bytes),
                };
                let region = if is_doorbell {
                    region.doorbell()
                } else {
                    region
                };
                regions.try_push(region.switched(false))?;
                pieces.try_push(Piece {
                    bar: number,
                    offset: range.start,
                    is_doorbell,
                })?;
            }
        }
        for region in device.regions() {
            regions.try_push(*region)?;
        }
        let mut function = Self {
            device,
            wires,
            description,
            bars,
            pieces,
            regions,
            moved: false,
        };
        function.device.reset(&mut function.wires);
        function.follow_config();
        Ok(function)
    }

    /// Goes by what configuration space says now.
    fn follow_config(&mut self) {
        self.wires.follow_config();
        self.device.configured(&mut self.wires);
        let config = self.wires.config();
        let mut regions = self.regions.iter_mut().skip(1);
        for piece in &self.pieces {
            let (Some(region), Some(bar)) = (regions.next(), self.bars.get(piece.bar)) else {
                continue;
            };
            let at = bar.address(piece.bar, config).wrapping_add(piece.offset);
            let now = region.moved_to(at).switched(bar.is_on(piece.bar, config));
            self.moved |= now != *region;
            *region = now;
        }
        for (region, now) in regions.zip(self.device.regions()) {
            self.moved |= now != region;
            *region = *now;
        }
    }

    /// The base address register, and the offset there, of an access behind configuration space.
    fn place(&self, region: usize, offset: u64) -> (usize, u64) {
        let index = region.wrapping_sub(1);
        match self.pieces.get(index) {
            Some(piece) => (piece.bar, piece.offset.wrapping_add(offset)),
            None => (
                index
                    .wrapping_sub(self.pieces.len())
                    .wrapping_add(OWN_REGIONS),
                offset,
            ),
        }
    }
    fn is_table(&self, bar: usize) -> bool {
        self.description
            .msix
            .is_some_and(|(_, number)| usize::from(number) == bar)
    }
}

fn all_bars(description: &Description) -> [Bar; bar::COUNT] {
    let [b0, b1, b2, b3, b4, b5] = description.bars;
    let rom = match description.rom_bytes {
        0 => Bar::NONE,
        bytes => Bar::rom(bytes),
    };
    let mut bars = [b0, b1, b2, b3, b4, b5, rom];
    if let Some((vectors, number)) = description.msix {
        if let Some(bar) = bars.get_mut(usize::from(number)) {
            *bar = MsiX::bar(vectors);
        }
    }
    bars
}

fn put_header(description: &Description, config: &mut Config) {
    let ids = &description.ids;
    let class = ids.class << 8 | u32::from(ids.revision);
    let pair = |low: u16, high: u16| u32::from(high) << 16 | u32::from(low);
    for (at, value) in [
        (register::ID, pair(ids.vendor, ids.device)),
        (register::CLASS, class),
        (
            register::SUBSYSTEM,
            pair(ids.subsystem_vendor, ids.subsystem),
        ),
    ] {
        config.put(at, &value.to_le_bytes());
    }
    config.put(
        register::HEADER_TYPE,
        &[u8::from(description.has_more_functions) << 7],
    );
    config.put(register::INTERRUPT_PIN, &[description.pin]);
    config.let_write(register::COMMAND, &command::WRITABLE.to_le_bytes());
    if description.pin != 0 {
        config.let_write(register::INTERRUPT_LINE, &[0xff]);
    }
}

impl<D: PciDevice> Device for Function<D> {
    fn name(&self) -> &'static str {
        self.description.name
    }
    fn is_removable(&self) -> bool {
        self.description.is_removable
    }
    fn reset(&mut self) {
        self.wires.reset();
        self.device.reset(&mut self.wires);
        self.follow_config();
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        self.wires.save(to)?;
        self.device.save(to)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let wires = self.wires.check(from)?;
        self.device.restore(from)?;
        self.wires.take(wires);
        self.follow_config();
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        &self.regions
    }
    fn answers_in_window(&self, region: usize, offset: u64, write: bool) -> bool {
        if region == 0 {
            return false;
        }
        let (bar, offset) = self.place(region, offset);
        !self.is_table(bar) && self.device.answers_in_window(bar, offset, write)
    }
    fn read(&mut self, region: usize, offset: u64, size: u8) -> u64 {
        if region == 0 {
            self.device.config_is_read(&mut self.wires, offset);
            return self.wires.read_config(offset, size);
        }
        match self.place(region, offset) {
            (bar, offset) if self.is_table(bar) => self.wires.read_table(offset, size),
            (bar, offset) => self.device.read(&mut self.wires, bar, offset, size),
        }
    }
    fn write(&mut self, region: usize, offset: u64, size: u8, value: u64) {
        if region == 0 {
            self.wires.config_mut().write(offset, size, value);
            self.follow_config();
            return self.device.config_was_written(&mut self.wires, offset);
        }
        match self.place(region, offset) {
            (bar, offset) if self.is_table(bar) => self.wires.write_table(offset, size, value),
            (bar, offset) => self.device.write(&mut self.wires, bar, offset, size, value),
        }
    }
    fn request(&mut self) -> Option<Request> {
        match core::mem::take(&mut self.moved) {
            true => Some(Request::Regions),
            false => self.device.request(),
        }
    }
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
    fn work(&mut self) -> Option<&mut dyn Work> {
        let has_bells = self.pieces.iter().any(|piece| piece.is_doorbell);
        match has_bells || self.device.has_work() {
            true => Some(self),
            false => None,
        }
    }
    fn disk(&mut self) -> Option<&mut dyn Disk> {
        self.device.disk()
    }
    fn counters(&self, tell: &mut dyn FnMut(&'static str, u64)) {
        self.device.counters(tell);
    }
}

impl<D: PciDevice> Timed for Function<D> {
    fn deadline_ns(&self) -> Option<u64> {
        self.device.deadline_ns()
    }
    fn tick(&mut self) {
        self.device.tick(&mut self.wires);
    }
}

impl<D: PciDevice> Work for Function<D> {
    fn begin(&mut self, wakers: &dyn Wakers) -> Result<(), NoMemory> {
        self.device.begin(wakers)
    }
    fn step(&mut self, rung: u64) -> Step {
        // Regions are numbered, and so are doorbells.
        let (mut region, mut number, mut bells) = (1u32, 0u32, 0u64);
        for piece in &self.pieces {
            if piece.is_doorbell {
                bells |= (rung.wrapping_shr(region) & 1).wrapping_shl(number);
                number = number.wrapping_add(1);
            }
            region = region.wrapping_add(1);
        }
        self.device.step(&mut self.wires, bells)
    }
    fn finish(&mut self) -> Step {
        self.device.finish(&mut self.wires)
    }
    fn is_at_rest(&self) -> bool {
        self.device.is_at_rest()
    }
}

#[cfg(test)]
mod tests;
