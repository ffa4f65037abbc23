// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hot plug of PCI devices by ACPI: what tells the guest that a device came or is to go, and takes back what the guest ejects. ACPI's tables
//! have the guest's side of it (`boot/acpi`), and no guest needs a driver of its own.
//!
//! | port | register |
//! | --- | --- |
//! | 0xae00 | 32 bits, a bit for each slot: devices that came; a read takes them |
//! | 0xae04 | 32 bits: devices that are to go; a read takes them |
//! | 0xae08 | 32 bits, written: devices that the guest ejects |
//! | 0xafe0 | status of general-purpose events, 16 bits: bit 1 is that of this device (ACPI 6.5: 4.8.4.1) |
//! | 0xafe2 | enable bits of the same |
#![forbid(unsafe_code)]

use crate::alloc_ext::{try_box, NoMemory};
use crate::devices::acpi::SCI_IRQ;
use crate::devices::kind::Kind;
use crate::devices::links::{Line, Links};
use crate::devices::{read_bytewise, write_bytewise, Device, IoRegion, Request, Slots};
use crate::state_io::{StateError, StateReader, StateWriter};

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "pci-hotplug",
    make: |wanted| Ok(try_box(HotPlug::new(wanted.links)?)?),
    ..Kind::OF_EVERY_PC
};

/// The first of the slots' ports.
pub const SLOT_PORT: u16 = 0xae00;
/// Bytes of its registers, and where they are.
pub const SLOT_PORTS: u16 = 12;
const CAME: u64 = 0;
const GOES: u64 = 4;
const EJECT: u64 = 8;
/// The block of general-purpose events, and its length.
pub const EVENT_PORT: u16 = 0xafe0;
/// Bytes of that: half of it is status, half of it enable bits.
pub const EVENT_PORTS: u8 = 4;
/// The number of this device's event.
pub const EVENT: u8 = 1;

const STATE_VERSION: u32 = 2;
static REGIONS: [IoRegion; 2] = [
    IoRegion::ports(SLOT_PORT, SLOT_PORTS),
    IoRegion::ports(EVENT_PORT, EVENT_PORTS as u16),
];
/// The number of the slots' ports among them.
const SLOT_REGION: usize = 0;

/// The registers.
#[derive(Clone, Copy, Default)]
struct State {
    came: u32,
    goes: u32,
    /// Devices of which the guest has read that they are to go, and which it has not ejected yet.
    asked: u32,
    /// Slots whose device was such a one and was taken away: what the guest ejects next is that device, and not its successor.
    stale: u32,
    status: u16,
    enable: u16,
}

/// The controller.
pub struct HotPlug {
    line: Line,
    state: State,
    /// What the guest has just ejected.
    ejected: u32,
}

impl HotPlug {
    /// One to which nothing happened yet.
    pub fn new(links: &dyn Links) -> Result<Self, NoMemory> {
        Ok(Self {
            line: links.line(SCI_IRQ.into())?,
            state: State::default(),
            ejected: 0,
        })
    }

    fn drive_line(&mut self) {
        self.line.set(self.state.status & self.state.enable != 0);
    }
    fn signal(&mut self) {
        self.state.status |= 1 << EVENT;
        self.drive_line();
    }

    fn read_slots(&mut self, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (CAME, 4) => core::mem::take(&mut self.state.came).into(),
            (GOES, 4) => self.take_goes().into(),
            _ => 0,
        }
    }
    fn take_goes(&mut self) -> u32 {
        let goes = core::mem::take(&mut self.state.goes);
        self.state.asked |= goes;
        self.state.stale &= !goes;
        goes
    }
    fn eject(&mut self, slots: u32) {
        self.ejected = slots & !self.state.stale;
        self.state.stale &= !slots;
        self.state.asked &= !slots;
    }
    fn event_byte(&self, offset: u64) -> u8 {
        let [s0, s1] = self.state.status.to_le_bytes();
        let [e0, e1] = self.state.enable.to_le_bytes();
        let bytes = [s0, s1, e0, e1];
        bytes.get(offset as usize).copied().unwrap_or(0xff)
    }
    fn set_event_byte(&mut self, offset: u64, value: u8) {
        let (low, high) = (u16::from(value), u16::from(value) << 8);
        let state = &mut self.state;
        match offset {
            // Writing ones clears.
            0 => state.status &= !low,
            1 => state.status &= !high,
            2 => state.enable = state.enable & 0xff00 | low,
            3 => state.enable = state.enable & 0x00ff | high,
            _ => {}
        }
    }
}

