// SPDX-License-Identifier: MIT OR Apache-2.0
//! Work that all CPUs do together, and a watch on their clocks while they do it.
//!
//! Each CPU has a worker. The workers form a ring: in each round a worker maps a new page where its last one was, tells the
//! next worker, which must find the new page's contents there, and has a child of its own run on the next CPU. So a round
//! takes wake-ups, forks, exits and shoot-downs of translations across CPUs, and none may get lost.

use crate::Answer;
use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::ffi::c_void;
use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything here takes on the slowest machine: what takes longer is lost.
const LOST: Duration = Duration::from_secs(240);
const PAGE_BYTES: usize = 4096;
/// How often a worker looks at the clocks between two other things. A look at CLOCK_MONOTONIC may be a trip out of the guest.
const TSC_LOOKS: u32 = 1_000;
const CLOCK_LOOKS: u32 = 10;

// What the C library has and Rust's own does not show.
extern "C" {
    fn fork() -> i32;
    fn waitpid(child: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(status: i32) -> !;
    fn pipe(ends: *mut i32) -> i32;
    fn write(file: i32, data: *const u8, len: usize) -> isize;
    fn sched_setaffinity(thread: i32, bytes: usize, mask: *const u64) -> i32;
    fn sched_getcpu() -> i32;
    fn mmap(
        at: *mut c_void,
        len: usize,
        prot: i32,
        flags: i32,
        file: i32,
        from: i64,
    ) -> *mut c_void;
}

/// `rounds` rounds on every CPU.
pub fn load(rounds: u64) -> Answer {
    run(|_, done| done < rounds)
}

/// Rounds until somebody sends a line.
pub fn load_until_input() -> Answer {
    static TOLD: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        TOLD.store(true, SeqCst);
    });
    run(|_, _| !TOLD.load(SeqCst))
}

/// Rounds for so long.
pub fn clocks(seconds: u64) -> Answer {
    run(|start, _| start.elapsed() < Duration::from_secs(seconds))
}

/// Runs all workers for as long as the first one is told to go on.
fn run(go_on: impl Fn(Instant, u64) -> bool + Sync) -> Answer {
    let cpus = thread::available_parallelism().map_err(|e| e.to_string())?;
    let cpus = cpus.get() as u32;
    let (start, over, clocks) = (Instant::now(), AtomicBool::new(false), Clocks::new());
    let worked = AtomicU64::new(0);
    let (over, worked, clocks, go_on) = (&over, &worked, &clocks, &go_on);
    // However short the time, every CPU does a round.
    let go_on = |done| go_on(start, done) || worked.load(SeqCst) < u64::from(cpus);
    let go_on = &go_on;
    let ends: Vec<_> = thread::scope(|scope| {
        let workers = ring(cpus).into_iter().map(|mut worker| {
            scope.spawn(move || {
                let done = worker.work(over, worked, clocks, go_on);
                over.store(true, SeqCst);
                done
            })
        });
        let workers: Vec<_> = workers.collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .map(|end| end.unwrap_or_else(|_| Err("a worker panicked".into())))
            .collect()
    });
    let rounds: Vec<u64> = ends.into_iter().collect::<Result<_, _>>()?;
    let least = rounds.iter().min().copied().unwrap_or(0);
    if least == 0 {
        return Err(format!("some CPU did nothing: {rounds:?}"));
    }
    Ok(format!(
        "{cpus} CPUs, {least} rounds each, {} looks at the clocks, {} ms",
        clocks.looks.load(SeqCst),
        start.elapsed().as_millis()
    ))
}

/// A page that its owner has newly mapped.
struct Mapped {
    at: usize,
    value: u64,
}

/// One CPU's worker, and its place in the ring.
struct Worker {
    cpu: u32,
    cpus: u32,
    to_next: Sender<Mapped>,
    from_previous: Receiver<Mapped>,
    seen_by_next: Receiver<()>,
    to_previous: Sender<()>,
}

