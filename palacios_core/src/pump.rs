// SPDX-License-Identifier: MIT OR Apache-2.0
//! A stream whose far end is a descriptor of the host's: a file, a pipe, a socket or a terminal.
//!
//! ```text
//!   device ──▶ ring ──▶ worker ──▶ output        the device never waits: its new bytes push out the oldest
//!          ◀── ring ◀──        ◀── input
//! ```
//!
//! The worker is that of the device's slot. It is woken by the device, by the descriptors, and when the machine goes on.
#![forbid(unsafe_code)]

use crate::alloc_ext::{try_box, try_vec, NoMemory};
use crate::devices::ByteStream;
use crate::host::{Descriptor, DescriptorError, Host, Lock, LockClass, Wake};
use crate::ring::Ring;
use crate::worker::Worker;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// How much of a device's output is kept until the descriptor takes it.
const OUTPUT_BYTES: usize = 64 << 10;
/// How much input waits for the device.
const INPUT_BYTES: usize = 4 << 10;
/// What a step carries.
const STEP_BYTES: usize = 512;

/// The far ends of a stream.
#[derive(Default)]
pub struct FarEnds {
    /// Where the device's output goes. `None`: nowhere.
    pub output: Option<Box<dyn Descriptor>>,
    /// Where its input comes from. `None`: there is none.
    pub input: Option<Box<dyn Descriptor>>,
}

/// What the device's end and the pump share.
struct Middle<H: Host> {
    output: H::SpinLock<Ring<Vec<u8>>>,
    input: H::SpinLock<Ring<Vec<u8>>>,
    worker: H::SpinLock<Option<Worker<H>>>,
}

impl<H: Host> Middle<H> {
    fn wake(&self) {
        if let Some(worker) = &*self.worker.lock() {
            worker.wake();
        }
    }
}

/// The device's end of a stream.
struct DeviceEnd<H: Host>(H::Shared<Middle<H>>);

impl<H: Host> ByteStream for DeviceEnd<H> {
    fn write(&mut self, data: &[u8]) {
        self.0.output.lock().push(data);
        self.0.wake();
    }
    fn read(&mut self, buf: &mut [u8]) -> usize {
        let len = self.0.input.lock().read(buf);
        if len > 0 {
            // There is room now.
            self.0.wake();
        }
        len
    }
}

/// What a descriptor calls when it may have become ready.
struct Waker<H: Host>(H::Shared<Middle<H>>);

impl<H: Host> Wake for Waker<H> {
    fn wake(&self) {
        self.0.wake();
    }
}

/// Carries a stream's bytes between its rings and its descriptors.
pub(crate) struct Pump<H: Host> {
    middle: H::Shared<Middle<H>>,
    ends: FarEnds,
    /// The output took nothing when it was last asked.
    is_blocked: bool,
}

/// What a step did.
pub(crate) struct Pumped {
    /// It may go on at once.
    pub(crate) again: bool,
    /// There is new input for the device.
    pub(crate) input: bool,
}

impl<H: Host> Pump<H> {
    /// A stream to `ends`: the device's end, and what carries its bytes.
    pub(crate) fn new(host: &H, ends: FarEnds) -> Result<(Box<dyn ByteStream>, Self), NoMemory> {
        let ring = |bytes| Ok(Ring::new(try_vec(0, bytes)?));
        let middle = host.share(Middle {
            output: host.spin_lock(LockClass::Stream, ring(OUTPUT_BYTES)?)?,
            input: host.spin_lock(LockClass::Stream, ring(INPUT_BYTES)?)?,
            worker: host.spin_lock(LockClass::StreamWorker, None)?,
        })?;
        let device_end = try_box(DeviceEnd::<H>(middle.clone()))?;
        let pump = Self {
            middle,
            ends,
            is_blocked: false,
        };
        Ok((device_end, pump))
    }

    /// `worker` makes its steps from now on.
    pub(crate) fn begin(&mut self, worker: Worker<H>) -> Result<(), NoMemory> {
        *self.middle.worker.lock() = Some(worker);
        let FarEnds { output, input } = &mut self.ends;
        for descriptor in [output, input].into_iter().flatten() {
            let waker = try_box(Waker::<H>(self.middle.clone()))?;
            descriptor.watch(waker)?;
        }
        Ok(())
    }

    /// Carries some bytes each way, and never waits. *Thread.*
    pub(crate) fn step(&mut self) -> Pumped {
        let wrote = self.write_some();
        let input = self.read_some();
        Pumped {
            again: wrote || input,
            input,
        }
    }

    /// All output is where it goes, as far as that takes it.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.is_blocked || self.ends.output.is_none() || self.middle.output.lock().waiting() == 0
    }

    fn write_some(&mut self) -> bool {
        let Some(output) = &mut self.ends.output else {
            return false;
        };
        let mut bytes = [0; STEP_BYTES];
        let (from, len) = self.middle.output.lock().peek(&mut bytes);
        let bytes = bytes.get(..len).unwrap_or_default();
        let taken = match bytes {
            [] => Ok(0),
            bytes => output.write(bytes),
        };
        self.is_blocked = !bytes.is_empty() && !matches!(taken, Ok(1..));
        match taken {
            Ok(taken) => {
                let taken = taken.min(len);
                self.middle.output.lock().take(from, taken);
                taken > 0
            }
            // Until it is ready, or until somebody reads again.
            Err(DescriptorError::WouldBlock | DescriptorError::Closed) => false,
        }
    }

    fn read_some(&mut self) -> bool {
        let Some(input) = &mut self.ends.input else {
            return false;
        };
        let mut bytes = [0; STEP_BYTES];
        // Only this makes the ring fuller.
        let room = self.middle.input.lock().room().min(STEP_BYTES);
        if room == 0 {
            return false;
        }
        let len = input.read(bytes.get_mut(..room).unwrap_or_default());
        let len = len.unwrap_or(0).min(room);
        let bytes = bytes.get(..len).unwrap_or_default();
        self.middle.input.lock().push(bytes);
        len > 0
    }
}

impl<H: Host> Drop for Pump<H> {
    fn drop(&mut self) {
        let worker = self.middle.worker.lock().take();
        drop(worker);
    }
}
