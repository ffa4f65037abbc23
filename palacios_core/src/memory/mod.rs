// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest-physical memory: which frames back it, and how the VMM reads and writes it. Which addresses are RAM says `ram.rs`.
//!
//! A frame is asked of the host's provider when its page is first touched, by guest or VMM, and the host may take it back
//! at any time ([`Memory::revoke`]).

pub mod table;
pub mod walk;

use crate::addr::{Gpa, Hpa, NotRam, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::host::{GuestRam, Host, Lock, LockClass, NoMemory, PageSize, RamError, Release};
use crate::interfaces::GuestMemory;
use crate::ram::RamLayout;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering};
use table::{Format, Leaf, SparePages, Tables};
use walk::GuestTables;

/// How many frames one round of [`Memory::revoke`] takes.
const REVOKE_BATCH: usize = 32;
/// How much of the guest is searched for frames at a time, with the tables locked and interrupts off: 32 tables at most.
const SEARCH_BYTES: u64 = 64 << 20;

/// One VM's RAM.
pub struct Memory<H: Host> {
    host: H,
    layout: RamLayout,
    provider: H::Ram,
    /// Held over each fill and revoke, so that the provider sees one request for a page at a time.
    fill: H::Mutex<SparePages<H>>,
    tables: H::SpinLock<Tables<H>>,
    root: Hpa,
    /// Counts revocations: a vCPU that has not flushed since the last one must not enter.
    generation: AtomicU64,
    frames_large: AtomicU64,
    frames_small: AtomicU64,
}

/// Why a page could not be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillError {
    /// The address is not RAM.
    NotRam,
    /// The host has no memory to give.
    NoMemory,
}

impl From<NoMemory> for FillError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl<H: Host> Memory<H> {
    /// RAM of this layout, whole pages, whose frames `provider` gives.
    pub fn new(
        host: &H,
        provider: H::Ram,
        layout: RamLayout,
        format: Format,
    ) -> Result<Self, NoMemory> {
        let tables = Tables::new(host.clone(), format)?;
        let root = tables.root();
        Ok(Self {
            fill: host.mutex(LockClass::GuestRam, SparePages::new(host.clone()))?,
            tables: host.spin_lock(LockClass::GuestMemory, tables)?,
            root,
            layout,
            generation: AtomicU64::new(0),
            frames_large: AtomicU64::new(0),
            frames_small: AtomicU64::new(0),
            provider,
            host: host.clone(),
        })
    }

    /// Where the guest's RAM is.
    pub fn layout(&self) -> RamLayout {
        self.layout
    }
    /// How much of it has frames.
    pub fn resident_bytes(&self) -> u64 {
        self.frames_large.load(Ordering::Relaxed) * LARGE_PAGE_SIZE
            + self.frames_small.load(Ordering::Relaxed) * PAGE_SIZE
    }
    /// How many frames it has, large and small.
    pub fn frames(&self) -> (u64, u64) {
        (
            self.frames_large.load(Ordering::Relaxed),
            self.frames_small.load(Ordering::Relaxed),
        )
    }
    /// The root of the nested tables; fixed for the VM's life.
    pub fn root(&self) -> Hpa {
        self.root
    }
    /// Changes with each revocation.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether `gpa` is RAM.
    pub fn is_ram(&self, gpa: Gpa) -> bool {
        self.layout.contains(gpa)
    }

    /// Sees to it that the page at `gpa` has a frame. Sleeps.
    pub fn fill(&self, gpa: Gpa) -> Result<(), FillError> {
        if !self.is_ram(gpa) {
            return Err(FillError::NotRam);
        }
        let mut spare = self.fill.lock();
        let large_fits = {
            let tables = self.tables.lock();
            if tables.lookup(gpa).is_some() {
                return Ok(());
            }
            let large_page = Gpa(gpa.0 & !(LARGE_PAGE_SIZE - 1));
            tables.large_fits(gpa) && self.layout.contains_all(large_page, LARGE_PAGE_SIZE)
        };
        spare.top_up()?;
        let leaf = self.new_frame(gpa, large_fits)?;
        let mapped = self.tables.lock().map(leaf, &mut spare);
        match mapped {
            Ok(true) => self.count(leaf.size).fetch_add(1, Ordering::Relaxed),
            _ => {
                self.provider.release(
                    leaf.gpa.0 / PAGE_SIZE,
                    leaf.frame,
                    leaf.size,
                    Release::Revoked,
                );
                return Err(FillError::NoMemory);
            }
        };
        Ok(())
    }

