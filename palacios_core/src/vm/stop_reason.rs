// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a VM stopped, and the words for it.
#![forbid(unsafe_code)]

use crate::emulator::InstructionBytes;
use crate::worker::REST_NS;
use core::fmt;

/// Why a VM stopped.
///
/// Hosts and tools show the words of a new one by themselves. Programs can tell it from others only by a number of its own: a
/// `V3_REASON_` in `v3vee.h`, given in `host_linux/info.rs`, and named in `userspace_ctl/src/answers.rs` and in the tool's help text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest wrote this status to the test exit port. The tool ends with it.
    Exit(u32),
    /// The owner stopped it.
    Requested,
    /// A triple fault.
    TripleFault {
        /// Where.
        rip: u64,
    },
    /// An instruction that the emulator does not know touched a device or a register.
    Unemulated {
        /// Where.
        rip: u64,
        /// Its bytes.
        bytes: InstructionBytes,
    },
    /// It executed an address where there is no memory.
    NoMemoryAt {
        /// Where.
        rip: u64,
        /// The guest-physical address.
        gpa: u64,
    },
    /// A switch to another task by the processor itself.
    TaskSwitch {
        /// Where.
        rip: u64,
    },
    /// An exit that this VMM does not know.
    UnknownExit {
        /// Where.
        rip: u64,
        /// The vendor's code.
        code: u64,
        /// The vendor's further information on the exit.
        info: [u64; 2],
    },
    /// The processor refused to enter the guest.
    BadState(&'static str),
    /// The host had no memory for guest RAM.
    OutOfMemory,
    /// A machine check: the host's hardware failed while the guest used it.
    MachineCheck,
    /// Virtualization was switched off under it: the host went down.
    HostGone,
    /// Another hypervisor on this host took the processor's virtualization.
    HostTaken,
    /// After a reset the kernel could not be loaded again.
    ResetFailed,
    /// The device of that name did not come to rest.
    NeverRests(&'static str),
}

impl StopReason {
    /// The guest is to blame.
    pub fn is_guest_error(self) -> bool {
        self.blame() == Blame::Guest
    }
    /// The host is to blame.
    pub fn is_host_error(self) -> bool {
        self.blame() == Blame::Host
    }

    /// Each reason is named, so that a new one cannot be forgotten here.
    fn blame(self) -> Blame {
        use StopReason::*;
        match self {
            PoweredOff | Exit(_) | Requested => Blame::Nobody,
            TripleFault { .. }
            | Unemulated { .. }
            | NoMemoryAt { .. }
            | TaskSwitch { .. }
            | UnknownExit { .. }
            | BadState(_) => Blame::Guest,
            OutOfMemory | MachineCheck | HostGone | HostTaken | ResetFailed | NeverRests(_) => {
                Blame::Host
            }
        }
    }
}

/// Whose fault it was that a VM stopped.
#[derive(PartialEq, Eq)]
enum Blame {
    Nobody,
    Guest,
    Host,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Exit(status) => write!(f, "the guest ended its test with status {status}"),
            Self::Requested => f.write_str("stopped on request"),
            Self::TripleFault { rip } => write!(
                f,
                "triple fault at rip {rip:#x}: an exception, and its handler, and the double fault's handler failed"
            ),
            Self::Unemulated { rip, bytes } => {
                write!(f, "no emulation for the instruction at rip {rip:#x}:")?;
                let fetched = bytes.bytes.get(..usize::from(bytes.len)).unwrap_or_default();
                fetched.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            Self::NoMemoryAt { rip, gpa } => {
                write!(f, "rip {rip:#x} leads to guest-physical {gpa:#x}, where there is no memory to execute")
            }
            Self::TaskSwitch { rip } => write!(
                f,
                "a hardware task switch at rip {rip:#x}, by a task gate or to a task-state segment: not supported"
            ),
            Self::UnknownExit { rip, code, info } => {
                write!(f, "unknown exit {code:#x} ({:#x}, {:#x}) at rip {rip:#x}", info[0], info[1])
            }
            Self::BadState(what) => write!(f, "the processor refused the guest's state: {what}"),
            Self::OutOfMemory => f.write_str("the host ran out of memory for guest RAM: free some, or give the guest less"),
            Self::MachineCheck => f.write_str("a machine check: the host's hardware failed under this VM; see the host's log"),
            Self::HostGone => f.write_str("virtualization was switched off on this host"),
            Self::HostTaken => f.write_str(
                "another hypervisor took the processor's virtualization: unload it (rmmod kvm_intel or kvm_amd), on AMD load v3vee anew, and start the VM anew",
            ),
            Self::NeverRests(device) => write!(
                f,
                "the device {device} did not come to rest within {} s, so the machine could be neither paused nor reset",
                REST_NS / 1_000_000_000
            ),
            Self::ResetFailed => f.write_str("the guest asked for a reset, and its kernel could not be loaded again"),
        }
    }
}
