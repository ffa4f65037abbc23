// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest-physical memory: what is where, which frames are behind it, and how the VMM reads and writes it.
//!
//! ```text
//!   guest-physical address
//!        │  regions: which page is shown there, and where writes go        regions.rs, region_map.rs
//!        ▼
//!   page number
//!        │  frames: where the page is, who holds or pins it                 frames.rs, frame_word.rs
//!        ▼
//!   host-physical address
//! ```
//!
//! Regions and frames are the truth. Nested tables ([`nested`]) are a cache of both for processors: what changes tells them
//! what to forget. All are looked up without a lock. A frame is asked of the host's provider when its page is first touched, by
//! guest or VMM, and the host may take it back at any time ([`Memory::revoke`]).

mod access;
mod arrangement;
mod change;
pub mod code_page;
mod copy;
mod dirty;
mod frame_word;
mod frames;
mod gate;
mod log;
pub mod look;
pub mod nested;
mod page_set;
mod pin;
mod region_map;
mod saved;
mod take;
pub mod walk;
mod watch;
mod watched;
mod words;

pub use access::Resident;
pub use page_set::PAGES_PER_WORD;
pub use pin::Pin;
pub use watched::WriteWatcher;

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::host::{Host, LockClass, NoMemory, PageSize};
use crate::ram::RamLayout;
use crate::regions::{Region, Regions, Writes};
use arrangement::Arrangement;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use dirty::DirtyLog;
use frame_word::Refused;
use frames::{Frame, Frames};
use gate::{Gate, Inside};
use nested::{Format, Leaf, Made, NestedTables, Spare};
use region_map::RegionMap;
use walk::AccessKind;
use watched::Watched;

/// How many pages of a VM may be something else than RAM: ROMs, frame buffers, shared pages. 64 GiB of them.
const OTHER_PAGES: u64 = 64 << 18;

/// One VM's memory.
pub struct Memory<H: Host> {
    host: H,
    layout: RamLayout,
    provider: H::Ram,
    frames: Frames<H>,
    map: RegionMap,
    nested: NestedTables<H>,
    log: DirtyLog<H>,
    watched: Watched<H>,
    /// Those inside use frames, and make translations by the map and the log as they are.
    gate: Gate,
    /// Held over each change of the map, revocation, and step of the log: one at a time.
    changes: H::Mutex<Arrangement>,
    /// Counts when translations were forgotten: a vCPU that has not flushed since the last time must not enter.
    generation: AtomicU64,
}

/// Why an access of the guest's cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// No memory is at the address: it is a device's, or nobody's.
    NotMemory,
    /// Memory is there, but the write goes elsewhere ([`Writes`]).
    NotWritable,
    /// The host has no memory to give.
    NoMemory,
}

impl From<NoMemory> for FaultError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// What the guest's access found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// A translation that was not there before.
    New,
    /// One that was there with fewer rights: the vCPU that asked may still know the old one, and forgets it before it goes on.
    Changed,
}

/// What one attempt to make a translation came to.
enum Attempt {
    /// The access can be done.
    Done(Resolved),
    /// This page has no frame yet.
    NoFrame(u64),
    /// A page for a table is needed first.
    NeedsTable,
    /// The frame comes or goes just now.
    Again,
    /// A larger leaf has to give way first.
    Covered,
}

impl<H: Host> Memory<H> {
    /// RAM of this layout, whole pages, whose frames `provider` gives.
    pub fn new(
        host: &H,
        provider: H::Ram,
        layout: RamLayout,
        format: Format,
    ) -> Result<Self, NoMemory> {
        let regions = Regions::of_ram(layout)?;
        let ram_pages = layout.bytes() / PAGE_SIZE;
        Ok(Self {
            frames: Frames::new(host, ram_pages, OTHER_PAGES)?,
            map: RegionMap::new(&regions)?,
            nested: NestedTables::new(host, format)?,
            log: DirtyLog::new(host, ram_pages)?,
            watched: Watched::new(host, ram_pages)?,
            gate: Gate::new(),
            changes: host.mutex(LockClass::GuestRam, Arrangement::new(regions)?)?,
            generation: AtomicU64::new(0),
            layout,
            provider,
            host: host.clone(),
        })
    }

