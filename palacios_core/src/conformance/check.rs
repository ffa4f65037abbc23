// SPDX-License-Identifier: MIT OR Apache-2.0
//! A check, and what it finds.

use super::method::Method;
use crate::host::{Host, NoMemory};
use core::fmt;

/// How long a check waits for something that was promised.
pub const PATIENCE_NS: u64 = 20_000_000_000;

/// A promise that the host did not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The method at fault.
    pub method: Method,
    /// What it promises, in words.
    pub promise: &'static str,
    /// The check could not end its threads, and left them as they are. They may hold a CPU for ever, so nothing that needs
    /// threads should run any more.
    pub threads_left: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broke its promise: {}", self.method, self.promise)?;
        match self.threads_left {
            true => f.write_str("; the threads of this check do not end"),
            false => Ok(()),
        }
    }
}

impl From<NoMemory> for Failure {
    fn from(_: NoMemory) -> Self {
        broken(
            Method::GlobalAllocator,
            "a healthy host has the little memory that a check needs",
        )
    }
}

/// What a check found.
pub type Outcome = Result<(), Failure>;

/// A check of some promises of `S`, which is a host or something that a host provides.
pub struct Check<S> {
    /// What it checks, for reports.
    pub name: &'static str,
    /// The methods without which it would wait in vain: it is not to be run when one has failed the check that proves it.
    pub needs: &'static [Method],
    /// The method of which this check shows that others may rely on it.
    pub proves: Option<Method>,
    /// The check; it leaves the host as it was.
    pub run: fn(&S) -> Outcome,
}

impl<S> Check<S> {
    pub(super) const fn new(name: &'static str, run: fn(&S) -> Outcome) -> Self {
        Self {
            name,
            needs: &[],
            proves: None,
            run,
        }
    }
    pub(super) const fn needs(self, needs: &'static [Method]) -> Self {
        Self { needs, ..self }
    }
    pub(super) const fn proves(self, method: Method) -> Self {
        Self {
            proves: Some(method),
            ..self
        }
    }
}

/// The failure of a method to keep a promise.
pub(super) const fn broken(method: Method, promise: &'static str) -> Failure {
    Failure {
        method,
        promise,
        threads_left: false,
    }
}

/// Fails unless the promise was kept.
pub(super) fn ensure(kept: bool, method: Method, promise: &'static str) -> Outcome {
    match kept {
        true => Ok(()),
        false => Err(broken(method, promise)),
    }
}

/// What a method gave that may fail only for want of memory.
pub(super) fn healthy<T>(method: Method, given: Result<T, NoMemory>) -> Result<T, Failure> {
    given.map_err(|NoMemory| {
        broken(
            method,
            "a healthy host has the little memory that a check needs",
        )
    })
}

/// Waits until `done`, yielding the CPU; `false` if it is not by the time patience ends.
pub(super) fn eventually<H: Host>(host: &H, done: impl Fn() -> bool) -> bool {
    let end_ns = host.now_ns().saturating_add(PATIENCE_NS);
    while !done() {
        if host.now_ns() > end_ns {
            return done();
        }
        host.yield_now();
    }
    true
}
