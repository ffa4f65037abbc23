// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a VM ended: as an exit status, as JSON, and for people.

use super::show;
use crate::failure::{Failure, REFUSED, TOOL};
use crate::pump::End;
use crate::terminal::say;
use serde::Serialize;
use serde_json::Value;
use v3_ctl::{Info, Reason, State, VcpuReport};

/// Exit status when the timeout passed, as of timeout(1).
const TIMEOUT: u8 = 124;
/// Exit status when the guest died.
const DIED: u8 = 127;
/// Exit status when someone stopped the VM, as of SIGINT.
const STOPPED: u8 = 130;
/// Exit status when the guest ended in another way than expected.
const UNEXPECTED: u8 = 1;

/// What `--json` prints.
#[derive(Serialize)]
pub struct Report {
    /// The exit status of this program.
    pub exit: u8,
    reason: String,
    exit_status: Option<u32>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<Value>,
    /// What the virtual CPUs left behind, if the guest did not end by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vcpus: Vec<VcpuReport>,
    /// What went otherwise than the caller expected.
    #[serde(skip)]
    surprise: Option<String>,
}

impl Report {
    pub fn of_end(end: End, info: Info, counters: Value) -> Self {
        let (exit, reason) = outcome(end, &info);
        let message = match info.state {
            State::Stopped => info.message,
            state => format!("it has not stopped: it is {}", state.name()),
        };
        Self {
            exit,
            reason,
            exit_status: info.exit_status,
            message,
            name: Some(info.name),
            counters: Some(counters),
            vcpus: Vec::new(),
            surprise: None,
        }
    }

    /// With what the virtual CPUs left behind.
    pub fn with_vcpus(mut self, vcpus: Vec<VcpuReport>) -> Self {
        self.vcpus = vcpus;
        self
    }

    pub fn of_failure(failure: &Failure) -> Self {
        let reason = if failure.code == REFUSED {
            "refused"
        } else {
            "tool-error"
        };
        Self {
            exit: failure.code,
            reason: reason.into(),
            exit_status: None,
            message: failure.message().into(),
            name: None,
            counters: None,
            vcpus: Vec::new(),
            surprise: None,
        }
    }

    /// Judges the end by what the caller expects of it: a test exit, or with 0 a power-off. Where this program or the host
    /// failed, there is nothing to judge.
    pub fn judged(mut self, expected: Option<u32>) -> Self {
        let Some(expected) = expected else {
            return self;
        };
        let as_expected = match expected {
            0 => self.reason == Reason::PowerOff.name(),
            status => self.exit_status == Some(status),
        };
        if as_expected {
            self.exit = 0;
        } else if self.exit != TOOL || self.exit_status.is_some() {
            self.exit = UNEXPECTED;
            self.surprise = Some(match expected {
                0 => "expected a power-off".into(),
                status => format!("expected test-exit {status}"),
            });
        }
        self
    }

    /// Tells people, as far as they need to know: a guest that ended by itself is not worth a word.
    pub fn tell(&self) {
        if let Some(complaint) = self.complaint() {
            say(&format!("v3: {complaint}"));
            self.tell_of_vcpus();
        }
    }

    /// Tells what the virtual CPUs left behind; somebody who stopped the VM by hand does not want to know.
    fn tell_of_vcpus(&self) {
        if !["escape", "signal", "request"].contains(&self.reason.as_str()) {
            self.vcpus
                .iter()
                .for_each(|vcpu| say(vcpu.to_string().trim_end()));
        }
    }

    /// Tells people in any case.
    pub fn tell_all(&self) {
        self.complaint().map_or_else(
            || say(&format!("[{}]", self.end())),
            |c| say(&format!("v3: {c}")),
        );
        self.tell_of_vcpus();
    }

    /// What is to be complained of.
    fn complaint(&self) -> Option<String> {
        if let Some(surprise) = &self.surprise {
            return Some(format!("{} ({surprise})", self.end()));
        }
        let fine = ["power-off", "test-exit", "escape"].contains(&self.reason.as_str());
        (!fine).then(|| self.end())
    }

    /// The end in one line, with the VM's name.
    fn end(&self) -> String {
        let name = self.name.as_deref().unwrap_or_default();
        show::end(name, &self.reason, self.exit_status, &self.message)
    }
}

/// Exit status and reason. A VM that we stopped has our reason, unless it had ended by itself just before.
fn outcome(end: End, info: &Info) -> (u8, String) {
    let of_reason = || (exit_status(info), info.reason.name().into());
    if !matches!(info.reason, Reason::Request | Reason::None) {
        return of_reason();
    }
    match end {
        End::Stopped => of_reason(),
        End::Timeout => (TIMEOUT, "timeout".into()),
        End::Quit => (STOPPED, "escape".into()),
        End::Signal(signal) => (128 + signal, "signal".into()),
        End::OutputClosed => (TOOL, "output-closed".into()),
    }
}