    /// Where the guest's RAM is when the machine starts.
    pub fn layout(&self) -> RamLayout {
        self.layout
    }
    /// How much of its RAM has frames.
    pub fn resident_bytes(&self) -> u64 {
        let of = |size: PageSize| self.frames(size).saturating_mul(size.bytes());
        PageSize::ALL.into_iter().map(of).sum()
    }
    /// How many frames of this size its RAM has.
    pub fn frames(&self, size: PageSize) -> u64 {
        self.frames.count(size)
    }
    /// What the tables take that say where everything is.
    pub fn table_bytes(&self) -> u64 {
        let pages = [
            self.frames.table_pages(),
            self.nested.table_pages(),
            self.log.table_pages(),
            self.watched.table_pages(),
        ];
        pages.into_iter().sum::<u64>().saturating_mul(PAGE_SIZE)
    }
    /// The root of the nested tables; fixed for the VM's life.
    pub fn root(&self) -> Hpa {
        self.nested.root()
    }
    /// Changes whenever translations were forgotten.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether memory is at `gpa`.
    pub fn is_memory(&self, gpa: Gpa) -> bool {
        self.region(gpa).is_some()
    }
    /// The region in which `gpa` lies. Any context.
    pub fn region(&self, gpa: Gpa) -> Option<Region> {
        self.map.find(&self.gate.enter(), gpa)
    }

    /// Sees to it that the guest's access to `gpa` can be done: when this returns well, the access does not fault again, unless
    /// the page was taken away since. `flush` returns only when no vCPU can use a translation from before it was called. Sleeps.
    pub fn fault(
        &self,
        gpa: Gpa,
        access: AccessKind,
        flush: &dyn Fn(),
    ) -> Result<Resolved, FaultError> {
        let mut spare = self.nested.spare();
        loop {
            // A statement of its own: what follows must not happen inside the gate.
            let attempt = self.translate(&self.gate.enter(), gpa, access, &mut spare)?;
            match attempt {
                Attempt::Done(resolved) => return Ok(resolved),
                Attempt::NoFrame(page) => self.fill(page)?,
                Attempt::NeedsTable if self.nested.table_pages() >= self.most_tables() => {
                    return Err(FaultError::NoMemory);
                }
                Attempt::NeedsTable => spare.fill()?,
                Attempt::Again => self.host.yield_now(),
                Attempt::Covered => {
                    spare.fill()?;
                    if self.nested.split(gpa, &mut spare) {
                        self.flush(flush);
                    }
                }
            }
        }
    }

    /// How many pages nested tables may take: twice what all of RAM needs in small pages, and 4 MiB. A guest that moves what it sees about
    /// gets no more.
    fn most_tables(&self) -> u64 {
        let of_ram = self.frames.ram_pages() / PageSize::Large.pages();
        of_ram.saturating_mul(2).saturating_add(1024)
    }

    /// Gives all RAM its frames and translations before the guest asks for them, as a host does that wants no faults later.
    /// `flush` is as for [`Memory::fault`]. Sleeps.
    pub fn populate(&self, flush: &dyn Fn()) -> Result<(), NoMemory> {
        // A leaf that may not be executed would be split later.
        let access = match self.nested.format().large_executable {
            true => AccessKind::Write,
            false => AccessKind::Execute,
        };
        for range in self.layout.ranges() {
            let mut at = range.start;
            while at < range.end {
                match self.fault(Gpa(at), access, flush) {
                    // The owner has put something else there.
                    Ok(_) | Err(FaultError::NotMemory | FaultError::NotWritable) => {}
                    Err(FaultError::NoMemory) => return Err(NoMemory),
                }
                let leaf = self.nested.find(Gpa(at));
                let size = leaf.map_or(PageSize::Small, |leaf| leaf.size);
                at = (at | size.bytes().wrapping_sub(1)).wrapping_add(1);
            }
        }
        Ok(())
    }

