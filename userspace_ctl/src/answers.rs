// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the module answers about VMs, in types: state and reason, counters, features. A new number of `v3vee.h` gets its name here.

use serde::{Serialize, Serializer};
use std::borrow::Cow;
use v3_abi::*;

/// Gives an enum of known numbers, their names, and room for unknown ones of a newer module.
macro_rules! numbers {
    ($(#[$doc:meta])* $type:ident: $($(#[$item_doc:meta])* $item:ident = $number:ident, $name:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type {
            $($(#[$item_doc])* $item,)*
            /// One that this tool does not know.
            Other(u32),
        }

        impl From<u32> for $type {
            fn from(number: u32) -> Self {
                match number {
                    $($number => Self::$item,)*
                    _ => Self::Other(number),
                }
            }
        }

        impl $type {
            /// Its name, as it is printed.
            #[must_use]
            pub fn name(self) -> Cow<'static, str> {
                match self {
                    $(Self::$item => $name.into(),)*
                    Self::Other(number) => format!("other-{number}").into(),
                }
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.name())
            }
        }
    };
}

numbers! {
    /// Where a VM is in its life.
    State:
    /// Made, not yet launched.
    Created = V3_STATE_CREATED, "created";
    /// Its CPUs run.
    Running = V3_STATE_RUNNING, "running";
    /// Its CPUs and its clock stand still.
    Paused = V3_STATE_PAUSED, "paused";
    /// For good.
    Stopped = V3_STATE_STOPPED, "stopped";
}

numbers! {
    /// Why a VM stopped.
    Reason:
    /// It did not stop.
    None = V3_REASON_NONE, "none";
    /// The guest powered itself off.
    PowerOff = V3_REASON_POWER_OFF, "power-off";
    /// The guest wrote the test-exit port.
    TestExit = V3_REASON_TEST_EXIT, "test-exit";
    /// Someone asked for it.
    Request = V3_REASON_REQUEST, "request";
    /// A fault while delivering a double fault.
    TripleFault = V3_REASON_TRIPLE_FAULT, "triple-fault";
    /// The processor gave an exit that nothing handles.
    UnknownExit = V3_REASON_UNKNOWN_EXIT, "unknown-exit";
    /// An instruction that cannot be emulated.
    Emulation = V3_REASON_EMULATION, "emulation";
    /// The processor refused the guest's state.
    BadState = V3_REASON_BAD_STATE, "bad-state";
    /// Anything else the guest did.
    GuestError = V3_REASON_GUEST_ERROR, "guest-error";
    /// The host had no memory for a page of the guest.
    HostMemory = V3_REASON_HOST_MEMORY, "host-memory";
    /// Anything else in the host.
    HostError = V3_REASON_HOST_ERROR, "host-error";
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Why.
    pub reason: Reason,
    /// For [`Reason::TestExit`]: (value written) × 2 + 1.
    pub exit_status: u32,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// The number N of its `/dev/v3-vmN`.
    pub vm: u32,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: State,
    /// Why it stopped; [`Reason::None`] unless stopped.
    pub reason: Reason,
    /// For [`Reason::TestExit`]: (value written) × 2 + 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<u32>,
    /// It runs, but nothing can wake it any more: its CPUs are halted with interrupts off, or were never started.
    pub dead: bool,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// Its RAM.
    pub memory_bytes: u64,
    /// Why it stopped, or is dead, for people; may be empty.
    pub message: String,
}

impl From<&v3_info> for Info {
    fn from(raw: &v3_info) -> Self {
        let reason = Reason::from(raw.reason);
        Self {
            vm: raw.vm,
            name: text(&raw.name),
            state: raw.state.into(),
            reason,
            exit_status: (reason == Reason::TestExit).then_some(raw.exit_status),
            dead: raw.flags & V3_INFO_DEAD != 0,
            vcpus: raw.vcpus,
            memory_bytes: raw.memory_bytes,
            message: text(&raw.message),
        }
    }
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stat {
    /// The virtual CPU it belongs to; none if it belongs to the whole VM.
    pub vcpu: Option<u32>,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: u64,
}

impl From<&v3_stat> for Stat {
    fn from(raw: &v3_stat) -> Self {
        Self {
            vcpu: u32::try_from(raw.vcpu).ok(),
            name: text(&raw.name),
            value: raw.value,
        }
    }
}

/// A feature of the processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// EAX with which CPUID tells of it.
    pub leaf: u32,
    /// ECX with which it does.
    pub subleaf: u32,
    /// The register that tells: `eax`, `ebx`, `ecx` or `edx`.
    pub register: &'static str,
    /// The bit there.
    pub bit: u32,
    /// The host's processor has it.
    pub host: bool,
    /// Guests have it; none if that follows a register of the guest's.
    pub guest: Option<bool>,
    /// Why guests lack it, or what decides whether they have it; empty if they have it.
    pub why: String,
}

impl From<&v3_feature> for Feature {
    fn from(raw: &v3_feature) -> Self {
        let registers = ["eax", "ebx", "ecx", "edx"];
        Self {
            name: text(&raw.name),
            leaf: raw.leaf,
            subleaf: raw.subleaf,
            register: registers.get(raw.reg as usize).unwrap_or(&"?"),
            bit: raw.bit,
            host: raw.host != 0,
            guest: match raw.guest {
                V3_GUEST_HAS => Some(true),
                V3_GUEST_LACKS => Some(false),
                _ => None,
            },
            why: text(&raw.why),
        }
    }
}

/// A string field, with nothing in it that could steer a terminal.
pub(crate) fn text(field: &[u8]) -> String {
    let text = String::from_utf8_lossy(until_nul(field).unwrap_or(field));
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_of_the_modules_bytes() {
        let mut raw = v3_info {
            vm: 3,
            state: V3_STATE_STOPPED,
            reason: V3_REASON_TEST_EXIT,
            exit_status: 85,
            vcpus: 2,
            memory_bytes: 1 << 30,
            ..v3_info::zeroed()
        };
        put_text(&mut raw.name, b"first");
        put_text(&mut raw.message, b"wrote \x1b[2J");
        let json = serde_json::to_value(Info::from(&raw)).unwrap();
        let expected = serde_json::json!({
            "vm": 3, "name": "first", "state": "stopped", "reason": "test-exit", "exit_status": 85,
            "dead": false, "vcpus": 2, "memory_bytes": 1u64 << 30, "message": "wrote ?[2J",
        });
        assert_eq!(json, expected);
        raw.state = 77;
        raw.reason = V3_REASON_NONE;
        raw.flags = V3_INFO_DEAD | 1 << 31;
        let info = Info::from(&raw);
        assert_eq!(
            (info.state.name().as_ref(), info.exit_status, info.dead),
            ("other-77", None, true)
        );
    }

    #[test]
    fn stats_of_a_vm_and_of_a_vcpu() {
        let mut raw = v3_stat {
            vcpu: V3_STAT_VM,
            value: 5,
            ..v3_stat::zeroed()
        };
        put_text(&mut raw.name, b"idle_ns");
        assert_eq!(
            Stat::from(&raw),
            Stat {
                vcpu: None,
                name: "idle_ns".into(),
                value: 5
            }
        );
        raw.vcpu = 1;
        assert_eq!(Stat::from(&raw).vcpu, Some(1));
    }
}
