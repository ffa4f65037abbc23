// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's clock and the guest's time stamp counter, on a host whose time a test moves.

use palacios_core::clock::VmClock;
use palacios_core::interfaces::Clock;
use palacios_testing::{Config, TestHost};

/// The test host's counter counts nanoseconds.
const SECOND: u64 = 1_000_000_000;

fn with_clock(test: impl Fn(&TestHost, &VmClock<TestHost>)) {
    let config = Config {
        virtual_time: true,
        ..Config::default()
    };
    TestHost::run(config, |host| test(host, &VmClock::new(host)));
}

#[test]
fn stands_still_while_paused_and_goes_on_from_there() {
    with_clock(|host, clock| {
        clock.resume(5_000);
        host.advance(SECOND);
        assert_eq!((clock.now_ns(), clock.tsc(6_000)), (SECOND, 1_000));
        clock.pause(7_000);
        host.advance(SECOND);
        clock.pause(8_000);
        assert_eq!((clock.now_ns(), clock.tsc(9_000)), (SECOND, 2_000));
        clock.resume(100_000);
        assert_eq!((clock.now_ns(), clock.tsc(100_000)), (SECOND, 2_000));
        clock.resume(110_000);
        host.advance(SECOND);
        assert_eq!((clock.now_ns(), clock.tsc(100_005)), (2 * SECOND, 2_005));
        assert!(clock.tsc_stable(100_005));
    });
}

/// A host that slept may come back with a counter that began again.
#[test]
fn a_counter_that_began_again_is_taken_up() {
    with_clock(|_, clock| {
        clock.resume(5_000_000);
        clock.pause(5_000_100);
        clock.resume(3);
        assert_eq!(clock.tsc(10), 107);
    });
}

#[test]
fn a_counter_that_ceases_to_be_stable_goes_on_by_the_clock() {
    with_clock(|host, clock| {
        clock.resume(0);
        host.advance(SECOND);
        // The counter is steered against the clock, by a part in a thousand.
        let tsc = SECOND + SECOND / 1000;
        assert_eq!(clock.tsc(tsc), tsc);
        host.tsc_becomes_unstable();
        assert!(!clock.tsc_stable(tsc));
        assert!(!clock.tsc_stable(77), "and whoever looks next is too late");
        assert_eq!(clock.tsc(123_456_789), tsc, "whatever CPU this is");
        host.advance(SECOND);
        assert_eq!(clock.tsc(0), tsc + SECOND);
        clock.pause(0);
        host.advance(SECOND);
        assert_eq!(clock.tsc(0), tsc + SECOND);
        clock.resume(0);
        host.advance(5);
        assert_eq!(clock.tsc(0), tsc + SECOND + 5);
    });
}

#[test]
fn a_host_without_a_stable_counter_is_followed_from_the_start() {
    with_clock(|host, _| {
        host.tsc_becomes_unstable();
        let clock = VmClock::new(host);
        clock.resume(99);
        host.advance(SECOND);
        assert!(clock.follows_clock() && !clock.tsc_stable(99));
        assert_eq!(clock.tsc(0), SECOND);
        assert_eq!(clock.ns_of_tsc(clock.tsc(1)), SECOND);
    });
}
