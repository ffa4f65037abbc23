// SPDX-License-Identifier: MIT OR Apache-2.0
//! A CPU with a little RAM and a device, for the emulator to run on. Everything outside of RAM is the device, which keeps
//! what is written, answers other reads with [`device_byte`], and keeps a log.

use palacios_core::addr::{Gpa, Gva};
use palacios_core::emulator::{self, Behaviour, CodeReader, Cpu, Fault, Step};
use palacios_core::memory::walk::{self, Access, GuestTables, Paging, WalkError};
use palacios_core::state::*;
use palacios_core::xsave::{XsaveArea, XsaveLayout};
use std::collections::BTreeMap;

/// What left the CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    In(u16, u8),
    Out(u16, u8, u32),
    SetCr(u8, u64),
    SetDr(u8, u64),
    Invalidate(u64),
}

/// The device's byte at an address.
pub fn device_byte(at: u64) -> u8 {
    (at as u8).wrapping_mul(37) ^ 0xa5
}

#[derive(Clone)]
pub struct TestCpu {
    pub gprs: Gprs,
    pub rip: u64,
    pub rflags: u64,
    pub segments: [Segment; 8],
    pub cpl: u8,
    pub efer: u64,
    pub cr: [u64; 9],
    pub dr: [u64; 8],
    pub ram_base: u64,
    pub ram: Vec<u8>,
    /// The bytes at RIP, if they are not in RAM.
    pub code: Vec<u8>,
    pub log: Vec<Event>,
    /// The next compare-exchange finds that another CPU was faster.
    pub race: bool,
    /// What this processor does not have.
    pub lacks: Vec<Behaviour>,
    /// What was written to the device.
    pub device: BTreeMap<u64, u8>,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub xcr0: u64,
    /// An XSAVE area, with AVX and the upper halves of ZMM registers.
    pub fpu: Vec<u8>,
    pub layout: XsaveLayout,
    /// The next instruction is in an interrupt shadow.
    pub shadow: bool,
    pub nmi_blocked: bool,
}

const FLAT_DATA: u16 = 0x0c93;
const FLAT_CODE_32: u16 = 0x0c9b;
const CODE_64: u16 = 0x0a9b;

impl TestCpu {
    fn new(ram_base: u64, ram_bytes: usize) -> Self {
        let flat = Segment {
            selector: 0,
            base: 0,
            limit: u32::MAX,
            attributes: SegmentAttributes(FLAT_DATA),
        };
        let mut cpu = TestCpu {
            gprs: Gprs::default(),
            rip: 0,
            rflags: rflags::FIXED,
            segments: [flat; 8],
            cpl: 0,
            efer: 0,
            cr: [cr0::PE, 0, 0, 0, 0, 0, 0, 0, 0],
            dr: [0; 8],
            ram_base,
            ram: vec![0; ram_bytes],
            code: Vec::new(),
            log: Vec::new(),
            race: false,
            lacks: Vec::new(),
            device: BTreeMap::new(),
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            xcr0: 7,
            fpu: vec![0; 2048],
            layout: XsaveLayout {
                header: true,
                avx: Some(576),
                zmm_high: Some(1152),
            },
            shadow: false,
            nmi_blocked: false,
        };
        cpu.area().clear();
        cpu
    }

    /// The floating-point and vector registers.
    pub fn area(&mut self) -> XsaveArea<'_> {
        XsaveArea::new(&mut self.fpu, self.layout)
    }

    /// 64-bit mode, without page tables.
    pub fn long(ram_base: u64, ram_bytes: usize) -> Self {
        let mut cpu = Self::new(ram_base, ram_bytes);
        cpu.efer = efer::LMA | efer::LME;
        cpu.segments[Seg::Cs as usize].attributes = SegmentAttributes(CODE_64);
        cpu
    }

    /// 32-bit protected mode with flat segments.
    pub fn protected(ram_base: u64, ram_bytes: usize) -> Self {
        let mut cpu = Self::new(ram_base, ram_bytes);
        cpu.segments[Seg::Cs as usize].attributes = SegmentAttributes(FLAT_CODE_32);
        cpu
    }

    /// Real mode; all segments at 0.
    pub fn real(ram_bytes: usize) -> Self {
        let mut cpu = Self::new(0, ram_bytes);
        cpu.cr[0] = 0;
        for segment in &mut cpu.segments {
            segment.limit = 0xffff;
            segment.attributes = SegmentAttributes(0x93);
        }
        cpu
    }

    pub fn reg(&mut self, reg: Reg) -> &mut u64 {
        &mut self.gprs[reg]
    }

    pub fn segment_mut(&mut self, seg: Seg) -> &mut Segment {
        &mut self.segments[seg as usize]
    }

    /// Executes these bytes at the current RIP.
    pub fn run(&mut self, code: &[u8]) -> Result<Step, Fault> {
        self.code = code.to_vec();
        emulator::step(self)
    }

    /// RAM at a guest-physical address.
    pub fn at(&mut self, gpa: u64, len: usize) -> &mut [u8] {
        let from = (gpa - self.ram_base) as usize;
        &mut self.ram[from..from + len]
    }

    fn ram_range(&self, at: Gpa, len: usize) -> Option<std::ops::Range<usize>> {
        let from = usize::try_from(at.0.checked_sub(self.ram_base)?).ok()?;
        (from + len <= self.ram.len()).then_some(from..from + len)
    }
}