/// The workers, each linked with its two neighbours.
fn ring(cpus: u32) -> Vec<Worker> {
    let (mut to, mut from): (Vec<_>, Vec<_>) = (0..cpus).map(|_| channel()).unzip();
    let (mut seen_to, mut seen_from): (Vec<_>, Vec<_>) = (0..cpus).map(|_| channel()).unzip();
    // What a worker sends, the next one receives; what it has seen, it tells the one before.
    from.rotate_right(1);
    seen_to.rotate_right(1);
    (0..cpus)
        .rev()
        .filter_map(|cpu| {
            Some(Worker {
                cpu,
                cpus,
                to_next: to.pop()?,
                from_previous: from.pop()?,
                seen_by_next: seen_from.pop()?,
                to_previous: seen_to.pop()?,
            })
        })
        .collect()
}

impl Worker {
    /// Works until `over`, or, the first worker, until `go_on` says no. Returns how many rounds it did.
    fn work(
        &mut self,
        over: &AtomicBool,
        worked: &AtomicU64,
        clocks: &Clocks,
        go_on: impl Fn(u64) -> bool,
    ) -> Result<u64, String> {
        pin(self.cpu)?;
        let page = map(0, 0)?;
        let (mut end, pipe) = new_pipe()?;
        let mut done = 0;
        while !over.load(SeqCst) && (self.cpu != 0 || go_on(done)) {
            clocks.look(self.cpu)?;
            if !self.show_page(page, done, over)? {
                break;
            }
            clocks.look(self.cpu)?;
            self.have_child(&mut end, pipe, done)?;
            worked.fetch_add(u64::from(done == 0), SeqCst);
            done += 1;
        }
        Ok(done)
    }

    /// Maps a new page over the last one, and looks at the previous worker's. `false`: a neighbour has ended.
    fn show_page(&self, page: usize, round: u64, over: &AtomicBool) -> Result<bool, String> {
        let value = u64::from(self.cpu) << 32 | round + 1;
        map(page, value)?;
        let _ = self.to_next.send(Mapped { at: page, value });
        let Some(theirs) = receive(&self.from_previous, "wake-up", over)? else {
            return Ok(false);
        };
        // SAFETY: The previous worker keeps the page mapped until it is told that this has seen it.
        let found = unsafe { (theirs.at as *const u64).read_volatile() };
        if found != theirs.value {
            let expected = theirs.value;
            return Err(format!(
                "CPU {} found {found:#x} for {expected:#x}: a stale translation",
                self.cpu
            ));
        }
        let _ = self.to_previous.send(());
        Ok(receive(&self.seen_by_next, "answer", over)?.is_some())
    }

    /// A child on the next CPU sends a byte and ends with it as its status.
    fn have_child(&self, end: &mut File, pipe: i32, round: u64) -> Result<(), String> {
        let byte = round as u8 & 0x7f;
        // SAFETY: The child makes system calls only.
        let child = unsafe { fork() };
        if child == 0 {
            let moved = pin((self.cpu + 1) % self.cpus).is_ok();
            // SAFETY: Writes one byte of a local; ends the child.
            unsafe {
                write(pipe, &byte, 1);
                _exit(if moved { byte.into() } else { 0xff })
            }
        }
        let (mut got, mut status) = ([0xff], 0);
        end.read_exact(&mut got).map_err(|e| format!("pipe: {e}"))?;
        // SAFETY: `status` outlives the call.
        let waited = unsafe { waitpid(child, &mut status, 0) };
        if (child, got[0], status) != (waited, byte, i32::from(byte) << 8) {
            return Err(format!(
                "child {child} of CPU {}: {waited}, {got:?}, status {status:#x}, not {byte:#x}",
                self.cpu
            ));
        }
        Ok(())
    }
}

