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

type Ring = palacios_core::ring::Ring<Vec<u8>>;

fn ring() -> Result<SpinLock<Ring>, NoMemory> {
    Ok(SpinLock::new(Ring::new(try_vec(0, BYTES)?)))
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
            output: ring()?,
            input: ring()?,
            server,
        })
    }
    /// Moves output of the guest to `buf`; returns how many bytes that is.
    pub fn take(&self, buf: &mut [u8]) -> usize {
        self.output.lock().read(buf)
    }
    /// Gives the guest input.
    pub fn give(&self, byte: u8) {
        self.input.lock().push(&[byte]);
    }
}

/// What the core reads and writes for a serial port. A port that is no console has nothing behind it.
pub struct ConsoleStream(pub Option<Shared<Console>>);

impl ByteStream for ConsoleStream {
    fn write(&mut self, data: &[u8]) {
        let Some(console) = &self.0 else { return };
        console.output.lock().push(data);
        console.server.unpark();
    }

    fn read(&mut self, buf: &mut [u8]) -> usize {
        let console = self.0.as_ref();
        console.map_or(0, |console| console.input.lock().read(buf))
    }
}