impl CodeReader for TestCpu {
    fn rip(&self) -> u64 {
        self.rip
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn segment(&self, seg: Seg) -> Segment {
        self.segments[seg as usize]
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn cr(&self, number: u8) -> u64 {
        self.cr[number as usize]
    }
    fn translate(&mut self, at: Gva, access: Access) -> Result<Gpa, Fault> {
        let paging = Paging {
            cr0: self.cr[0],
            cr3: self.cr[3],
            cr4: self.cr[4],
            efer: self.efer,
            rflags: self.rflags,
            pkru: 0,
            physical_bits: 40,
            gigabyte_pages: true,
        };
        walk::translate(&paging, access, at, self)
            .map(|page| page.gpa)
            .map_err(|error| match error {
                WalkError::PageFault { error_code } => {
                    Exception::page_fault(error_code, at.0).into()
                }
                WalkError::Raced => Fault::Retry,
                other => panic!("{other:?} at {at}"),
            })
    }

    fn fetched(&self) -> &[u8] {
        &self.code
    }
    fn fetch(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let range = self.ram_range(at, buf.len()).ok_or(Fault::Memory(at))?;
        buf.copy_from_slice(&self.ram[range]);
        Ok(())
    }
}

impl Cpu for TestCpu {
    fn gprs(&self) -> &Gprs {
        &self.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.gprs
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
        self.shadow = false;
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.rflags = rflags;
    }
    fn set_segment(&mut self, seg: Seg, segment: Segment) {
        self.segments[seg as usize] = segment;
        match (self.cr[0] & cr0::PE, self.rflags & rflags::VM) {
            _ if seg != Seg::Ss => {}
            (0, _) => self.cpl = 0,
            (_, 0) => self.cpl = segment.attributes.dpl(),
            _ => self.cpl = 3,
        }
    }
    fn table(&self, table: DescriptorTable) -> TableRegister {
        match table {
            DescriptorTable::Global => self.gdtr,
            DescriptorTable::Interrupt => self.idtr,
        }
    }
    fn set_table(&mut self, table: DescriptorTable, value: TableRegister) {
        match table {
            DescriptorTable::Global => self.gdtr = value,
            DescriptorTable::Interrupt => self.idtr = value,
        }
    }
    fn has(&self, behaviour: Behaviour) -> bool {
        !self.lacks.contains(&behaviour)
    }
    fn set_interrupt_shadow(&mut self) {
        self.shadow = true;
    }
    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.nmi_blocked = blocked;
    }
    fn xcr0(&self) -> u64 {
        self.xcr0
    }
    fn fpu(&mut self) -> XsaveArea<'_> {
        self.area()
    }
    fn set_cr(&mut self, number: u8, value: u64) -> Result<(), Fault> {
        self.log.push(Event::SetCr(number, value));
        self.cr[number as usize] = value;
        Ok(())
    }
    fn dr(&self, number: u8) -> u64 {
        self.dr[number as usize]
    }
    fn set_dr(&mut self, number: u8, value: u64) -> Result<(), Fault> {
        self.log.push(Event::SetDr(number, value));
        self.dr[number as usize] = value;
        Ok(())
    }
    fn invalidate_page(&mut self, at: Gva) {
        self.log.push(Event::Invalidate(at.0));
    }

    fn read(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        assert!(
            at.page_offset() + buf.len() as u64 <= 4096,
            "a read across pages"
        );
        if let Some(range) = self.ram_range(at, buf.len()) {
            buf.copy_from_slice(&self.ram[range]);
            return Ok(());
        }
        self.log.push(Event::Read(at.0, buf.len()));
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = at.0.wrapping_add(i as u64);
            *byte = self.device.get(&at).copied().unwrap_or(device_byte(at));
        }
        Ok(())
    }
    fn write(&mut self, at: Gpa, data: &[u8]) -> Result<(), Fault> {
        assert!(
            at.page_offset() + data.len() as u64 <= 4096,
            "a write across pages"
        );
        match self.ram_range(at, data.len()) {
            Some(range) => self.ram[range].copy_from_slice(data),
            None => {
                self.log.push(Event::Write(at.0, data.to_vec()));
                let at = (0..).map(|i| at.0.wrapping_add(i));
                self.device.extend(at.zip(data.iter().copied()));
            }
        }
        Ok(())
    }
    fn compare_exchange(&mut self, at: Gpa, old: &[u8], new: &[u8]) -> Result<bool, Fault> {
        assert_eq!(old.len(), new.len());
        if std::mem::take(&mut self.race) {
            return Ok(false);
        }
        if let Some(range) = self.ram_range(at, old.len()) {
            if &self.ram[range] != old {
                return Ok(false);
            }
        }
        self.write(at, new).map(|()| true)
    }
    fn port_in(&mut self, port: u16, size: u8) -> Result<u32, Fault> {
        self.log.push(Event::In(port, size));
        Ok(0xa1b2_c3d4)
    }
    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Fault> {
        self.log.push(Event::Out(port, size, value));
        Ok(())
    }
}

impl GuestTables for TestCpu {
    type Error = Fault;
    fn read_entry(&mut self, at: Gpa, size: u8) -> Result<u64, Fault> {
        let mut entry = [0; 8];
        match self.ram_range(at, size.into()) {
            Some(range) => entry[..size.into()].copy_from_slice(&self.ram[range]),
            None => return Ok(u64::MAX),
        }
        Ok(u64::from_le_bytes(entry))
    }
    fn compare_exchange_entry(
        &mut self,
        at: Gpa,
        size: u8,
        old: u64,
        new: u64,
    ) -> Result<bool, Fault> {
        let size = usize::from(size);
        self.compare_exchange(at, &old.to_le_bytes()[..size], &new.to_le_bytes()[..size])
    }
}
