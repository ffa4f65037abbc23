// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device of test kernels that works by itself: it copies guest memory when its doorbell rings, tells a processor by an MSI, and has a
//! region of memory that the guest moves and switches off. Of this project alone; a machine has it beside the other test device.
//!
//! | port | register, of 32 bits |
//! | --- | --- |
//! | 0x2060 | address to copy from |
//! | 0x2064 | address to copy to |
//! | 0x2068 | bytes |
//! | 0x206c, 0x2070 | address and data of the MSI at the end of a copy, which it sends if it may master the bus |
//! | 0x2074 | control: bit 0 it may master the bus, bit 1 its memory is on, bit 2 it never rests |
//! | 0x2078 | address of its memory, 4 KiB; an aligned double word there reads as its offset |
//! | 0x207c | reads: how many copies ended, and in bits 31:24 how the last one did: 0 whole, 1 it may not master the bus, 2 no memory |
//! | 0x2080 | the doorbell: copy |
#![forbid(unsafe_code)]

use super::kind::{Kind, Machines};
use super::links::{Dma, DmaError, Links};
use super::{Device, IoRegion, Request, Step, Work};
use crate::addr::{Gpa, NotRam};
use crate::alloc_ext::{try_box, NoMemory};
use crate::interfaces::{Msi, MsiSender};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "test-dma",
    machines: Machines::Described("v3vee,test-dma"),
    make: |wanted| Ok(try_box(TestDma::new(wanted.links)?)?),
    ..Kind::OF_EVERY_PC
};

const STATE_VERSION: u32 = 1;
/// Bytes of its memory.
const MEMORY_BYTES: u64 = 0x1000;
/// Bytes that a step copies.
const STEP_BYTES: usize = 512;

// Its regions, by their numbers.
const REGISTERS: usize = 0;
const DOORBELL: u64 = 1 << 1;
const MEMORY: usize = 2;

/// Its registers, by their numbers.
mod register {
    pub const FROM: usize = 0;
    pub const TO: usize = 1;
    pub const BYTES: usize = 2;
    pub const MSI_ADDRESS: usize = 3;
    pub const MSI_DATA: usize = 4;
    pub const CONTROL: usize = 5;
    pub const MEMORY: usize = 6;
    pub const STATUS: usize = 7;
}
/// Those that keep what is written.
const KEPT: usize = register::STATUS;

/// The control register.
mod control {
    pub const MASTER: u32 = 1 << 0;
    pub const MEMORY: u32 = 1 << 1;
    pub const NEVER_RESTS: u32 = 1 << 2;
}

/// A copy under way.
#[derive(Clone, Copy)]
struct Copy {
    from: u64,
    to: u64,
    left: u32,
}

/// The device.
pub struct TestDma {
    dma: Dma,
    msi: Box<dyn MsiSender>,
    regions: [IoRegion; 3],
    /// Its regions have changed.
    moved: bool,
    registers: [u32; KEPT],
    ended: u32,
    copy: Option<Copy>,
}

impl TestDma {
    /// A device at rest.
    pub fn new(links: &dyn Links) -> Result<Self, NoMemory> {
        Ok(Self {
            dma: links.dma()?,
            msi: links.msi()?,
            regions: [
                IoRegion::ports(0x2060, 0x20),
                IoRegion::ports(0x2080, 4).doorbell(),
                IoRegion::memory(0, MEMORY_BYTES).switched(false),
            ],
            moved: false,
            registers: [0; KEPT],
            ended: 0,
            copy: None,
        })
    }

    fn register(&self, number: usize) -> u32 {
        self.registers.get(number).copied().unwrap_or(0)
    }

    fn has(&self, bit: u32) -> bool {
        self.register(register::CONTROL) & bit != 0
    }

    /// Goes by what the registers say.
    fn follow_registers(&mut self) {
        let master = self.has(control::MASTER);
        self.dma.set_open(master);
        let at = u64::from(self.register(register::MEMORY)) & !(MEMORY_BYTES - 1);
        let on = self.has(control::MEMORY);
        let [_, _, memory] = &mut self.regions;
        let now = memory.moved_to(at).switched(on);
        self.moved |= *memory != now;
        *memory = now;
    }

    fn begin(&mut self) {
        self.copy = Some(Copy {
            from: self.register(register::FROM).into(),
            to: self.register(register::TO).into(),
            left: self.register(register::BYTES),
        });
    }

    /// Copies a piece. The rest is left.
    fn piece(&self, copy: &mut Copy) -> Result<(), DmaError> {
        let mut buffer = [0; STEP_BYTES];
        let count = (copy.left as usize).min(STEP_BYTES);
        let piece = buffer.get_mut(..count).unwrap_or_default();
        self.dma.read(Gpa(copy.from), piece)?;
        self.dma.write(Gpa(copy.to), piece)?;
        copy.from = copy.from.wrapping_add(count as u64);
        copy.to = copy.to.wrapping_add(count as u64);
        copy.left = copy.left.wrapping_sub(count as u32);
        Ok(())
    }

    fn end(&mut self, how: u32) {
        self.copy = None;
        self.ended = how << 24 | self.ended.wrapping_add(1) & 0xff_ffff;
        // A message is a write by the device.
        if self.has(control::MASTER) {
            self.msi.send(Msi {
                address: self.register(register::MSI_ADDRESS).into(),
                data: self.register(register::MSI_DATA),
            });
        }
    }
}

