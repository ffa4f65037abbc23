// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host in memory, on which the core is tested under plain cargo.
//!
//! [`TestHost`] keeps the host contract to the letter and no further: it counts everything, gives as little as the contract
//! allows, and panics where the core breaks its side. [`heap`] counts and fails allocations.
//! [`AdversarialBackend`] runs small guests on its processors, which keep what processors may keep, and note what none allows.

pub mod backend;
pub mod formats;
pub mod guests;
pub mod heap;
pub mod host;
pub mod processor;
pub mod vm;

pub use backend::AdversarialBackend;
pub use host::{Config, TestHost};