    fn new_frame(&self, gpa: Gpa, large_fits: bool) -> Result<Leaf, NoMemory> {
        for size in [PageSize::Large, PageSize::Small] {
            if size == PageSize::Large && !large_fits {
                continue;
            }
            let gpa = Gpa(gpa.0 & !(size.bytes() - 1));
            match self.provider.page(gpa.0 / PAGE_SIZE, size) {
                Ok(frame) => return Ok(Leaf { gpa, frame, size }),
                Err(RamError::TooLarge) => {}
                Err(RamError::NoMemory) => return Err(NoMemory),
            }
        }
        Err(NoMemory)
    }

    fn count(&self, size: PageSize) -> &AtomicU64 {
        match size {
            PageSize::Small => &self.frames_small,
            PageSize::Large => &self.frames_large,
        }
    }

    /// Takes all frames that back `from..from + bytes` out of the guest and gives them to the provider, contents and all;
    /// the next touch asks for them again. A large page goes whole. `flush` must return only when no vCPU can use a
    /// translation made before it was called. Sleeps. Returns how many frames went.
    pub fn revoke(&self, from: Gpa, bytes: u64, flush: impl Fn()) -> u64 {
        let end = Gpa(from.0.saturating_add(bytes));
        let (mut at, mut taken) = (from, 0);
        let _fill = self.fill.lock();
        loop {
            let mut batch = [None; REVOKE_BATCH];
            for slot in &mut batch {
                *slot = self.unmap_next(&mut at, end);
            }
            if batch[0].is_none() {
                return taken;
            }
            self.generation.fetch_add(1, Ordering::SeqCst);
            flush();
            for leaf in batch.into_iter().flatten() {
                self.provider.release(
                    leaf.gpa.0 / PAGE_SIZE,
                    leaf.frame,
                    leaf.size,
                    Release::Revoked,
                );
                taken += 1;
            }
        }
    }

    fn unmap_next(&self, at: &mut Gpa, end: Gpa) -> Option<Leaf> {
        let end = end.min(self.layout.end());
        while *at < end {
            let stop = end.min(Gpa(at.0 | (SEARCH_BYTES - 1)).wrapping_add(1));
            let mut tables = self.tables.lock();
            let Some(leaf) = tables.next_leaf(*at, stop) else {
                *at = stop;
                continue;
            };
            tables.unmap(leaf.gpa);
            self.count(leaf.size).fetch_sub(1, Ordering::Relaxed);
            *at = leaf.gpa.wrapping_add(leaf.size.bytes());
            return Some(leaf);
        }
        None
    }

    /// The aligned word of `size` (4 or 8) bytes that holds `gpa`, in one access. Sleeps if the page has no frame yet.
    pub fn read_word(&self, gpa: Gpa, size: u8) -> Result<u64, NotRam> {
        let first = aligned(gpa, size);
        // SAFETY: `size` bytes, aligned to that, of a frame that stays mapped meanwhile.
        self.with_page(first, |at| unsafe { read_word(at, size) })
    }

    /// What has frames now; nothing is revoked while it is held. Never sleeps, nor may its holder.
    pub fn resident(&self) -> Resident<'_, H> {
        Resident {
            memory: self,
            tables: self.tables.lock(),
        }
    }

    /// Runs `f` on the host address of `gpa`'s page while it cannot be revoked. Sleeps if the page has no frame yet.
    fn with_page<R>(&self, gpa: Gpa, mut f: impl FnMut(*mut u8) -> R) -> Result<R, NotRam> {
        loop {
            let resident = self.resident();
            if let Some(at) = resident.at(gpa) {
                return Ok(f(at));
            }
            drop(resident);
            self.fill(gpa).map_err(|_| NotRam(gpa))?;
        }
    }

    /// Replaces `old` by `new`, 1, 2, 4 or 8 bytes at `gpa`, in one atomic step of the processor; `false` if the memory no
    /// longer held `old`. Fails also where the bytes are not aligned to their number.
    pub fn compare_exchange(&self, gpa: Gpa, size: u8, old: u64, new: u64) -> Result<bool, NotRam> {
        if !matches!(size, 1 | 2 | 4 | 8) || gpa.0 % u64::from(size) != 0 {
            return Err(NotRam(gpa));
        }
        // SAFETY: `size` aligned bytes of a frame that stays mapped while the table is locked.
        self.with_page(gpa, |at| unsafe { compare_exchange(at, size, old, new) })
    }

    /// The piece of `len` bytes at `gpa` that lies in one page.
    fn piece(gpa: Gpa, len: usize) -> usize {
        len.min(PAGE_SIZE.wrapping_sub(gpa.page_offset()) as usize)
    }
}

