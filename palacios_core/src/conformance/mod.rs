// SPDX-License-Identifier: MIT OR Apache-2.0
//! The promises of the host contract, as checks that any host runs on itself.
//!
//! [`run`] takes a host and nothing else. A [`Suite`] also takes what some checks need besides: a provider of guest RAM, and
//! something that stands for guest mode. A check that fails does not stop the suite: it goes on with those that can still
//! come to their end, and names the others as not run. Each failure names the [`Method`] at fault.
//!
//! Checks wait for events, not for times. Where a broken promise would make a check wait for ever, it gives up after
//! [`PATIENCE_NS`]; so time must pass by itself ([`Host::now_ns`]), which is checked first. Call it all in an ordinary
//! thread. A method that does not return when the checks call it directly (`window`, `on_each_cpu`, `alloc_pages`, a lock
//! that is free) hangs the suite; it is in the check that follows the last one reported.

mod check;
mod contract;
mod cpus;
mod crew;
pub mod kicks;
mod locks;
mod memory;
mod method;
pub mod ram;
mod suite;
mod threads;
mod time;
mod timers;

pub use check::{Check, Failure, Outcome, PATIENCE_NS};
pub use contract::checks;
pub use method::Method;
pub use suite::{Report, Suite, Summary, Verdict};

use crate::host::Host;

/// Runs [`checks`], and tells `report` of each.
pub fn run<H: Host>(host: &H, report: impl FnMut(Report)) -> Summary {
    let mut suite = Suite::new(host, report);
    suite.contract();
    suite.summary()
}