/// What a neighbour sends; `None` if it has ended because the work is over.
fn receive<T>(from: &Receiver<T>, what: &str, over: &AtomicBool) -> Result<Option<T>, String> {
    match from.recv_timeout(LOST) {
        Ok(sent) => Ok(Some(sent)),
        Err(RecvTimeoutError::Disconnected) if over.load(SeqCst) => Ok(None),
        Err(error) => Err(format!("lost a {what}: {error}")),
    }
}

/// The latest time that any CPU has seen.
struct Clocks {
    start: Instant,
    tsc: AtomicU64,
    ns: AtomicU64,
    looks: AtomicU64,
}

impl Clocks {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            tsc: AtomicU64::new(tsc()),
            ns: AtomicU64::new(0),
            looks: AtomicU64::new(0),
        }
    }

    /// What another CPU saw before, this one has passed: on the time stamp counter and on CLOCK_MONOTONIC.
    fn look(&self, cpu: u32) -> Result<(), String> {
        for _ in 0..TSC_LOOKS {
            not_back("time stamp counter", cpu, &self.tsc, tsc)?;
        }
        let ns = || self.start.elapsed().as_nanos() as u64;
        for _ in 0..CLOCK_LOOKS {
            not_back("CLOCK_MONOTONIC", cpu, &self.ns, ns)?;
        }
        self.looks
            .fetch_add((TSC_LOOKS + CLOCK_LOOKS).into(), SeqCst);
        Ok(())
    }
}

fn not_back(
    what: &str,
    cpu: u32,
    latest: &AtomicU64,
    read: impl Fn() -> u64,
) -> Result<(), String> {
    let seen = latest.load(SeqCst);
    let now = read();
    if now < seen {
        return Err(format!(
            "{what} of CPU {cpu} is {} behind what another saw",
            seen - now
        ));
    }
    latest.fetch_max(now, SeqCst);
    Ok(())
}

/// The counter, read after all that comes before and before all that comes after.
fn tsc() -> u64 {
    // SAFETY: Every processor with 64-bit mode has them.
    unsafe {
        _mm_lfence();
        let now = _rdtsc();
        _mm_lfence();
        now
    }
}

/// Has the calling thread run on one CPU alone.
fn pin(cpu: u32) -> Result<(), String> {
    let mut mask = [0u64; 16];
    mask[cpu as usize / 64] = 1 << (cpu % 64);
    // SAFETY: The mask is as long as said.
    let (failed, at) = unsafe {
        let failed = sched_setaffinity(0, size_of_val(&mask), mask.as_ptr());
        (failed, sched_getcpu())
    };
    if failed != 0 || at != cpu as i32 {
        return Err(format!("pinned to CPU {cpu}, runs on {at}"));
    }
    Ok(())
}

/// Maps a new page that holds `value`, at an address or, with 0, anywhere; returns where.
fn map(at: usize, value: u64) -> Result<usize, String> {
    const READ_WRITE: i32 = 1 | 2;
    const PRIVATE: i32 = 0x02;
    const FIXED: i32 = 0x10;
    const ANONYMOUS: i32 = 0x20;
    let fixed = if at == 0 { 0 } else { FIXED };
    let flags = PRIVATE | ANONYMOUS | fixed;
    // SAFETY: A new mapping, or one in place of a page that only this module maps and reads.
    let page = unsafe { mmap(at as *mut c_void, PAGE_BYTES, READ_WRITE, flags, -1, 0) };
    if page as isize == -1 {
        return Err("mmap failed".into());
    }
    // SAFETY: Mapped just now.
    unsafe { page.cast::<u64>().write_volatile(value) };
    Ok(page as usize)
}

/// A pipe: the end to read, and the one to write, which stays open.
fn new_pipe() -> Result<(File, i32), String> {
    let mut ends = [0; 2];
    // SAFETY: There is room for two.
    if unsafe { pipe(ends.as_mut_ptr()) } != 0 {
        return Err("no pipe".into());
    }
    // SAFETY: The descriptor is new, and nobody else has it.
    Ok((unsafe { File::from_raw_fd(ends[0]) }, ends[1]))
}