impl Device for TestDma {
    fn name(&self) -> &'static str {
        KIND.name
    }
    fn is_removable(&self) -> bool {
        true
    }
    fn reset(&mut self) {
        self.registers = [0; KEPT];
        (self.ended, self.copy) = (0, None);
        self.follow_registers();
    }
    /// It is at rest then: no copy is under way.
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.u32(self.ended)?;
        self.registers.iter().try_for_each(|value| to.u32(*value))
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let ended = from.u32()?;
        let mut registers = [0; KEPT];
        for register in &mut registers {
            *register = from.u32()?;
        }
        (self.ended, self.registers, self.copy) = (ended, registers, None);
        self.follow_registers();
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        &self.regions
    }
    fn read(&mut self, region: usize, offset: u64, size: u8) -> u64 {
        match (region, offset as usize / 4) {
            (MEMORY, _) if offset % 4 == 0 => offset,
            (REGISTERS, register::STATUS) if size == 4 => self.ended.into(),
            (REGISTERS, number) if size == 4 && offset % 4 == 0 => self.register(number).into(),
            _ => u64::MAX,
        }
    }
    fn write(&mut self, region: usize, offset: u64, size: u8, value: u64) {
        if region == REGISTERS && size == 4 && offset % 4 == 0 {
            if let Some(register) = self.registers.get_mut(offset as usize / 4) {
                *register = value as u32;
                self.follow_registers();
            }
        }
    }
    fn request(&mut self) -> Option<Request> {
        core::mem::take(&mut self.moved).then_some(Request::Regions)
    }
    fn work(&mut self) -> Option<&mut dyn Work> {
        Some(self)
    }
}

impl Work for TestDma {
    fn step(&mut self, rung: u64) -> Step {
        if rung & DOORBELL != 0 {
            self.begin();
        }
        let Some(mut copy) = self.copy else {
            return Step::Idle;
        };
        match self.piece(&mut copy) {
            Ok(()) if copy.left > 0 => {
                self.copy = Some(copy);
                return Step::Again;
            }
            Ok(()) => self.end(0),
            Err(DmaError::Closed) => self.end(1),
            Err(DmaError::NotRam(NotRam(_)) | DmaError::NotPinned(_)) => self.end(2),
        }
        Step::Idle
    }
    fn is_at_rest(&self) -> bool {
        self.copy.is_none() && !self.has(control::NEVER_RESTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
    use proptest::prelude::*;

    const MSI: Msi = Msi {
        address: 0xfee0_1000,
        data: 0x41,
    };

    fn bench() -> (TestMachine, TestDma) {
        let machine = TestMachine::new();
        let ram: Vec<u8> = (0..0x4000u32).map(|n| (n / 7) as u8).collect();
        machine.ram.replace(ram);
        let mut device = TestDma::new(&machine).unwrap();
        set(
            &machine,
            &mut device,
            register::MSI_ADDRESS,
            MSI.address as u32,
        );
        set(&machine, &mut device, register::MSI_DATA, MSI.data);
        (machine, device)
    }

    fn set(machine: &TestMachine, device: &mut TestDma, register: usize, value: u32) {
        machine.port_write(device, 0x2060 + 4 * register as u16, 4, value);
    }

    /// Copies; gives the status.
    fn copy(machine: &TestMachine, device: &mut TestDma, from: u32, to: u32, bytes: u32) -> u32 {
        set(machine, device, register::FROM, from);
        set(machine, device, register::TO, to);
        set(machine, device, register::BYTES, bytes);
        let mut rung = DOORBELL;
        while device.step(rung) == Step::Again {
            assert!(!device.is_at_rest());
            rung = 0;
        }
        assert!(device.is_at_rest());
        machine.port_read(device, 0x207c, 4)
    }

    #[test]
    fn it_copies_and_interrupts_while_it_may() {
        let (machine, mut device) = bench();
        assert_eq!(copy(&machine, &mut device, 0, 0x2000, 0x1234), 1 << 24 | 1);
        set(&machine, &mut device, register::CONTROL, control::MASTER);
        assert_eq!(copy(&machine, &mut device, 0, 0x2000, 0x1234), 2);
        {
            let ram = machine.ram.borrow();
            assert_eq!(ram[..0x1234], ram[0x2000..0x3234]);
            assert_eq!(ram[0x3234], (0x3234u32 / 7) as u8);
        }
        assert_eq!(copy(&machine, &mut device, 0x3f00, 0, 0x200), 2 << 24 | 3);
        assert_eq!(*machine.msis.borrow(), [MSI; 2]);
        assert_eq!(device.step(0), Step::Idle, "nobody rang");
    }

    #[test]
    fn its_memory_moves_and_goes() {
        let (machine, mut device) = bench();
        let region = |device: &TestDma| device.regions()[MEMORY];
        assert!(!region(&device).on);
        set(&machine, &mut device, register::MEMORY, 0xe000_0123);
        set(&machine, &mut device, register::CONTROL, control::MEMORY);
        let at = IoRegion::memory(0xe000_0000, MEMORY_BYTES);
        assert_eq!(region(&device), at);
        let read = machine.read(&mut device, crate::devices::Space::Memory, 0xe000_0ffc, 4);
        assert_eq!(read, 0xffc);
        let record = saved(|w| device.save(w));
        device.reset();
        assert!(!region(&device).on);
        assert!(matches!(device.request(), Some(Request::Regions)));
        assert!(device.request().is_none(), "once");
        assert_restores(&record, &mut device);
        assert_eq!(region(&device), at);
    }

    proptest! {
        #[test]
        fn a_damaged_record_is_restored_or_refused(record in prop::collection::vec(any::<u8>(), 0..64)) {
            let (_, mut device) = bench();
            assert_survives(&record, &mut device);
        }
    }
}
