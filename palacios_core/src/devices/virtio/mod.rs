// SPDX-License-Identifier: MIT OR Apache-2.0
//! Virtio: devices made for guests, which share rings of requests with their driver (Virtual I/O Device, version 1.2).
//!
//! `queue.rs` and `chain.rs` are the rings, `transport.rs` what all devices have in common, `modern.rs` and `legacy.rs` the two sets of
//! registers in which drivers see that on PCI. A device is a file more, such as `rng.rs`, and implements the trait in `contract.rs`.
#![forbid(unsafe_code)]

pub mod blk;
pub mod chain;
mod contract;
#[cfg(any(test, feature = "test-support"))]
pub mod driver;
mod error;
pub mod legacy;
pub mod modern;
pub mod pci;
pub mod queue;
pub mod rng;
mod transport;

pub use contract::{DeviceType, InterruptSink, Rings, VirtioDevice};
pub use error::QueueError;
pub use pci::VirtioPci;
pub use transport::{feature, status, Virtio};
