// SPDX-License-Identifier: MIT OR Apache-2.0
//! The core's conformance suite, which runs on this host if `conformance` is on the command line.

use super::host::Lwk;
use super::ram::Ram;
use crate::log;
use palacios_core::conformance::Suite;

const GUEST_BYTES: u64 = 16 << 20;

/// Runs all checks.
pub fn run() {
    let mut suite = Suite::new(&Lwk, |report| log!("{report}"));
    suite.contract();
    suite.guest_ram(|| Ram::new(GUEST_BYTES).ok());
    // Halting is what comes closest to a guest that never exits.
    suite.kicks(|_: &Lwk, _| {
        x86_64::instructions::interrupts::enable_and_hlt();
        x86_64::instructions::interrupts::disable();
    });
    log!("{}", suite.summary());
}
