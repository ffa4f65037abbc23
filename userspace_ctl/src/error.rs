// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a call failed, in words that say what to do.

use crate::State;
use rustix::io::Errno;
use std::fmt;

/// What a program asks of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The module's version.
    Version,
    /// All VMs.
    List,
    /// To free a VM.
    Free,
    /// To start a VM.
    Launch,
    /// To stop a VM.
    Stop,
    /// To halt a VM.
    Pause,
    /// To let a VM go on.
    Continue,
    /// To wait until a VM stops.
    Wait,
    /// A VM's description.
    Info,
    /// A VM's counters.
    Stats,
    /// To attach to a stream.
    Stream,
    /// The names of a VM's streams.
    Streams,
    /// The features of processors.
    Features,
    /// To exchange a VM's memory.
    Relocate,
    /// To move a virtual CPU.
    CoreMove,
    /// Where a virtual CPU may run.
    Pin,
    /// To detach a device.
    Detach,
    /// A VM's devices.
    Devices,
    /// What is inside a VM.
    Look,
    /// To save a VM.
    Save,
    /// To load a saved machine.
    Load,
}

impl Call {
    /// What is tried, in words that go between "cannot" and the name of the VM.
    fn words(self) -> &'static str {
        match self {
            Self::Version => "ask the version of",
            Self::List => "list the VMs of",
            Self::Free => "free",
            Self::Launch => "launch",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Continue => "continue",
            Self::Wait => "wait for",
            Self::Info => "describe",
            Self::Stats => "read the counters of",
            Self::Stream => "attach to a stream of",
            Self::Streams => "list the streams of",
            Self::Features => "list the features of",
            Self::Relocate => "relocate memory of",
            Self::CoreMove => "move a virtual CPU of",
            Self::Pin => "ask for the pins of",
            Self::Detach => "detach a device of",
            Self::Devices => "list the devices of",
            Self::Look => "look into",
            Self::Save => "save",
            Self::Load => "load",
        }
    }
}

/// Why a call of the module failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A node could not be opened.
    Open {
        /// Its path.
        node: String,
        /// Why.
        errno: Errno,
    },
    /// The module speaks another ABI than this library.
    OtherAbi {
        /// The module's.
        module: u32,
    },
    /// The text cannot be the name of a VM.
    BadName(String),
    /// No VM is called so.
    NoSuchVm(String),
    /// The module did not make a VM of this image.
    Refused {
        /// Why.
        errno: Errno,
        /// The module's explanation; may be empty.
        message: String,
    },
    /// The VM is in a state in which this cannot be done.
    WrongState {
        /// What was tried.
        call: Call,
        /// The VM's name.
        vm: String,
        /// Its state.
        state: State,
    },
    /// The VM has no stream of this name.
    NoSuchStream {
        /// The VM's name.
        vm: String,
        /// The name of the stream; empty for the console's.
        stream: String,
        /// The names of the streams that it has.
        known: Vec<String>,
    },
    /// The text cannot be what a device is known by.
    BadId(String),
    /// The module did not attach a device.
    NotAttached {
        /// The VM's name.
        vm: String,
        /// Why.
        errno: Errno,
        /// The module's explanation; may be empty.
        message: String,
    },
    /// The module did not give a disk another size.
    NotResized {
        /// The VM's name.
        vm: String,
        /// The id.
        id: String,
        /// Why.
        errno: Errno,
        /// The module's explanation; may be empty.
        message: String,
    },
    /// The VM has no device of this id.
    NoSuchDevice {
        /// The VM's name.
        vm: String,
        /// The id.
        id: String,
        /// The ids of the devices that can be detached.
        removable: Vec<String>,
    },
    /// The device stays with its machine.
    NotRemovable {
        /// The VM's name.
        vm: String,
        /// What the device is known by.
        id: String,
    },
    /// The VM does not go on from what was saved.
    NotLoaded {
        /// The VM's name.
        vm: String,
        /// Why.
        errno: Errno,
        /// The module's explanation; may be empty.
        message: String,
    },
    /// Another call failed.
    Call {
        /// What was tried.
        call: Call,
        /// The VM's name, or the node if there is none.
        on: String,
        /// Why.
        errno: Errno,
    },
}

