// SPDX-License-Identifier: MIT OR Apache-2.0
//! What drivers do wrong.
#![forbid(unsafe_code)]

use crate::devices::links::DmaError;
use core::fmt;

/// What the driver has done to a queue that no driver may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// A ring, a descriptor table or a buffer is where the device cannot transfer.
    Memory(DmaError),
    /// The driver offers more chains than the queue has descriptors.
    Index,
    /// There is no such descriptor, or it is around the end of all addresses.
    Descriptor,
    /// A chain has more descriptors than the queue, or leads to itself.
    Loop,
    /// A chain has more bytes than 32 bits can tell.
    TooLong,
    /// An indirect table where none may be, or of no whole number of descriptors.
    Indirect,
    /// A buffer to be read behind one to be written.
    Order,
    /// A chain without what each request of this device has.
    Request,
    /// The driver set the queue up with a size or an address that it cannot have.
    SetUp,
}

impl From<DmaError> for QueueError {
    fn from(error: DmaError) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory(DmaError::Closed) => "the device may not master the bus",
            Self::Memory(_) => "a queue or a buffer is where no memory is",
            Self::Index => "more chains are offered than the queue has descriptors",
            Self::Descriptor => "there is no such descriptor",
            Self::Loop => "a chain is longer than the queue",
            Self::TooLong => "a chain has more than 4 GiB",
            Self::Indirect => "an indirect table is where it cannot be",
            Self::Order => "a buffer to be read comes behind one to be written",
            Self::Request => "a chain is no request",
            Self::SetUp => "a queue has a size or an address that it cannot have",
        })
    }
}