/// The exit status for a VM that stopped.
fn exit_status(info: &Info) -> u8 {
    match info.reason {
        Reason::PowerOff => 0,
        Reason::TestExit => info.exit_status.unwrap_or(0).to_le_bytes()[0],
        Reason::Request => STOPPED,
        Reason::None | Reason::HostMemory | Reason::HostError => TOOL,
        Reason::TripleFault
        | Reason::UnknownExit
        | Reason::Emulation
        | Reason::BadState
        | Reason::GuestError
        | Reason::Other(_) => DIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(reason: Reason, exit_status: Option<u32>) -> Info {
        Info {
            vm: 0,
            name: "guest-1".into(),
            state: State::Stopped,
            reason,
            exit_status,
            dead: false,
            vcpus: 1,
            memory_bytes: 0,
            message: "why".into(),
        }
    }

    #[test]
    fn the_guests_own_end_decides() {
        let exit = |reason, status| outcome(End::Stopped, &stopped(reason, status)).0;
        assert_eq!(exit(Reason::PowerOff, None), 0);
        assert_eq!(exit(Reason::TestExit, Some(85)), 85);
        assert_eq!(exit(Reason::TestExit, Some(0x101)), 1);
        assert_eq!(exit(Reason::TripleFault, None), 127);
        assert_eq!(exit(Reason::HostMemory, None), 125);
        assert_eq!(exit(Reason::Request, None), 130);
        assert_eq!(exit(Reason::Other(99), None), 127);
    }

    #[test]
    fn our_reason_counts_only_if_we_stopped_it() {
        let ours = stopped(Reason::Request, None);
        assert_eq!(outcome(End::Timeout, &ours), (124, "timeout".into()));
        assert_eq!(outcome(End::Signal(15), &ours), (143, "signal".into()));
        assert_eq!(outcome(End::Quit, &ours), (130, "escape".into()));
        let its_own = stopped(Reason::PowerOff, None);
        assert_eq!(outcome(End::Timeout, &its_own), (0, "power-off".into()));
    }

    fn report(end: End, reason: Reason, status: Option<u32>) -> Report {
        Report::of_end(end, stopped(reason, status), show::counters(&[]))
    }

    #[test]
    fn the_report_is_what_the_help_says() {
        let report = report(End::Stopped, Reason::TestExit, Some(85));
        let expected = serde_json::json!({
            "exit": 85, "reason": "test-exit", "exit_status": 85, "message": "why",
            "name": "guest-1", "counters": {"vm": {}, "vcpus": []},
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        let failure = Report::of_failure(&Failure::tool("no"));
        let expected = serde_json::json!({
            "exit": 125, "reason": "tool-error", "exit_status": null, "message": "no",
        });
        assert_eq!(serde_json::to_value(&failure).unwrap(), expected);
    }

    #[test]
    fn an_end_is_judged_by_what_is_expected() {
        let judged =
            |end, reason, status, expected| report(end, reason, status).judged(Some(expected)).exit;
        assert_eq!(judged(End::Stopped, Reason::TestExit, Some(1), 1), 0);
        assert_eq!(judged(End::Stopped, Reason::TestExit, Some(3), 1), 1);
        assert_eq!(judged(End::Stopped, Reason::PowerOff, None, 1), 1);
        assert_eq!(judged(End::Stopped, Reason::PowerOff, None, 0), 0);
        // An exit status is not enough: here the guest died, with the status that test exit 127 has.
        assert_eq!(judged(End::Stopped, Reason::TripleFault, None, 127), 1);
        assert_eq!(judged(End::Stopped, Reason::TestExit, Some(127), 127), 0);
        // 128 failed tests are not none.
        assert_eq!(judged(End::Stopped, Reason::TestExit, Some(257), 1), 1);
        assert_eq!(judged(End::Timeout, Reason::Request, None, 1), 1);
        assert_eq!(judged(End::Signal(2), Reason::Request, None, 1), 1);
        // Nothing of the guest can be judged.
        assert_eq!(judged(End::Stopped, Reason::HostMemory, None, 1), 125);
        assert_eq!(judged(End::OutputClosed, Reason::Request, None, 1), 125);
        // But a guest's own 125 can.
        assert_eq!(judged(End::Stopped, Reason::TestExit, Some(125), 1), 1);
    }

    #[test]
    fn a_judged_report_still_tells_the_real_end() {
        let json = |report: Report| serde_json::to_value(report).unwrap();
        let passed = json(report(End::Stopped, Reason::TestExit, Some(1)).judged(Some(1)));
        assert_eq!(
            (&passed["exit"], &passed["exit_status"]),
            (&0.into(), &1.into())
        );
        let died = json(report(End::Stopped, Reason::TripleFault, None).judged(Some(1)));
        assert_eq!(
            (&died["exit"], &died["reason"]),
            (&1.into(), &"triple-fault".into())
        );
    }

    #[test]
    fn people_hear_what_is_worth_a_word() {
        let of = |reason, status| report(End::Stopped, reason, status);
        assert_eq!(of(Reason::PowerOff, None).complaint(), None);
        assert_eq!(of(Reason::TestExit, Some(3)).complaint(), None);
        assert_eq!(
            of(Reason::TripleFault, None).complaint().unwrap(),
            "guest-1: triple-fault: why"
        );
        assert_eq!(
            of(Reason::TestExit, Some(3))
                .judged(Some(1))
                .complaint()
                .unwrap(),
            "guest-1: test-exit 3: why (expected test-exit 1)"
        );
        assert_eq!(
            of(Reason::TestExit, Some(1)).judged(Some(1)).complaint(),
            None
        );
        let late = Info {
            state: State::Paused,
            reason: Reason::None,
            message: String::new(),
            ..stopped(Reason::None, None)
        };
        let late = Report::of_end(End::Timeout, late, Value::Null);
        assert_eq!(
            (late.exit, late.complaint().unwrap().as_str()),
            (124, "guest-1: timeout: it has not stopped: it is paused")
        );
    }
}
