// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host in memory, on which the core is tested under plain cargo.
//!
//! [`TestHost`] keeps the host contract to the letter and no further: it counts everything, gives as little as the contract
//! allows, and panics where the core breaks its side. [`heap`] counts and fails allocations.

pub mod formats;
pub mod heap;
pub mod host;

pub use host::{Config, TestHost};
