// SPDX-License-Identifier: MIT OR Apache-2.0
//! The minimal host keeps the contract, though it leaves out all that may be left for later.

use minimal_host::{MinimalHost, MinimalRam};
use palacios_core::conformance::Suite;

fn conforms(cpus: u32) {
    // ANCHOR: suite
    let host = MinimalHost::new(cpus, 4096);
    let mut suite = Suite::new(&host, |report| println!("{report}"));
    suite.contract();
    suite.guest_ram(|| Some(MinimalRam::new(&host)));
    suite.kicks(|host, _cpu| {
        while !host.interrupted() {
            std::thread::yield_now();
        }
    });
    println!("{}", suite.summary());
    assert!(suite.summary().is_good());
    // ANCHOR_END: suite
}

#[test]
fn with_one_cpu() {
    conforms(1);
}

#[test]
fn with_several_cpus() {
    conforms(3);
}

/// A host that is half made runs the checks that it is ready for.
#[test]
fn by_name() {
    // ANCHOR: by_name
    let host = MinimalHost::new(2, 4096);
    for check in palacios_core::conformance::checks() {
        if check.name.starts_with("pages:") {
            assert_eq!((check.run)(&host), Ok(()), "{}", check.name);
        }
    }
    // ANCHOR_END: by_name
}