impl Error {
    /// What to do about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::WrongState { call, vm, state } => return Some(cure(*call, vm, *state)),
            Self::Open { errno, .. } => cure_of_open(*errno)?,
            Self::OtherAbi { .. } => "use the v3 that was built with this module",
            Self::BadName(_) => "use 1 to 63 letters, digits, `.`, `_`, `-`, and not digits alone",
            Self::NoSuchVm(_) => "`v3 list` shows all VMs",
            Self::NoSuchStream { .. } => "the image names them: `[[serial]]` of its guest.toml",
            Self::Refused { errno, .. } => cure_of_refusal(*errno)?,
            Self::BadId(_) => "use 1 to 31 letters, digits, `.`, `_`, `-`",
            Self::NotAttached { vm, errno, .. } => return cure_of_attaching(vm, *errno),
            Self::NoSuchDevice { vm, .. } | Self::NotRemovable { vm, .. } => {
                return Some(format!("`v3 devices {vm}` shows which can be detached"))
            }
            Self::NotLoaded { errno, .. } => cure_of_loading(*errno)?,
            Self::NotResized { errno, .. } => cure_of_resizing(*errno)?,
            Self::Call { call, errno, .. } => cure_of_call(*call, *errno)?,
        };
        Some(hint.into())
    }
}

fn cure_of_open(errno: Errno) -> Option<&'static str> {
    match errno {
        errno if is_absent(errno) => Some("is the module loaded? insmod v3vee.ko"),
        Errno::ACCESS | Errno::PERM => Some("run as root, or ask for access to the node"),
        _ => None,
    }
}

/// How a VM in this state can be brought to where the call is possible.
fn cure(call: Call, vm: &str, state: State) -> String {
    match (call, state) {
        (Call::Launch, State::Running) => {
            format!("a VM is launched once; `v3 console {vm}` shows what it does")
        }
        (Call::Launch, State::Paused) => format!("let it go on with `v3 continue {vm}`"),
        (Call::Free, State::Running | State::Paused) => {
            format!("stop it first with `v3 stop {vm}`, or use `v3 free -f {vm}`")
        }
        (Call::Wait, State::Created) => format!(
            "start it with `v3 launch {vm}`, or wait for somebody to do so with `v3 wait --for-launch {vm}`"
        ),
        (_, State::Created) => format!("start it with `v3 launch {vm}`"),
        (_, State::Stopped) => {
            format!("a VM runs once: free it with `v3 free {vm}`, and create it again")
        }
        _ => format!("its state may have changed meanwhile: `v3 info {vm}` shows it"),
    }
}

fn cure_of_refusal(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::EXIST => Some("give another name, or free that VM with `v3 free NAME`"),
        Errno::NOSPC => Some("free a VM with `v3 free NAME`; `v3 list` shows all"),
        Errno::NOMEM => Some("give the VM less memory, or free other VMs"),
        _ => None,
    }
}

fn cure_of_attaching(vm: &str, errno: Errno) -> Option<String> {
    match errno {
        Errno::EXIST | Errno::NOSPC => Some(format!(
            "`v3 devices {vm}` shows what is there; `v3 detach {vm} ID` takes one away"
        )),
        Errno::NOTTY => Some("use the v3 that was built with this module".into()),
        _ => None,
    }
}

fn cure_of_resizing(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::PERM => Some("shrink the guest's file system first, and then use --shrink"),
        Errno::OPNOTSUPP => {
            Some("without a size `v3 resize` tells the guest what its block device has grown to")
        }
        Errno::NOTTY => Some("use the v3 that was built with this module"),
        _ => None,
    }
}

fn cure_of_loading(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::RANGE => Some("with --new-tsc-rate its deadlines come in time, but what the guest has measured of its counter is wrong"),
        Errno::OPNOTSUPP => Some("load it on a host like the one on which it was saved, with the same version of this program"),
        Errno::NOTTY => Some("use the v3 that was built with this module"),
        _ => None,
    }
}

fn cure_of_call(call: Call, errno: Errno) -> Option<&'static str> {
    match (call, errno) {
        (Call::Stream, Errno::BUSY) => {
            Some("close the other console or stream; one can be attached at a time")
        }
        (Call::CoreMove, Errno::NXIO) => {
            Some("/sys/devices/system/cpu/online shows the host's CPUs")
        }
        (Call::CoreMove | Call::Look, Errno::NOENT) => {
            Some("they count from 0; `v3 info VM` says how many there are")
        }
        (_, Errno::NOTTY) => Some("use the v3 that was built with this module"),
        _ => None,
    }
}

/// Errors of a node that is not there, or has no driver behind it.
fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NODEV | Errno::NXIO)
}

