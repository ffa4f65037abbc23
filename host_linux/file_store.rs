// SPDX-License-Identifier: GPL-2.0
//! Disks of guests in files and block devices of the host's: a [`BlockStore`] over an open file.
//!
//! ```text
//!   device's worker ── submit ──▶ Job ── queue_work ──▶ a kworker: vfs_iter_read, vfs_iter_write, vfs_fsync, vfs_fallocate
//!        ▲     │                                            │  as whoever opened the file; the VM's payer pays
//!        │     ▼                                            │
//!        │   a short transfer that waits for nothing        │
//!        │◀──────────────────────── wake ───────────────────┤
//!        └── next_done ◀── the list of what is done ◀───────┘
//! ```
//!
//! A short transfer that the page cache can make at once, or that goes to a file in memory, is made where it is submitted: two switches between
//! threads cost more than it.
//!
//! Nothing is copied by this file: the guest's pages are pinned, and the kernel is given them as they are. The caller's descriptor says what may
//! be done. Two disks on one file are refused if one of them writes, unless both are shared.

use crate::counters::FILES;
use crate::ffi::{self, DiskInfo, DiskPiece};
use crate::payer::Payer;
use alloc::boxed::Box;
use core::ptr::NonNull;
use kernel::{
    alloc::AllocError,
    bindings,
    ffi::c_void,
    fs::LocalFile,
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};
use palacios_core::alloc_ext::try_box;
use palacios_core::block::{
    BlockError, BlockInfo, BlockMemory, BlockRequest, BlockStore, Done, Operation, Ranges,
    SECTOR_BYTES,
};
use palacios_core::host::NoMemory;
use palacios_core::interfaces::Wake;

/// How many requests are under way at most.
const MOST_UNDER_WAY: usize = 128;
/// The most bytes that are transferred where they are submitted. Longer transfers would hold up the device's worker, and are faster side by side.
const MOST_BYTES_HERE: u64 = 64 << 10;

/// How a file is to be used.
#[derive(Clone, Copy)]
pub(crate) struct DiskUse {
    /// The guest may write.
    pub(crate) writes: bool,
    /// Another disk may be on the same file.
    pub(crate) is_shared: bool,
}

/// What speaks against a file as a disk. The numbers are those of disk.c.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DiskFault {
    /// It is one of this module's.
    Ours = 1,
    /// It is no file and no block device.
    NoBlocks = 2,
    /// It was not opened for reading.
    NotReadable = 3,
    /// It was not opened for writing.
    NotWritable = 4,
    /// It was opened to be appended to.
    Appends = 5,
    /// It is empty.
    Empty = 6,
    /// It does not end with a sector.
    NotWhole = 7,
    /// Another disk is on it, and one of both writes.
    InUse,
    /// The host has no memory.
    NoMemory,
}

impl DiskFault {
    /// What is said of the descriptor.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Ours => "is a node of v3vee itself, which no VM may hold",
            Self::NoBlocks => "is no regular file and no block device",
            Self::NotReadable => "was not opened for reading",
            Self::NotWritable => "was not opened for writing: open it so, or ask for a read-only disk",
            Self::Appends => "can only be appended to: open it without O_APPEND",
            Self::Empty => "is empty: give it a size first, as `truncate -s 1G FILE` does",
            Self::NotWhole => "is no multiple of 512 bytes long: `truncate -s %512 FILE` fills it up",
            Self::InUse => "is the disk of a VM already, and one of both would write: ask for both to be shared",
            Self::NoMemory => "could not be taken: the host has no memory",
        }
    }
}