    /// Sees to it that a page has a frame.
    fn fill(&self, page: u64) -> Result<(), NoMemory> {
        self.frames.fill(&self.host, &self.provider, page)
    }

    /// Makes the translation that an access needs, if the page has a frame.
    fn translate(
        &self,
        inside: &Inside<'_>,
        gpa: Gpa,
        access: AccessKind,
        spare: &mut Spare<'_, H>,
    ) -> Result<Attempt, FaultError> {
        let region = self.map.find(inside, gpa).ok_or(FaultError::NotMemory)?;
        if access == AccessKind::Write && region.writes != Writes::Allowed {
            return Err(FaultError::NotWritable);
        }
        let page = region.page_at(gpa);
        let frame = match self.frames.find(page) {
            Ok(frame) => frame,
            Err(Refused::Empty) => return Ok(Attempt::NoFrame(page)),
            Err(_) => return Ok(Attempt::Again),
        };
        for size in PageSize::ALL.into_iter().rev() {
            let Some(leaf) = self.leaf(gpa, access, &region, &frame, size) else {
                continue;
            };
            let resolved = match self.nested.make(&leaf, spare) {
                Made::New => Resolved::New,
                Made::Changed => Resolved::Changed,
                Made::Covered => return Ok(Attempt::Covered),
                Made::NeedsTable => return Ok(Attempt::NeedsTable),
                Made::Split | Made::OutOfReach => continue,
            };
            if access == AccessKind::Write {
                // Behind the leaf: what is written through it is logged with the next set, if not with this one.
                self.note_write(page);
            }
            return Ok(Attempt::Done(resolved));
        }
        Ok(Attempt::Again)
    }

    /// A leaf of this size for the access, if there may be one.
    fn leaf(
        &self,
        gpa: Gpa,
        access: AccessKind,
        region: &Region,
        frame: &Frame,
        size: PageSize,
    ) -> Option<Leaf> {
        let (format, small) = (self.nested.format(), size == PageSize::Small);
        let at = Gpa(gpa.0 & !size.bytes().wrapping_sub(1));
        let fits = frame.size >= size
            && (size != PageSize::Huge || format.huge)
            && region.at <= at
            && region.bytes >= size.bytes()
            && at.0.wrapping_sub(region.at.0) <= region.bytes.wrapping_sub(size.bytes());
        if !fits {
            return None;
        }
        let first = region.page_at(at);
        let closed = self.is_closed(&(first..first.saturating_add(size.pages())));
        let execute = small || format.large_executable;
        let frame = frame.page(first);
        let allowed = small || !closed && (execute || access != AccessKind::Execute);
        let aligned = frame.0 % size.bytes() == 0;
        (allowed && aligned).then_some(Leaf {
            gpa: at,
            frame,
            size,
            write: region.writes == Writes::Allowed && (!closed || access == AccessKind::Write),
            execute,
            cache: region.cache,
        })
    }

    /// Whether the guest may write to these pages only after it was noted.
    fn is_closed(&self, pages: &Range<u64>) -> bool {
        let logged = self.log.is_active() && pages.start < self.frames.ram_pages();
        logged || self.watched.closes(pages)
    }

    /// A page is written. From inside the gate: so a log or a watch that begins now knows of the write, or has it in it.
    fn note_write(&self, page: u64) {
        self.log.note(page);
        self.watched.note(page);
    }

    /// Waits until nobody acts on what was before a change that is published.
    fn wait_for_those_inside(&self) {
        self.gate.wait_for_those_inside(|| self.host.yield_now());
    }

    /// Returns when no vCPU uses a translation that the tables no longer have.
    fn flush(&self, flush: &dyn Fn()) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        flush();
    }
}
