// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a host brings to make a VM.
#![forbid(unsafe_code)]

use crate::devices::ByteStream;
use crate::host::{Host, NoMemory};
use alloc::boxed::Box;
use core::fmt;

/// A VM's name: 1 to 63 letters, digits, `-`, `_` or `.`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VmName {
    bytes: [u8; 63],
    len: u8,
}

impl VmName {
    /// Checks a name.
    pub fn new(name: &str) -> Option<Self> {
        let good = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        let mut bytes = [0; 63];
        bytes
            .get_mut(..name.len())?
            .copy_from_slice(name.as_bytes());
        (!name.is_empty() && name.bytes().all(good)).then_some(Self {
            bytes,
            len: name.len() as u8,
        })
    }
    /// The name.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Debug for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The bytes of an image, which the VM keeps: a reset starts it from them again.
pub type ImageBytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// Opens the byte stream of a name.
pub type OpenStream<'a> = dyn FnMut(&str) -> Result<Box<dyn ByteStream>, NoMemory> + 'a;

/// What the host adds to an image to make a VM.
pub struct Parts<H: Host> {
    /// Its name.
    pub name: VmName,
    /// guest.img.
    pub image: ImageBytes,
    /// Gives the frames behind its RAM.
    pub ram: H::Ram,
    /// Told when the VM's state has changed. Called on a vCPU's thread or the caller's own; must not call back.
    pub observer: Box<dyn Observer>,
}

/// Whoever waits for a VM.
pub trait Observer: Send + Sync {
    /// [`Vm::state`](super::Vm::state) answers something new, or [`Vm::is_dead`](super::Vm::is_dead) does. *Thread.*
    fn state_changed(&self);
}