impl From<AllocError> for DiskFault {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

impl From<NoMemory> for DiskFault {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

kernel::sync::global_lock! {
    // SAFETY: Initialised by `init`, when the module is loaded.
    unsafe(uninit) static USES: Mutex<KVec<Use>> = KVec::new();
}

/// To be called once, before the first disk.
pub(crate) fn init() {
    // SAFETY: Called once.
    unsafe { USES.init() };
}

/// A disk on a file.
struct Use {
    /// Of the file's inode; it stays as long as the file is held.
    identity: usize,
    how: DiskUse,
}

/// A note that a disk is on a file, until dropped.
struct Claim(usize, DiskUse);

impl Claim {
    fn new(file: &LocalFile, how: DiskUse) -> Result<Self, DiskFault> {
        // SAFETY: An open file.
        let identity = unsafe { ffi::v3vee_disk_identity(file.as_ptr()) } as usize;
        let mut uses = USES.lock();
        let is_against = |other: &Use| {
            let writes = other.how.writes || how.writes;
            let is_shared = other.how.is_shared && how.is_shared;
            other.identity == identity && writes && !is_shared
        };
        if uses.iter().any(is_against) {
            return Err(DiskFault::InUse);
        }
        uses.push(Use { identity, how }, GFP_KERNEL)?;
        Ok(Self(identity, how))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut uses = USES.lock();
        let is_it = |of: &Use| {
            let how = (of.how.writes, of.how.is_shared);
            of.identity == self.0 && how == (self.1.writes, self.1.is_shared)
        };
        if let Some(index) = uses.iter().position(is_it) {
            let _ = uses.remove(index);
        }
    }
}

/// The file, with the threads that work on it.
struct Disk {
    disk: NonNull<ffi::Disk>,
    payer: Arc<Payer>,
    how: DiskUse,
}

// SAFETY: What is behind the pointer may be used on any thread, and on several at once.
unsafe impl Send for Disk {}
// SAFETY: As above.
unsafe impl Sync for Disk {}

impl Disk {
    fn as_ptr(&self) -> *mut ffi::Disk {
        self.disk.as_ptr()
    }
}

/// What the store shares with its jobs.
#[pin_data]
struct Middle {
    disk: Disk,
    #[pin]
    done: Mutex<Finished>,
}

/// What is done, and who is told.
struct Finished {
    /// There is room for all that are under way.
    jobs: KVec<KBox<Job>>,
    wake: Option<Box<dyn Wake>>,
}

/// A request under way.
struct Job {
    /// What C needs to queue it.
    work: KVec<u64>,
    middle: Arc<Middle>,
    request: BlockRequest,
    /// The memory of the request, as C wants it.
    pieces: KVVec<DiskPiece>,
    result: Result<(), BlockError>,
}

/// A disk in a file.
pub(crate) struct FileStore {
    /// Before the file, which keeps the inode.
    _claim: Claim,
    middle: Arc<Middle>,
    under_way: usize,
    /// What was done, or failed, when it was submitted. There is room for all that are under way.
    done_here: KVec<Done>,
    /// Used by each transfer that is made here.
    pieces: KVVec<DiskPiece>,
}

// SAFETY: All of it may be used and dropped on any thread.
unsafe impl Send for FileStore {}

impl FileStore {
    /// A disk in an open file, of which it takes a reference of its own.
    pub(crate) fn new(
        file: &LocalFile,
        payer: Arc<Payer>,
        how: DiskUse,
    ) -> Result<Box<dyn BlockStore>, DiskFault> {
        // SAFETY: An open file.
        match unsafe { ffi::v3vee_disk_fault(file.as_ptr(), how.writes) } {
            0 => {}
            1 => return Err(DiskFault::Ours),
            3 => return Err(DiskFault::NotReadable),
            4 => return Err(DiskFault::NotWritable),
            5 => return Err(DiskFault::Appends),
            6 => return Err(DiskFault::Empty),
            7 => return Err(DiskFault::NotWhole),
            _ => return Err(DiskFault::NoBlocks),
        }
        let claim = Claim::new(file, how)?;
        let jobs = KVec::with_capacity(MOST_UNDER_WAY, GFP_KERNEL_ACCOUNT)?;
        let done_here = KVec::with_capacity(MOST_UNDER_WAY, GFP_KERNEL_ACCOUNT)?;
        // SAFETY: An open file.
        let disk = unsafe { ffi::v3vee_disk_new(file.as_ptr()) };
        let disk = Disk {
            disk: NonNull::new(disk).ok_or(DiskFault::NoMemory)?,
            payer,
            how,
        };
        FILES.add(1);
        let finished = Finished { jobs, wake: None };
        let middle = Arc::pin_init(
            pin_init!(Middle {
                disk,
                done <- new_mutex!(finished, "v3vee_disk_done"),
            }),
            GFP_KERNEL_ACCOUNT,
        );
        Ok(try_box(Self {
            middle: middle.map_err(|_| DiskFault::NoMemory)?,
            under_way: 0,
            done_here,
            pieces: KVVec::new(),
            _claim: claim,
        })?)
    }

    /// Makes a transfer, if it is short and nothing has to be waited for. Else nothing is known of it.
    fn transfers_here(&mut self, operation: &Operation) -> bool {
        let (write, through, sector, memory) = match operation {
            Operation::Read { sector, memory } => (false, false, *sector, memory),
            Operation::Write {
                sector,
                memory,
                through,
            } => (true, *through, *sector, memory),
            _ => return false,
        };
        self.pieces.clear();
        let is_short = (1..=MOST_BYTES_HERE).contains(&memory.bytes());
        if !is_short || gather(memory, &mut self.pieces).is_err() {
            return false;
        }
        // SAFETY: The disk is there; the pieces are so many and are the guest's memory, which is pinned.
        unsafe {
            ffi::v3vee_disk_transfer_here(
                self.middle.disk.as_ptr(),
                write,
                through,
                sector.saturating_mul(SECTOR_BYTES),
                self.pieces.as_mut_ptr(),
                self.pieces.len(),
                memory.bytes(),
            )
        }
    }