/// What an error number means here.
fn meaning(call: Call, errno: Errno) -> String {
    let words = match (call, errno) {
        (Call::CoreMove, Errno::NXIO) => "the host has no such CPU, or it is offline",
        (_, Errno::NODEV | Errno::NXIO) => "no such device",
        (Call::Pause, Errno::BUSY) => "it resets itself over and over; try again",
        (Call::Stream, Errno::BUSY) => "another program is attached to it",
        (Call::CoreMove | Call::Pin | Call::Look, Errno::NOENT) => "the VM has no such virtual CPU",
        (Call::Load, Errno::RANGE) => "the VM has less memory than what was saved",
        (Call::Save, Errno::BUSY) => "too many save it; try again",
        (Call::Relocate, Errno::RANGE) => "not all of it is memory of the guest",
        (Call::Relocate, Errno::INVAL) => "address and length must be multiples of 4096",
        (_, Errno::BADFD) => "its state does not allow it",
        (_, Errno::NOTTY) => "the module does not know this call",
        _ => return plain(errno),
    };
    words.into()
}

/// What a state means for somebody who wants something else.
fn standing(state: State) -> String {
    match state {
        State::Created => "it was never launched".into(),
        State::Running => "it is running".into(),
        State::Paused => "it is paused".into(),
        State::Stopped => "it has stopped".into(),
        State::Other(_) => format!("it is in the state {}", state.name()),
    }
}

/// The system's words for an error, without its number.
pub(crate) fn plain(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { node, errno } if is_absent(*errno) => {
                write!(f, "{node}: no such device")
            }
            Self::Open { node, errno } => write!(f, "{node}: {}", plain(*errno)),
            Self::OtherAbi { module } => write!(
                f,
                "the module speaks ABI {module}, this program ABI {}",
                v3_abi::V3_ABI
            ),
            Self::BadName(name) => write!(f, "`{}` cannot name a VM", name.escape_debug()),
            Self::NoSuchVm(name) => write!(f, "{}: no such VM", name.escape_debug()),
            Self::Refused { errno, message } if message.is_empty() => {
                write!(f, "the module refused the VM: {}", refusal(*errno))
            }
            Self::Refused { message, .. } => f.write_str(message),
            Self::WrongState { call, vm, state } => {
                write!(f, "cannot {} {vm}: {}", call.words(), standing(*state))
            }
            Self::NoSuchStream { vm, stream, known } => no_such_stream(f, vm, stream, known),
            Self::BadId(id) => write!(f, "`{}` cannot name a device", id.escape_debug()),
            Self::NotAttached { vm, errno, message } => {
                let why = match message.as_str() {
                    "" => meaning(Call::Devices, *errno),
                    message => message.into(),
                };
                write!(f, "cannot attach a device to {vm}: {why}")
            }
            Self::NotResized {
                vm,
                id,
                errno,
                message,
            } => {
                let why = match message.as_str() {
                    "" => meaning(Call::Devices, *errno),
                    message => message.into(),
                };
                write!(f, "cannot resize {id} of {vm}: {why}")
            }
            Self::NoSuchDevice { vm, id, removable } => {
                write!(f, "{vm} has no device `{}`", id.escape_debug())?;
                match removable.as_slice() {
                    [] => Ok(()),
                    ids => write!(f, "; those that can be detached are {}", ids.join(", ")),
                }
            }
            Self::NotRemovable { vm, id } => {
                write!(f, "cannot detach {id} of {vm}: it stays with the machine")
            }
            Self::NotLoaded { vm, errno, message } => {
                let why = match message.as_str() {
                    "" => meaning(Call::Load, *errno),
                    message => message.into(),
                };
                write!(f, "cannot load {vm}: {why}")
            }
            Self::Call { call, on, errno } => {
                write!(
                    f,
                    "cannot {} {on}: {}",
                    call.words(),
                    meaning(*call, *errno)
                )
            }
        }
    }
}

fn no_such_stream(
    f: &mut fmt::Formatter<'_>,
    vm: &str,
    stream: &str,
    known: &[String],
) -> fmt::Result {
    if stream.is_empty() {
        write!(f, "{vm} has no console")?;
    } else {
        write!(f, "{vm} has no stream `{}`", stream.escape_debug())?;
    }
    if !known.is_empty() {
        write!(f, "; its streams are {}", known.join(", "))?;
    }
    Ok(())
}