/// The part of a guest's RAM that has frames, held so that it stays.
pub struct Resident<'a, H: Host> {
    memory: &'a Memory<H>,
    tables: <H::SpinLock<Tables<H>> as Lock<Tables<H>>>::Guard<'a>,
}

impl<H: Host> Resident<'_, H> {
    /// The host address of `gpa`, good to the end of its page; `None` if it has no frame.
    fn at(&self, gpa: Gpa) -> Option<*mut u8> {
        let leaf = self.tables.lookup(gpa)?;
        let base = self.memory.host.phys_to_virt(leaf.frame).as_ptr();
        Some(base.wrapping_add(gpa.0.wrapping_sub(leaf.gpa.0) as usize))
    }

    /// Copies out of it.
    pub fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        let (mut gpa, mut rest) = (at, buf);
        while !rest.is_empty() {
            let (piece, more) = rest.split_at_mut(Memory::<H>::piece(gpa, rest.len()));
            let from = self.at(gpa).ok_or(NotRam(gpa))?;
            // SAFETY: the piece ends in the page that `from` leads to.
            unsafe { copy_from_guest(piece, from) };
            gpa = gpa.checked_add(piece.len() as u64).ok_or(NotRam(gpa))?;
            rest = more;
        }
        Ok(())
    }
}

impl<H: Host> GuestTables for Resident<'_, H> {
    /// It has no frame yet.
    type Error = NotRam;

    fn read_entry(&mut self, at: Gpa, size: u8) -> Result<u64, NotRam> {
        match self.at(aligned(at, size)) {
            // SAFETY: `size` bytes, aligned to that, of a frame that stays mapped meanwhile.
            Some(at) => Ok(unsafe { read_word(at, size) }),
            None if self.memory.is_ram(at) => Err(NotRam(at)),
            None => Ok(u64::MAX),
        }
    }

    fn compare_exchange_entry(
        &mut self,
        at: Gpa,
        size: u8,
        old: u64,
        new: u64,
    ) -> Result<bool, NotRam> {
        let to = self.at(aligned(at, size)).ok_or(NotRam(at))?;
        // SAFETY: as above.
        Ok(unsafe { compare_exchange(to, size, old, new) })
    }
}

impl<H: Host> GuestMemory for Memory<H> {
    fn read(&self, at: Gpa, mut buf: &mut [u8]) -> Result<(), NotRam> {
        let mut gpa = at;
        while !buf.is_empty() {
            let (piece, rest) = buf.split_at_mut(Self::piece(gpa, buf.len()));
            // SAFETY: the piece ends in the page that the closure is given.
            self.with_page(gpa, |from| unsafe { copy_from_guest(piece, from) })?;
            gpa = gpa.checked_add(piece.len() as u64).ok_or(NotRam(gpa))?;
            buf = rest;
        }
        Ok(())
    }

    fn write(&self, at: Gpa, mut data: &[u8]) -> Result<(), NotRam> {
        let mut gpa = at;
        while !data.is_empty() {
            let (piece, rest) = data.split_at(Self::piece(gpa, data.len()));
            // SAFETY: the piece ends in the page that the closure is given.
            self.with_page(gpa, |to| unsafe { copy_to_guest(to, piece) })?;
            gpa = gpa.checked_add(piece.len() as u64).ok_or(NotRam(gpa))?;
            data = rest;
        }
        Ok(())
    }
}

impl<H: Host> Drop for Memory<H> {
    fn drop(&mut self) {
        let mut at = Gpa(0);
        while let Some(leaf) = self.unmap_next(&mut at, Gpa(u64::MAX)) {
            self.provider.release(
                leaf.gpa.0 / PAGE_SIZE,
                leaf.frame,
                leaf.size,
                Release::Ended,
            );
        }
    }
}

