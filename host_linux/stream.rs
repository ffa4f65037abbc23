// SPDX-License-Identifier: GPL-2.0
//! Byte streams: what a guest's serial port sends and receives, and a file that reads and writes it.
//!
//! The guest never waits: when the ring buffer is full, its new bytes push out the oldest. A writer does wait.

use crate::queue::Queue;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kernel::{
    iov::{IovIterDest, IovIterSource},
    new_mutex, new_spinlock,
    prelude::*,
    static_lock_class,
    str::CString,
    sync::{Arc, Mutex, SpinLock},
};
use palacios_core::devices::ByteStream;

/// How much of a guest's output is kept.
const OUTPUT_BYTES: usize = 64 << 10;
/// How much input waits for the guest.
const INPUT_BYTES: usize = 4 << 10;
/// How much is copied between ring and user at a time.
const CHUNK_BYTES: usize = 256;

/// A ring buffer in memory of the host.
type Ring = palacios_core::ring::Ring<KVVec<u8>>;

fn ring(len: usize) -> Result<Ring> {
    let mut bytes = KVVec::with_capacity(len, GFP_KERNEL_ACCOUNT)?;
    bytes.resize(len, 0, GFP_KERNEL_ACCOUNT)?;
    Ok(Ring::new(bytes))
}

/// One stream of one VM.
#[pin_data]
pub(crate) struct Stream {
    name: CString,
    /// Output came, room for input was made, or the VM's state changed.
    #[pin]
    pub(crate) queue: Queue,
    /// A file is attached.
    attached: AtomicBool,
    lost: AtomicU64,
    #[pin]
    output: SpinLock<Ring>,
    #[pin]
    input: SpinLock<Ring>,
    /// Held while a reader copies to its memory, which may sleep.
    #[pin]
    reader: Mutex<()>,
    /// Held while a writer copies from its memory.
    #[pin]
    writer: Mutex<()>,
}

impl Stream {
    /// A stream of a name.
    pub(crate) fn new(name: &str) -> Result<Arc<Self>> {
        let name = CString::try_from_fmt(fmt!("{name}"))?;
        let output = ring(OUTPUT_BYTES)?;
        let input = ring(INPUT_BYTES)?;
        Arc::pin_init(
            pin_init!(Self {
                name,
                queue <- Queue::new(c"v3vee_stream", static_lock_class!()),
                attached: AtomicBool::new(false),
                lost: AtomicU64::new(0),
                output <- new_spinlock!(output, "v3vee_stream_output"),
                input <- new_spinlock!(input, "v3vee_stream_input"),
                reader <- new_mutex!((), "v3vee_stream_reader"),
                writer <- new_mutex!((), "v3vee_stream_writer"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.name.to_str().unwrap_or("?")
    }
    /// Bytes of output that nobody read in time.
    pub(crate) fn lost_bytes(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
    /// Output waits to be read.
    pub(crate) fn readable(&self) -> bool {
        self.output.lock().waiting() > 0
    }
    /// Input finds room.
    pub(crate) fn writable(&self) -> bool {
        self.input.lock().room() > 0
    }

    /// Moves output to a reader, as much as there is; does not wait for more.
    pub(crate) fn read(&self, to: &mut IovIterDest<'_>) -> Result<usize> {
        let _one = self.reader.lock();
        let mut done = 0;
        while !to.is_empty() {
            let mut chunk = [0; CHUNK_BYTES];
            let want = to.len().min(CHUNK_BYTES);
            let (from, len) = self
                .output
                .lock()
                .peek(chunk.get_mut(..want).unwrap_or_default());
            let copied = to.copy_to_iter(chunk.get(..len).unwrap_or_default());
            self.output.lock().take(from, copied);
            done = copied.saturating_add(done);
            if copied < len {
                return if done > 0 { Ok(done) } else { Err(EFAULT) };
            }
            if len < want {
                break;
            }
        }
        Ok(done)
    }

    /// Takes input from a writer, as much as finds room; does not wait for more.
    pub(crate) fn write(&self, from: &mut IovIterSource<'_>) -> Result<usize> {
        let _one = self.writer.lock();
        let mut done = 0;
        while !from.is_empty() {
            let mut chunk = [0; CHUNK_BYTES];
            // Only writers take room, and this is the only one.
            let want = self.input.lock().room().min(from.len()).min(CHUNK_BYTES);
            let copied = from.copy_from_iter(chunk.get_mut(..want).unwrap_or_default());
            let input = chunk.get(..copied).unwrap_or_default();
            self.input.lock().push(input);
            done = copied.saturating_add(done);
            if copied < want {
                return if done > 0 { Ok(done) } else { Err(EFAULT) };
            }
            if want == 0 {
                break;
            }
        }
        Ok(done)
    }
}

/// A file's hold on a stream: one at a time.
pub(crate) struct Attachment(Arc<Stream>);

impl Attachment {
    /// Attaches; `None` if another file is attached.
    pub(crate) fn new(stream: Arc<Stream>) -> Option<Self> {
        let free = !stream.attached.swap(true, Ordering::Acquire);
        // Lazily: one that is dropped detaches.
        free.then(|| Self(stream))
    }
}

impl core::ops::Deref for Attachment {
    type Target = Stream;
    fn deref(&self) -> &Stream {
        &self.0
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.0.attached.store(false, Ordering::Release);
    }
}

/// The device's end.
pub(crate) struct DeviceEnd(pub(crate) Arc<Stream>);

impl ByteStream for DeviceEnd {
    fn write(&mut self, data: &[u8]) {
        let lost = self.0.output.lock().push(data);
        if lost > 0 {
            self.0.lost.fetch_add(lost, Ordering::Relaxed);
        }
        self.0.queue.wake();
    }

    fn read(&mut self, buf: &mut [u8]) -> usize {
        let len = self.0.input.lock().read(buf);
        if len > 0 {
            self.0.queue.wake();
        }
        len
    }
}