/// What an error of V3_CREATE means, see `v3vee.h`.
fn refusal(errno: Errno) -> String {
    match errno {
        Errno::EXIST => "a VM of that name exists".into(),
        Errno::NOEXEC => "the image is damaged or holds no kernel that can be started".into(),
        Errno::OPNOTSUPP => "the image asks for more than this module or processor offers".into(),
        Errno::TOOBIG => "the image is longer than the module accepts".into(),
        Errno::NOSPC => "no more VMs can exist".into(),
        Errno::NOMEM => "the host has too little memory".into(),
        errno => plain(errno),
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_module_is_named_and_the_way_out_told() {
        for errno in [Errno::NOENT, Errno::NODEV, Errno::NXIO] {
            let error = Error::Open {
                node: "/dev/v3vee".into(),
                errno,
            };
            assert_eq!(error.to_string(), "/dev/v3vee: no such device");
            assert_eq!(
                error.hint().unwrap(),
                "is the module loaded? insmod v3vee.ko"
            );
        }
        let denied = Error::Open {
            node: "/dev/v3vee".into(),
            errno: Errno::ACCESS,
        };
        assert_eq!(denied.to_string(), "/dev/v3vee: permission denied");
        assert!(denied.hint().unwrap().contains("root"));
    }

    #[test]
    fn the_modules_explanation_comes_first() {
        let refused = |message: &str| Error::Refused {
            errno: Errno::EXIST,
            message: message.into(),
        };
        assert_eq!(refused("no, because").to_string(), "no, because");
        assert!(refused("")
            .to_string()
            .ends_with("a VM of that name exists"));
    }

    /// Message and hint.
    fn told(call: Call, state: State) -> (String, String) {
        let error = Error::WrongState {
            call,
            vm: "debian".into(),
            state,
        };
        (error.to_string(), error.hint().unwrap())
    }

    #[test]
    fn a_wrong_state_is_told_with_its_cure() {
        let cases = [
            (
                (Call::Launch, State::Running),
                "cannot launch debian: it is running",
                "v3 console debian",
            ),
            (
                (Call::Launch, State::Paused),
                "cannot launch debian: it is paused",
                "v3 continue debian",
            ),
            (
                (Call::Launch, State::Stopped),
                "cannot launch debian: it has stopped",
                "v3 free debian",
            ),
            (
                (Call::Pause, State::Created),
                "cannot pause debian: it was never launched",
                "v3 launch debian",
            ),
            (
                (Call::Pause, State::Stopped),
                "cannot pause debian: it has stopped",
                "create it again",
            ),
            (
                (Call::Continue, State::Created),
                "cannot continue debian: it was never launched",
                "v3 launch debian",
            ),
            (
                (Call::Continue, State::Stopped),
                "cannot continue debian: it has stopped",
                "v3 free debian",
            ),
            (
                (Call::Free, State::Running),
                "cannot free debian: it is running",
                "v3 free -f debian",
            ),
            (
                (Call::Free, State::Paused),
                "cannot free debian: it is paused",
                "v3 stop debian",
            ),
            (
                (Call::Wait, State::Created),
                "cannot wait for debian: it was never launched",
                "v3 wait --for-launch debian",
            ),
            (
                (Call::Relocate, State::Stopped),
                "cannot relocate memory of debian: it has stopped",
                "v3 free debian",
            ),
            (
                (Call::CoreMove, State::Stopped),
                "cannot move a virtual CPU of debian: it has stopped",
                "v3 free debian",
            ),
        ];
        for ((call, state), message, cure) in cases {
            let (said, hint) = told(call, state);
            assert_eq!(said, message);
            assert!(hint.contains(cure), "{hint}");
        }
        // A state that changed between the call and the question.
        let (_, hint) = told(Call::Pause, State::Running);
        assert!(hint.contains("v3 info debian"), "{hint}");
        let (said, _) = told(Call::Launch, State::Other(7));
        assert_eq!(said, "cannot launch debian: it is in the state other-7");
    }

    #[test]
    fn an_unknown_stream_comes_with_the_known_ones() {
        let error = |stream: &str, known: &[&str]| Error::NoSuchStream {
            vm: "debian".into(),
            stream: stream.into(),
            known: known.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(
            error("com9", &["com1", "debug"]).to_string(),
            "debian has no stream `com9`; its streams are com1, debug"
        );
        assert_eq!(
            error("", &["debug"]).to_string(),
            "debian has no console; its streams are debug"
        );
        // A module that cannot list them.
        assert_eq!(
            error("com9", &[]).to_string(),
            "debian has no stream `com9`"
        );
        assert!(error("x", &[]).hint().unwrap().contains("[[serial]]"));
    }

    #[test]
    fn other_errors_are_explained() {
        let call = |call, errno| Error::Call {
            call,
            on: "debian".into(),
            errno,
        };
        let busy = call(Call::Stream, Errno::BUSY);
        assert_eq!(
            busy.to_string(),
            "cannot attach to a stream of debian: another program is attached to it"
        );
        assert!(busy.hint().unwrap().contains("close the other console"));
        assert_eq!(
            call(Call::CoreMove, Errno::NXIO).to_string(),
            "cannot move a virtual CPU of debian: the host has no such CPU, or it is offline"
        );
        assert_eq!(
            call(Call::Stop, Errno::NODEV).to_string(),
            "cannot stop debian: no such device"
        );
    }
}