    /// Puts a request to those that are done. There is room: `submit` has looked.
    fn end(&mut self, request: BlockRequest, result: Result<(), BlockError>) {
        let _ = self
            .done_here
            .push_within_capacity(Done { request, result });
    }

    /// A job for a request; gives that back if there is no memory.
    fn job(&self, request: BlockRequest) -> Result<KBox<Job>, BlockRequest> {
        let mut work = KVec::new();
        // SAFETY: Reads a constant.
        let words = unsafe { ffi::v3vee_disk_work_bytes() }.div_ceil(size_of::<u64>());
        if work.resize(words, 0, GFP_KERNEL_ACCOUNT).is_err() {
            return Err(request);
        }
        let Ok(place) = KBox::<Job>::new_uninit(GFP_KERNEL_ACCOUNT) else {
            return Err(request);
        };
        Ok(KBox::write(
            place,
            Job {
                work,
                middle: self.middle.clone(),
                request,
                pieces: KVVec::new(),
                result: Ok(()),
            },
        ))
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        self.drain();
        // Behind this nobody has the middle but this store: each job that is done is in it, and refers to it.
        let jobs = core::mem::take(&mut self.middle.done.lock().jobs);
        drop(jobs);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // SAFETY: Made by `new`. The jobs refer to this, so none is under way but one that runs to its end in `run`, which this waits for;
        // it is never dropped there: the store holds it until all jobs are drained.
        unsafe { ffi::v3vee_disk_free(self.as_ptr()) };
        FILES.sub(1);
    }
}

impl BlockStore for FileStore {
    fn info(&self) -> BlockInfo {
        let disk = &self.middle.disk;
        let mut info = DiskInfo::default();
        // SAFETY: The disk is there as long as `self`.
        unsafe { ffi::v3vee_disk_info(disk.as_ptr(), &mut info) };
        let writes = disk.how.writes;
        BlockInfo {
            sectors: info.bytes / SECTOR_BYTES,
            block_bytes: info.block_bytes,
            physical_block_bytes: info.physical_block_bytes.max(info.block_bytes),
            is_read_only: !writes,
            needs_flush: writes,
            can_discard: writes && info.can_discard,
            can_write_zeroes: writes && info.can_write_zeroes,
        }
    }

    fn begin(&mut self, wake: Box<dyn Wake>) -> Result<(), NoMemory> {
        self.middle.done.lock().wake = Some(wake);
        Ok(())
    }

    fn submit(&mut self, request: BlockRequest) -> Result<(), BlockRequest> {
        if self.under_way.wrapping_add(self.done_here.len()) >= MOST_UNDER_WAY {
            return Err(request);
        }
        let payer = self.middle.disk.payer.clone();
        if payer.during(|| self.transfers_here(&request.operation)) {
            self.end(request, Ok(()));
            return Ok(());
        }
        let mut job = match payer.during(|| self.job(request)) {
            Ok(job) => job,
            Err(request) => {
                self.end(request, Err(BlockError::NoMemory));
                return Ok(());
            }
        };
        let work = job.work.as_mut_ptr().cast();
        let disk = self.middle.disk.as_ptr();
        self.under_way = self.under_way.wrapping_add(1);
        let context = KBox::into_raw(job).cast();
        // SAFETY: `work` has the room, aligned to 8, and stays in the job until `run` has it, which takes the job back.
        unsafe { ffi::v3vee_disk_queue(disk, work, run, context) };
        Ok(())
    }

    fn next_done(&mut self) -> Option<Done> {
        if let Some(done) = self.done_here.pop() {
            return Some(done);
        }
        if self.under_way == 0 {
            return None;
        }
        let job = self.middle.done.lock().jobs.pop()?;
        self.under_way = self.under_way.wrapping_sub(1);
        let Job {
            request, result, ..
        } = KBox::into_inner(job);
        Some(Done { request, result })
    }

    fn resize(&mut self, bytes: u64) -> Result<(), BlockError> {
        let disk = &self.middle.disk;
        if !disk.how.writes {
            return Err(BlockError::ReadOnly);
        }
        // SAFETY: The disk is there as long as `self`.
        result_of(unsafe { ffi::v3vee_disk_resize(disk.as_ptr(), bytes) })
    }

