// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory and machines for the tests of boot protocols.

use crate::addr::{Gpa, NotRam};
use crate::image::testing::Spec;
use crate::image::Image;
use crate::interfaces::GuestMemory;
use crate::ram::RamLayout;
use crate::state::CpuState;
use std::cell::RefCell;
use std::collections::HashMap;

/// RAM of any size, of which only what was written takes room. It is full of garbage at first, as after a reset.
pub struct TestMemory {
    ram: RamLayout,
    pages: RefCell<HashMap<u64, [u8; 4096]>>,
}

impl TestMemory {
    pub fn new(ram: RamLayout) -> Self {
        Self {
            ram,
            pages: RefCell::default(),
        }
    }

    /// The piece of `len` bytes at `at` that lies in one page, for `f` to fill or take.
    fn piece(&self, at: Gpa, len: usize, f: impl FnOnce(&mut [u8])) -> Result<usize, NotRam> {
        if !self.ram.contains(at) {
            return Err(NotRam(at));
        }
        let from = at.page_offset() as usize;
        let to = (from + len).min(4096);
        let mut pages = self.pages.borrow_mut();
        f(&mut pages.entry(at.page().0).or_insert([0xa5; 4096])[from..to]);
        Ok(to - from)
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(Gpa(at), &mut bytes).unwrap();
        bytes
    }
    pub fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
    }
    pub fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }
}

impl GuestMemory for TestMemory {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        let mut done = 0;
        while done < buf.len() {
            let to = &mut buf[done..];
            let from = at.checked_add(done as u64).ok_or(NotRam(at))?;
            done += self.piece(from, to.len(), |page| {
                to[..page.len()].copy_from_slice(page)
            })?;
        }
        Ok(())
    }
    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
        let mut done = 0;
        while done < data.len() {
            let from = &data[done..];
            let to = at.checked_add(done as u64).ok_or(NotRam(at))?;
            done += self.piece(to, from.len(), |page| {
                page.copy_from_slice(&from[..page.len()])
            })?;
        }
        Ok(())
    }
}

/// Loads the machine of `spec` with these blobs into memory of its size.
pub fn boot(spec: &Spec, blobs: &[&[u8]]) -> Result<(CpuState, TestMemory), super::BootError> {
    let bytes = spec.image(blobs);
    let machine = Image::parse(&bytes).unwrap().machine().unwrap();
    let memory = TestMemory::new(machine.ram);
    let state = super::load(&machine, &memory)?;
    Ok((state, memory))
}

/// Puts little-endian numbers into a file.
pub fn put(file: &mut Vec<u8>, at: usize, data: &[u8]) {
    if file.len() < at + data.len() {
        file.resize(at + data.len(), 0);
    }
    file[at..at + data.len()].copy_from_slice(data);
}
