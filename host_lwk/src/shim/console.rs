// SPDX-License-Identifier: MIT OR Apache-2.0
//! Consoles: a ring buffer each way between a guest's serial port and the control thread, which serves the real ports.

use crate::kernel::shared::Shared;
use crate::kernel::sync::SpinLock;
use crate::kernel::thread::Thread;
use alloc::vec::Vec;
use palacios_core::alloc_ext::try_vec;
use palacios_core::devices::ByteStream;
use palacios_core::host::NoMemory;

/// The size of a ring buffer. When it is full, a new byte takes the place of the oldest.
const BYTES: usize = 16 << 10;

struct Ring {
    bytes: Vec<u8>,
    /// Where the oldest is, and how many there are.
    first: usize,
    len: usize,
}

impl Ring {
    fn new() -> Result<Self, NoMemory> {
        Ok(Self {
            bytes: try_vec(0, BYTES)?,
            first: 0,
            len: 0,
        })
    }

    fn push(&mut self, byte: u8) {
        if self.len == BYTES {
            self.pop();
        }
        let place = (self.first + self.len) % BYTES;
        if let Some(slot) = self.bytes.get_mut(place) {
            *slot = byte;
            self.len += 1;
        }
    }

    fn pop(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.first)?;
        self.len = self.len.checked_sub(1)?;
        self.first = (self.first + 1) % BYTES;
        Some(byte)
    }

    fn fill(&mut self, buf: &mut [u8]) -> usize {
        let slots = buf.iter_mut();
        slots
            .map_while(|slot| self.pop().map(|byte| *slot = byte))
            .count()
    }
}

/// One guest's console.
pub struct Console {
    output: SpinLock<Ring>,
    input: SpinLock<Ring>,
    /// Who serves it.
    server: &'static Thread,
}

impl Console {
    /// With nothing in it; `server` is woken when there is output.
    pub fn new(server: &'static Thread) -> Result<Self, NoMemory> {
        Ok(Self {
            output: SpinLock::new(Ring::new()?),
            input: SpinLock::new(Ring::new()?),
            server,
        })
    }
    /// Moves output of the guest to `buf`; returns how many bytes that is.
    pub fn take(&self, buf: &mut [u8]) -> usize {
        self.output.lock().fill(buf)
    }
    /// Gives the guest input.
    pub fn give(&self, byte: u8) {
        self.input.lock().push(byte);
    }
}

/// What the core reads and writes for a serial port. A port that is no console has nothing behind it.
pub struct ConsoleStream(pub Option<Shared<Console>>);

impl ByteStream for ConsoleStream {
    fn write(&mut self, data: &[u8]) {
        let Some(console) = &self.0 else { return };
        {
            let mut output = console.output.lock();
            data.iter().for_each(|byte| output.push(*byte));
        }
        console.server.unpark();
    }

    fn read(&mut self, buf: &mut [u8]) -> usize {
        let console = self.0.as_ref();
        console.map_or(0, |console| console.input.lock().fill(buf))
    }
}