    fn drain(&mut self) {
        // SAFETY: The disk is there as long as `self`.
        unsafe { ffi::v3vee_disk_drain(self.middle.disk.as_ptr()) };
    }
}

/// Does a job, on a thread of the disk's.
///
/// # Safety
/// `context` is a job that nobody else has.
unsafe extern "C" fn run(context: *mut c_void) {
    // SAFETY: By the contract above.
    let mut job = unsafe { KBox::<Job>::from_raw(context.cast()) };
    let payer = job.middle.disk.payer.clone();
    job.result = payer.during(|| job.serve());
    let middle = job.middle.clone();
    let mut done = middle.done.lock();
    // There is room: no more are under way.
    let _ = done.jobs.push_within_capacity(job);
    if let Some(wake) = &done.wake {
        wake.wake();
    }
}

impl Job {
    fn serve(&mut self) -> Result<(), BlockError> {
        let (disk, pieces) = (&self.middle.disk, &mut self.pieces);
        match &self.request.operation {
            Operation::Read { sector, memory } => {
                transfer(disk, false, false, *sector, memory, pieces)
            }
            Operation::Write {
                sector,
                memory,
                through,
            } => transfer(disk, true, *through, *sector, memory, pieces),
            Operation::Flush => flush(disk),
            Operation::Discard(ranges) => for_each(ranges, |at, bytes| {
                // SAFETY: The disk is there.
                unsafe { ffi::v3vee_disk_discard(disk.as_ptr(), at, bytes) }
            }),
            Operation::WriteZeroes {
                ranges,
                may_discard,
                through,
            } => {
                for_each(ranges, |at, bytes| {
                    // SAFETY: The disk is there.
                    unsafe { ffi::v3vee_disk_zero(disk.as_ptr(), *may_discard, at, bytes) }
                })?;
                if *through {
                    flush(disk)?;
                }
                Ok(())
            }
        }
    }
}

/// Puts the memory of a request into pieces.
fn gather(memory: &BlockMemory, pieces: &mut KVVec<DiskPiece>) -> Result<(), BlockError> {
    let mut all_there = true;
    memory.pieces(&mut |at, bytes| {
        // What follows in the host's memory, too, is one piece.
        if let Some(last) = pieces.last_mut() {
            let end = last.at.wrapping_add(last.bytes);
            let sum = last.bytes.saturating_add(bytes);
            if end == at.0 && sum <= DiskPiece::MOST_BYTES {
                last.bytes = sum;
                return;
            }
        }
        let piece = DiskPiece { at: at.0, bytes };
        all_there &= pieces.push(piece, GFP_KERNEL_ACCOUNT).is_ok();
    });
    match all_there {
        true => Ok(()),
        false => Err(BlockError::NoMemory),
    }
}

fn transfer(
    disk: &Disk,
    write: bool,
    through: bool,
    sector: u64,
    memory: &BlockMemory,
    pieces: &mut KVVec<DiskPiece>,
) -> Result<(), BlockError> {
    gather(memory, pieces)?;
    if memory.bytes() == 0 {
        return Ok(());
    }
    let at = sector.saturating_mul(SECTOR_BYTES);
    // SAFETY: The disk is there; the pieces are so many and are the guest's memory, which is pinned.
    result_of(unsafe {
        ffi::v3vee_disk_transfer(
            disk.as_ptr(),
            write,
            through,
            at,
            pieces.as_mut_ptr(),
            pieces.len(),
            memory.bytes(),
        )
    })
}

fn flush(disk: &Disk) -> Result<(), BlockError> {
    // SAFETY: The disk is there.
    result_of(unsafe { ffi::v3vee_disk_flush(disk.as_ptr()) })
}

/// Calls `act` for each range that is not empty: where it begins, and how many bytes.
fn for_each(ranges: &Ranges, act: impl Fn(u64, u64) -> i32) -> Result<(), BlockError> {
    let mut some = ranges.as_slice().iter().filter(|range| range.count > 0);
    some.try_for_each(|range| {
        let at = range.sector.saturating_mul(SECTOR_BYTES);
        result_of(act(at, range.bytes()))
    })
}

fn result_of(status: i32) -> Result<(), BlockError> {
    match status.unsigned_abs() {
        0 => Ok(()),
        bindings::ENOSPC | bindings::EDQUOT | bindings::EFBIG => Err(BlockError::NoSpace),
        bindings::EOPNOTSUPP => Err(BlockError::Unsupported),
        bindings::ENOMEM => Err(BlockError::NoMemory),
        bindings::EPERM | bindings::EROFS => Err(BlockError::ReadOnly),
        bindings::ENODEV | bindings::ENXIO => Err(BlockError::Gone),
        _ => Err(BlockError::Io),
    }
}
