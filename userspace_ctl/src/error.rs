// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a call failed, in words that say what to do.

use rustix::io::Errno;
use std::fmt;

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
    /// Another call failed.
    Call {
        /// What was tried, such as `launch`.
        what: &'static str,
        /// The VM's node, or the control node.
        node: String,
        /// Why.
        errno: Errno,
    },
}

impl Error {
    /// What to do about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Open { errno, .. } if is_absent(*errno) => {
                "is the module loaded? insmod v3vee.ko"
            }
            Self::Open {
                errno: Errno::ACCESS | Errno::PERM,
                ..
            } => "run as root, or ask for access to the node",
            Self::OtherAbi { .. } => "use the v3 that was built with this module",
            Self::BadName(_) => "use 1 to 63 letters, digits, `.`, `_`, `-`, and not digits alone",
            Self::NoSuchVm(_) => "`v3 list` shows all VMs",
            Self::Refused {
                errno: Errno::EXIST,
                ..
            } => "give another name, or free that VM: v3 free NAME",
            Self::Refused {
                errno: Errno::NOSPC,
                ..
            } => "free a VM: v3 list, v3 free NAME",
            Self::Refused {
                errno: Errno::NOMEM,
                ..
            } => "give the VM less memory, or free other VMs",
            Self::Call {
                what: "free",
                errno: Errno::BUSY,
                ..
            } => "stop it first: v3 stop VM",
            Self::Call {
                what: "stream",
                errno: Errno::BUSY,
                ..
            } => "close the other console or stream; one can be attached at a time",
            Self::Call {
                what: "stream",
                errno: Errno::NOENT,
                ..
            } => "the image names the streams: `[[serial]]` of its TOML file",
            Self::Call {
                what: "core-move",
                errno: Errno::NXIO,
                ..
            } => "/sys/devices/system/cpu/online shows the host's CPUs",
            Self::Call {
                what: "core-move",
                errno: Errno::NOENT,
                ..
            } => "they count from 0; `v3 info VM` says how many there are",
            Self::Call {
                errno: Errno::BADFD,
                ..
            } => "`v3 info VM` shows its state",
            Self::Call {
                errno: Errno::NOTTY,
                ..
            } => "use the v3 that was built with this module",
            _ => return None,
        })
    }
}

/// Errors of a node that is not there, or has no driver behind it.
fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NODEV | Errno::NXIO)
}

/// What an error number means here.
fn meaning(what: &str, errno: Errno) -> String {
    match (what, errno) {
        ("core-move", Errno::NXIO) => "the host has no such CPU, or it is offline".into(),
        (_, Errno::NODEV | Errno::NXIO) => "no such device".into(),
        ("free", Errno::BUSY) => "the VM still runs".into(),
        ("stream", Errno::BUSY) => "another program is attached to it".into(),
        ("stream", Errno::NOENT) => "the VM has no such stream".into(),
        ("core-move" | "pin", Errno::NOENT) => "the VM has no such virtual CPU".into(),
        ("launch", Errno::BADFD) => "it was launched before; a VM runs once".into(),
        ("pause" | "continue" | "relocate" | "core-move", Errno::BADFD) => {
            "the VM's state does not allow it".into()
        }
        ("relocate", Errno::RANGE) => "not all of it is memory of the guest".into(),
        ("relocate", Errno::INVAL) => "address and length must be multiples of 4096".into(),
        (_, Errno::NOTTY) => "the module does not know this call".into(),
        _ => plain(errno),
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
            Self::Call { what, node, errno } => {
                write!(f, "{node}: {what}: {}", meaning(what, *errno))
            }
        }
    }
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
            assert_eq!(error.hint(), Some("is the module loaded? insmod v3vee.ko"));
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

    #[test]
    fn wrong_states_are_explained() {
        let call = |what, errno| Error::Call {
            what,
            node: "/dev/v3-vm0".into(),
            errno,
        };
        assert_eq!(
            call("launch", Errno::BADFD).to_string(),
            "/dev/v3-vm0: launch: it was launched before; a VM runs once"
        );
        assert!(call("free", Errno::BUSY)
            .hint()
            .unwrap()
            .contains("v3 stop"));
        assert_eq!(
            call("core-move", Errno::NXIO).to_string(),
            "/dev/v3-vm0: core-move: the host has no such CPU, or it is offline"
        );
        assert_eq!(
            call("stop", Errno::NODEV).to_string(),
            "/dev/v3-vm0: stop: no such device"
        );
    }
}
