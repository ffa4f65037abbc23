// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a host brings to make a VM.
#![forbid(unsafe_code)]

use crate::devices::ByteStream;
use crate::host::{Host, NoMemory};
use crate::names::VmName;
use alloc::boxed::Box;

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
