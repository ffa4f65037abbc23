// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs checks one after the other, past those that fail.

use super::check::{Check, Failure};
use super::contract::checks;
use super::method::Method;
use super::method::Methods;
use super::{kicks, ram};
use crate::host::{CpuId, Host};
use core::fmt;

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All its promises were kept.
    Kept,
    /// One was broken.
    Broken(Failure),
    /// It was not run: it would have waited in vain for this method, which failed an earlier check.
    NotRun(Method),
}

/// A check and what became of it. As text it is the line of a report: `ok NAME`, or `not ok NAME: WHY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What was checked: [`Check::name`].
    pub name: &'static str,
    /// What became of it.
    pub verdict: Verdict,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match self.verdict {
            Verdict::Kept => write!(f, "ok {name}"),
            Verdict::Broken(failure) => write!(f, "not ok {name}: {failure}"),
            Verdict::NotRun(method) => write!(
                f,
                "not ok {name}: not run: it would wait in vain, as {method} failed before"
            ),
        }
    }
}

/// How many checks came to which verdict. As text it is the last line of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Checks that found all promises kept.
    pub kept: u32,
    /// Checks that found one broken.
    pub broken: u32,
    /// Checks that were not run.
    pub not_run: u32,
}

impl Summary {
    /// Every check was run and found all promises kept.
    pub fn is_good(&self) -> bool {
        self.broken == 0 && self.not_run == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kept,
            broken,
            not_run,
        } = self;
        write!(
            f,
            "{kept} checks passed, {broken} failed, {not_run} were not run"
        )
    }
}

/// A host under test, and what its checks found so far.
pub struct Suite<'a, H, R> {
    host: &'a H,
    report: R,
    summary: Summary,
    /// Methods on which no check may rely any more.
    lost: Methods,
}

impl<'a, H: Host, R: FnMut(Report)> Suite<'a, H, R> {
    /// Nothing is checked yet. `report` is told of each check when it is over.
    pub fn new(host: &'a H, report: R) -> Self {
        Self {
            host,
            report,
            summary: Summary::default(),
            lost: Methods::default(),
        }
    }

    /// Runs [`checks`], which need nothing but the host.
    pub fn contract(&mut self) {
        self.run(self.host, &checks::<H>());
    }

    /// Runs [`ram::checks`]. `ram` gives a fresh provider for a guest of at least 16 MiB, or `None` if there is no memory for
    /// one.
    pub fn guest_ram(&mut self, ram: impl Fn() -> Option<H::Ram>) {
        let subject = ram::Subject {
            host: self.host,
            ram,
        };
        self.run(&subject, &ram::checks());
    }

    /// Runs [`kicks::checks`]. `guest_mode` is called in a window: see [`kicks::Subject`].
    pub fn kicks(&mut self, guest_mode: impl Fn(&H, CpuId) + Copy + Send + Sync + 'static) {
        let subject = kicks::Subject {
            host: self.host,
            guest_mode,
        };
        self.run(&subject, &kicks::checks());
    }

    /// What was found so far.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    fn run<S>(&mut self, subject: &S, checks: &[Check<S>]) {
        for check in checks {
            let verdict = self.judge(subject, check);
            match verdict {
                Verdict::Kept => self.summary.kept += 1,
                Verdict::Broken(_) => self.summary.broken += 1,
                Verdict::NotRun(_) => self.summary.not_run += 1,
            }
            let name = check.name;
            (self.report)(Report { name, verdict });
        }
    }

    fn judge<S>(&mut self, subject: &S, check: &Check<S>) -> Verdict {
        let missing = check.needs.iter().find(|need| self.lost.contains(**need));
        let verdict = match missing {
            Some(method) => Verdict::NotRun(*method),
            None => match (check.run)(subject) {
                Ok(()) => return Verdict::Kept,
                Err(failure) => Verdict::Broken(failure),
            },
        };
        if let Some(method) = check.proves {
            self.lost.insert(method);
        }
        if matches!(verdict, Verdict::Broken(failure) if failure.threads_left) {
            self.lost.insert(Method::Start);
        }
        verdict
    }
}
