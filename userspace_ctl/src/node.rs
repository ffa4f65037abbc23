// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device nodes of the module, and how they are opened.

use crate::error::Call;
use crate::{ioctl, Error};
use rustix::fd::OwnedFd;
use rustix::fs::{open, Mode, OFlags};
use rustix::io::Errno;
use v3_abi::V3_ABI;

/// The control node.
pub const CONTROL_NODE: &str = "/dev/v3vee";
const VM_NODE: &str = "/dev/v3-vm";

/// The path of a VM's node.
#[must_use]
pub fn node_of(vm: u32) -> String {
    format!("{VM_NODE}{vm}")
}

/// The number of a VM given as such or by its node; `None` if `text` must be a name.
#[must_use]
pub fn number_of(text: &str) -> Option<u32> {
    let digits = text.strip_prefix(VM_NODE).unwrap_or(text);
    let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    all_digits.then(|| digits.parse().ok()).flatten()
}

pub(crate) fn open_node(node: &str) -> Result<OwnedFd, Error> {
    open(node, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| Error::Open {
        node: node.into(),
        errno,
    })
}

/// Opens the control node of a module that speaks our ABI.
pub(crate) fn open_control() -> Result<OwnedFd, Error> {
    let fd = open_node(CONTROL_NODE)?;
    let version = ioctl::version(&fd).map_err(|errno| control_failed(Call::Version, errno))?;
    if version.abi != V3_ABI {
        return Err(Error::OtherAbi {
            module: version.abi,
        });
    }
    Ok(fd)
}

/// The error of a call of the control node.
pub(crate) fn control_failed(call: Call, errno: Errno) -> Error {
    Error::Call {
        call,
        on: CONTROL_NODE.into(),
        errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_nodes() {
        assert_eq!(number_of("0"), Some(0));
        assert_eq!(number_of("/dev/v3-vm12"), Some(12));
        for name in [
            "",
            "vm0",
            "-1",
            "+1",
            "1a",
            "/dev/v3-vm",
            "/dev/v3-vmx",
            "4294967296",
        ] {
            assert_eq!(number_of(name), None, "{name}");
        }
        assert_eq!(number_of(&node_of(7)), Some(7));
    }
}
