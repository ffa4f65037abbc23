// SPDX-License-Identifier: MIT OR Apache-2.0
//! With `conformance` on the command line: this host is held against the core's contract, line by line.

use super::host::Lwk;
use super::ram::Ram;
use crate::log;
use palacios_core::conformance::{self, Outcome};

const GUEST_BYTES: u64 = 16 << 20;

/// Runs all checks, up to the first that fails.
pub fn run() {
    let report = |name: &'static str, outcome: Outcome| match outcome {
        Ok(()) => log!("ok {name}"),
        Err(why) => log!("not ok {name}: {}", why.0),
    };
    if conformance::run(&Lwk, report).is_ok() {
        let ram = || Ram::new(GUEST_BYTES).ok();
        report("guest RAM", conformance::guest_ram(&Lwk, ram));
        // Halting is what comes closest to a guest that never exits.
        let guest_mode = |_: &Lwk, _| {
            x86_64::instructions::interrupts::enable_and_hlt();
            x86_64::instructions::interrupts::disable();
        };
        report("kicks", conformance::kicks(&Lwk, guest_mode));
    }
}