/// Where the word of `size` (4 or 8) bytes begins that holds `gpa`.
fn aligned(gpa: Gpa, size: u8) -> Gpa {
    Gpa(gpa.0 & if size == 8 { !7 } else { !3 })
}

/// # Safety
/// `at` is valid for reads of 8 bytes if `size` is that, else of 4, and aligned to them.
unsafe fn read_word(at: *const u8, size: u8) -> u64 {
    // SAFETY: by the contract above.
    unsafe {
        match size {
            8 => at.cast::<u64>().read_volatile(),
            _ => at.cast::<u32>().read_volatile().into(),
        }
    }
}

/// Copies out of guest memory, which the guest may change meanwhile: volatile, in aligned words as far as they go.
///
/// # Safety
/// `from` is valid for reads of `to.len()` bytes.
unsafe fn copy_from_guest(to: &mut [u8], from: *const u8) {
    let (mut at, mut rest) = (from, to);
    while !rest.is_empty() {
        let step = step(at as usize, rest.len());
        let Some((piece, more)) = rest.split_at_mut_checked(step) else {
            return;
        };
        // SAFETY: `step` bytes inside the range that the caller vouches for, aligned to their number.
        let word = unsafe {
            match step {
                8 => at.cast::<u64>().read_volatile(),
                4 => u64::from(at.cast::<u32>().read_volatile()),
                2 => u64::from(at.cast::<u16>().read_volatile()),
                _ => u64::from(at.read_volatile()),
            }
        };
        for (to, byte) in piece.iter_mut().zip(word.to_le_bytes()) {
            *to = byte;
        }
        at = at.wrapping_add(step);
        rest = more;
    }
}

/// Copies into guest memory; see [`copy_from_guest`].
///
/// # Safety
/// `to` is valid for writes of `from.len()` bytes.
unsafe fn copy_to_guest(to: *mut u8, from: &[u8]) {
    let (mut at, mut rest) = (to, from);
    while !rest.is_empty() {
        let step = step(at as usize, rest.len());
        let Some((piece, more)) = rest.split_at_checked(step) else {
            return;
        };
        let mut word = [0; 8];
        for (to, byte) in word.iter_mut().zip(piece) {
            *to = *byte;
        }
        let word = u64::from_le_bytes(word);
        // SAFETY: `step` bytes inside the range that the caller vouches for, aligned to their number.
        unsafe {
            match step {
                8 => at.cast::<u64>().write_volatile(word),
                4 => at.cast::<u32>().write_volatile(word as u32),
                2 => at.cast::<u16>().write_volatile(word as u16),
                _ => at.write_volatile(word as u8),
            }
        }
        at = at.wrapping_add(step);
        rest = more;
    }
}

/// The widest access that is aligned at `at` and no longer than `left` bytes. An aligned 2, 4 or 8 bytes are thus copied in
/// one access, which is what guests expect of a device.
fn step(at: usize, left: usize) -> usize {
    [8, 4, 2]
        .into_iter()
        .find(|n| at % n == 0 && left >= *n)
        .unwrap_or(1)
}

/// # Safety
/// `at` is valid for reads and writes of `size` bytes, 1, 2, 4 or 8, and aligned to them.
unsafe fn compare_exchange(at: *mut u8, size: u8, old: u64, new: u64) -> bool {
    const ORDER: Ordering = Ordering::SeqCst;
    // SAFETY: by the contract above; the guest's accesses are a processor's, atomic in the same way.
    unsafe {
        match size {
            8 => AtomicU64::from_ptr(at.cast())
                .compare_exchange(old, new, ORDER, ORDER)
                .is_ok(),
            4 => AtomicU32::from_ptr(at.cast())
                .compare_exchange(old as u32, new as u32, ORDER, ORDER)
                .is_ok(),
            2 => AtomicU16::from_ptr(at.cast())
                .compare_exchange(old as u16, new as u16, ORDER, ORDER)
                .is_ok(),
            _ => AtomicU8::from_ptr(at)
                .compare_exchange(old as u8, new as u8, ORDER, ORDER)
                .is_ok(),
        }
    }
}
