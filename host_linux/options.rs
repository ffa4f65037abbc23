// SPDX-License-Identifier: GPL-2.0
//! What all devices' ioctls read alike: ids, slots, and the options of a kind.

use crate::device_refusal::DeviceRefusal;
use crate::user;
use kernel::{
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};
use palacios_core::names::DeviceId;
use v3_abi::{self as abi, Abi};

/// What a device is known by.
pub(crate) fn id_of(bytes: &[u8]) -> Option<DeviceId> {
    core::str::from_utf8(bytes).ok().and_then(DeviceId::new)
}

/// A slot as options have it; `None` if the VM may choose.
pub(crate) fn slot_of(slot: u32) -> Option<u8> {
    (slot != 0).then(|| u8::try_from(slot).unwrap_or(u8::MAX))
}

/// The options, as far as this module knows them; `None` if there are none. `head` is their size and their version, of which
/// `newest` is known. What is behind those that are known must be zero.
pub(crate) fn options<T: Abi>(
    attach: &abi::v3_attach,
    newest: u32,
    head: impl FnOnce(&T) -> (u32, u32),
) -> Result<Option<T>, DeviceRefusal> {
    let (len, known_len) = (attach.options_len as usize, size_of::<T>());
    match len {
        0 => return Ok(None),
        _ if len < known_len => return Err(DeviceRefusal::BadOptions),
        _ if attach.options_len > abi::V3_MAX_OPTIONS_LEN => {
            return Err(DeviceRefusal::MoreOptions)
        }
        _ => {}
    }
    let at = user::pointer(attach.options)?;
    let options: T = user::read(at)?;
    let (size, version) = head(&options);
    match version {
        0 => return Err(DeviceRefusal::BadOptions),
        version if version > newest => return Err(DeviceRefusal::NewerOptions(version, newest)),
        _ if size != attach.options_len => return Err(DeviceRefusal::BadOptions),
        _ => {}
    }
    match is_zero(at.wrapping_add(known_len), len.saturating_sub(known_len))? {
        true => Ok(Some(options)),
        false => Err(DeviceRefusal::MoreOptions),
    }
}

/// Whether memory of the caller is zero.
fn is_zero(at: usize, len: usize) -> Result<bool> {
    let mut bytes = KVec::new();
    UserSlice::new(UserPtr::from_addr(at), len).read_all(&mut bytes, GFP_KERNEL)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}
