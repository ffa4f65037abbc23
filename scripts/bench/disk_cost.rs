// SPDX-License-Identifier: MIT OR Apache-2.0
//! What 4 KiB of a disk cost a guest: `disk_cost DEVICE [KIND]`, in the guest, overwrites a disk of at least 4 MiB.
//!
//! It prints a line each for reads and writes, with one request under way and with 32: `read-1: N`. KIND is how the lines begin that are
//! wanted. N is ticks of the time-stamp counter for a request, of the quickest batch. Where that counts instructions they are those of guest and
//! host together.

use std::arch::asm;
use std::arch::x86_64::_rdtsc;
use std::ffi::{c_int, c_long, c_ulong};
use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::ptr;

const BLOCK: usize = 4096;
/// How much of the disk is used.
const BLOCKS: u64 = 1024;
/// Requests of a batch, and how many batches. They are few: QEMU 11.1 now and then delivers an interrupt to a guest twice if its clock counts
/// instructions, and one that comes while the guest holds a lock has it spin for ever.
const REQUESTS: u64 = 8;
const BATCHES: u64 = 4;
/// How many requests are under way at once where they are several.
const DEPTH: usize = 32;
/// Requests of such a batch.
const MANY: u64 = 64;
const O_DIRECT: c_int = 0x4000;

extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

/// Just enough of `linux/aio_abi.h`.
mod aio {
    use std::ffi::c_long;

    pub const SETUP: c_long = 206;
    pub const GET_EVENTS: c_long = 208;
    pub const SUBMIT: c_long = 209;
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;

    /// `struct iocb`.
    #[repr(C)]
    #[derive(Clone, Default)]
    pub struct Request {
        pub data: u64,
        pub key_and_flags: u64,
        pub operation: u16,
        pub priority: i16,
        pub file: i32,
        pub buffer: u64,
        pub bytes: u64,
        pub offset: u64,
        pub unused: [u64; 2],
    }

    /// `struct io_event`.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub struct Event {
        pub data: u64,
        pub request: u64,
        pub result: i64,
        pub more: i64,
    }
}

fn called(result: c_long) -> Result<usize> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

#[repr(align(4096))]
#[derive(Clone)]
struct Buffer([u8; BLOCK]);

/// Keeps requests of a disk under way.
struct Load {
    context: c_ulong,
    buffers: Vec<Buffer>,
    requests: Vec<aio::Request>,
    events: Vec<aio::Event>,
}

impl Load {
    fn new(disk: &File, depth: usize, operation: u16) -> Result<Self> {
        let mut context: c_ulong = 0;
        // SAFETY: The kernel writes to `context`.
        called(unsafe { syscall(aio::SETUP, depth, &raw mut context) })?;
        let buffers = vec![Buffer([0x5a; BLOCK]); depth];
        let request = |(index, buffer): (usize, &Buffer)| aio::Request {
            data: index as u64,
            operation,
            file: disk.as_raw_fd(),
            buffer: buffer.0.as_ptr() as u64,
            bytes: BLOCK as u64,
            ..Default::default()
        };
        let requests = buffers.iter().enumerate().map(request).collect();
        Ok(Self {
            context,
            requests,
            events: vec![aio::Event::default(); depth],
            buffers,
        })
    }

    /// Makes the requests of a batch, as many at once as there are buffers; returns the ticks that it took.
    fn batch(&mut self, number: u64) -> Result<u64> {
        let (mut next, mut done) = (0, 0);
        let mut free: Vec<usize> = (0..self.buffers.len()).collect();
        let mut begun: Vec<*mut aio::Request> = Vec::with_capacity(free.len());
        // SAFETY: Every such processor has the counter.
        let begin = unsafe { _rdtsc() };
        while done < MANY {
            while let (true, Some(index)) = (next < MANY, free.last().copied()) {
                free.pop();
                self.requests[index].offset = place(number * MANY + next);
                begun.push(&mut self.requests[index]);
                next += 1;
            }
            self.submit(&mut begun)?;
            let events = self.events.as_mut_ptr();
            let most = self.events.len();
            // SAFETY: There is room for so many events.
            let count = called(unsafe {
                syscall(
                    aio::GET_EVENTS,
                    self.context,
                    1usize,
                    most,
                    events,
                    ptr::null::<u8>(),
                )
            })?;
            for event in &self.events[..count] {
                if event.result != BLOCK as i64 {
                    return Err(Error::other(format!(
                        "a request ended with {}",
                        event.result
                    )));
                }
                free.push(event.data as usize);
            }
            done += count as u64;
        }
        // SAFETY: As above.
        Ok(unsafe { _rdtsc() } - begin)
    }

    fn submit(&self, begun: &mut Vec<*mut aio::Request>) -> Result<()> {
        while !begun.is_empty() {
            // SAFETY: The requests and their buffers stay where they are until they are done.
            let taken =
                called(unsafe { syscall(aio::SUBMIT, self.context, begun.len(), begun.as_ptr()) })?;
            begun.drain(..taken);
        }
        Ok(())
    }
}

/// A batch begins, or the last of a kind has ended: NOPs that a tracer knows by their addresses (tracer.c).
macro_rules! mark {
    ($which:literal) => {
        // SAFETY: It does nothing.
        unsafe { asm!(concat!(".byte 0x0f, 0x1f, 0x80; .ascii \"", $which, "\""), options(nostack)) }
    };
}

/// A batch of one request after the other.
fn batch(disk: &File, operation: u16, buffer: &mut Buffer, number: u64) -> Result<u64> {
    // SAFETY: Every such processor has the counter.
    let begin = unsafe { _rdtsc() };
    for request in 0..REQUESTS {
        let at = place(number * REQUESTS + request);
        match operation {
            aio::READ => disk.read_exact_at(&mut buffer.0, at)?,
            _ => disk.write_all_at(&buffer.0, at)?,
        }
    }
    // SAFETY: As above.
    Ok(unsafe { _rdtsc() } - begin)
}

/// Where request `number` goes. No neighbours follow each other, which the guest's kernel would join.
fn place(number: u64) -> u64 {
    number * 509 % BLOCKS * BLOCK as u64
}

/// Ticks for a request, of the quickest batch.
fn quickest(requests: u64, mut batch: impl FnMut(u64) -> Result<u64>) -> Result<u64> {
    let mut quickest = u64::MAX;
    for number in 0..BATCHES {
        mark!("v3vr");
        quickest = quickest.min(batch(number)?);
    }
    mark!("v3ve");
    Ok(quickest / requests)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (Some(device), only) = (words.first(), words.get(1)) else {
        return Err(Error::other("usage: disk_cost DEVICE [KIND]"));
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(O_DIRECT);
    let disk = options.open(device)?;
    let mut buffer = Box::new(Buffer([0x5a; BLOCK]));
    let is_wanted = |name: &str| only.is_none_or(|only| name.starts_with(only.as_str()));
    for (name, operation) in [("write", aio::WRITE), ("read", aio::READ)] {
        let (one, many) = (format!("{name}-1"), format!("{name}-{DEPTH}"));
        if is_wanted(&one) {
            let ticks = quickest(REQUESTS, |number| {
                batch(&disk, operation, &mut buffer, number)
            })?;
            println!("{one}: {ticks}");
        }
        if is_wanted(&many) {
            let mut load = Load::new(&disk, DEPTH, operation)?;
            let ticks = quickest(MANY, |number| load.batch(number))?;
            println!("{many}: {ticks}");
        }
    }
    Ok(())
}