impl Device for HotPlug {
    fn name(&self) -> &'static str {
        KIND.name
    }
    fn reset(&mut self) {
        self.state = State::default();
        self.drive_line();
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.u32(self.state.came)?;
        to.u32(self.state.goes)?;
        to.u32(self.state.asked)?;
        to.u32(self.state.stale)?;
        to.u16(self.state.status)?;
        to.u16(self.state.enable)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let new = State {
            came: from.u32()?,
            goes: from.u32()?,
            asked: from.u32()?,
            stale: from.u32()?,
            status: from.u16()?,
            enable: from.u16()?,
        };
        if new.status & !(1 << EVENT) != 0 {
            return Err(StateError::Value("pci-hotplug"));
        }
        self.state = new;
        self.drive_line();
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        &REGIONS
    }
    fn read(&mut self, region: usize, offset: u64, size: u8) -> u64 {
        match region {
            SLOT_REGION => self.read_slots(offset, size),
            _ => read_bytewise(offset, size, |at| self.event_byte(at)),
        }
    }
    fn write(&mut self, region: usize, offset: u64, size: u8, value: u64) {
        match (region, offset, size) {
            (SLOT_REGION, EJECT, 4) => self.eject(value as u32),
            (SLOT_REGION, ..) => {}
            _ => {
                write_bytewise(offset, size, value, |at, byte| {
                    self.set_event_byte(at, byte)
                });
                self.drive_line();
            }
        }
    }
    fn request(&mut self) -> Option<Request> {
        match core::mem::take(&mut self.ejected) {
            0 => None,
            slots => Some(Request::Eject(slots)),
        }
    }
    fn slots(&mut self) -> Option<&mut dyn Slots> {
        Some(self)
    }
}

impl Slots for HotPlug {
    fn came(&mut self, slot: u8) {
        self.state.came |= 1u32.wrapping_shl(slot.into());
        self.signal();
    }
    fn is_to_go(&mut self, slot: u8) {
        self.state.goes |= 1u32.wrapping_shl(slot.into());
        self.signal();
    }
    fn is_gone(&mut self, slot: u8) {
        let it = 1u32.wrapping_shl(slot.into());
        let state = &mut self.state;
        state.stale |= state.asked & it;
        (state.came, state.goes, state.asked) =
            (state.came & !it, state.goes & !it, state.asked & !it);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
    use proptest::prelude::*;

    fn bench() -> (TestMachine, HotPlug) {
        let machine = TestMachine::new();
        let device = HotPlug::new(&machine).unwrap();
        (machine, device)
    }

    #[test]
    fn a_device_that_comes_is_an_event() {
        let (machine, mut device) = bench();
        device.came(5);
        assert!(!machine.line(9), "not enabled");
        machine.port_write(&mut device, 0xafe2, 2, 2);
        assert!(machine.line(9));
        assert_eq!(machine.port_read(&mut device, 0xafe0, 4), 0x2_0002);
        machine.port_write(&mut device, 0xafe0, 2, 2);
        assert!(!machine.line(9));
        assert_eq!(machine.port_read(&mut device, 0xae00, 4), 1 << 5);
        assert_eq!(machine.port_read(&mut device, 0xae00, 4), 0, "it was taken");
    }

    #[test]
    fn the_guest_ejects() {
        let (machine, mut device) = bench();
        device.is_to_go(31);
        device.is_to_go(3);
        device.is_gone(3);
        assert_eq!(machine.port_read(&mut device, 0xae04, 4), 1 << 31);
        device.write(0, 8, 4, 1 << 31);
        assert!(matches!(
            device.request(),
            Some(Request::Eject(0x8000_0000))
        ));
        assert!(device.request().is_none());
    }

    #[test]
    fn what_comes_after_a_device_is_not_ejected_in_its_place() {
        let (machine, mut device) = bench();
        device.is_to_go(4);
        assert_eq!(machine.port_read(&mut device, 0xae04, 4), 1 << 4);
        // Its owner does not wait for the guest, and puts another there.
        device.is_gone(4);
        device.came(4);
        device.write(0, 8, 4, 1 << 4);
        assert!(device.request().is_none(), "that was the first");
        device.write(0, 8, 4, 1 << 4);
        assert!(matches!(device.request(), Some(Request::Eject(0x10))));
        // The guest never ejected the first: it is asked for the second.
        device.is_to_go(4);
        machine.port_read(&mut device, 0xae04, 4);
        device.is_gone(4);
        device.came(4);
        device.is_to_go(4);
        machine.port_read(&mut device, 0xae04, 4);
        device.write(0, 8, 4, 1 << 4);
        assert!(matches!(device.request(), Some(Request::Eject(0x10))));
    }

    #[test]
    fn it_is_saved() {
        let (machine, mut device) = bench();
        machine.port_write(&mut device, 0xafe2, 2, 2);
        device.is_to_go(7);
        let record = saved(|w| device.save(w));
        device.reset();
        assert!(!machine.line(9));
        assert_restores(&record, &mut device);
        assert!(machine.line(9));
    }

    proptest! {
        #[test]
        fn a_damaged_record_is_restored_or_refused(record in prop::collection::vec(any::<u8>(), 0..20)) {
            let (_, mut device) = bench();
            assert_survives(&record, &mut device);
        }
    }
}
