// SPDX-License-Identifier: GPL-2.0
//! The structs of `v3vee.h` to and from user memory, and text in them.

use core::fmt::{self, Write};
use kernel::{
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};
use v3_abi::Abi;

/// Reads the argument of a call.
pub(crate) fn read<T: Abi>(arg: usize) -> Result<T> {
    let mut value = T::zeroed();
    let bytes = value.as_bytes_mut();
    UserSlice::new(UserPtr::from_addr(arg), bytes.len())
        .reader()
        .read_slice(bytes)?;
    Ok(value)
}

/// Writes the answer of a call.
pub(crate) fn write<T: Abi>(arg: usize, value: &T) -> Result {
    write_bytes(arg, value.as_bytes())
}

/// Writes values one after the other; to nowhere, if there are none.
pub(crate) fn write_all<T: Abi>(at: u64, values: &[T]) -> Result {
    let mut at = pointer(at)?;
    for value in values {
        write(at, value)?;
        at = at.wrapping_add(size_of::<T>());
    }
    Ok(())
}

/// Writes bytes.
pub(crate) fn write_bytes(at: usize, bytes: &[u8]) -> Result {
    UserSlice::new(UserPtr::from_addr(at), bytes.len())
        .writer()
        .write_slice(bytes)
}

/// Writes why a call fails to where the caller wants it, if it does: one line, cut to fit, with its NUL.
pub(crate) fn explain(at: u64, len: u32, why: &dyn fmt::Display) -> Result {
    let Some(room) = len.checked_sub(1).filter(|_| at != 0) else {
        return Ok(());
    };
    let text = Text::<{ v3_abi::V3_MESSAGE_LEN as usize }>::of(format_args!("{why}"));
    let text = text.as_bytes();
    let text = text.get(..room as usize).unwrap_or(text);
    let at = pointer(at)?;
    write_bytes(at, text)?;
    write_bytes(at.wrapping_add(text.len()), &[0])
}

/// A pointer out of a struct.
pub(crate) fn pointer(at: u64) -> Result<usize> {
    usize::try_from(at).map_err(|_| EFAULT)
}

/// Padding and unknown flags must be zero.
pub(crate) fn must_be_zero(field: u32) -> Result {
    (field == 0).then_some(()).ok_or(EINVAL)
}

/// Text for a field: cut to fit, ended and filled by NUL.
pub(crate) struct Text<const N: usize> {
    /// The field.
    pub(crate) field: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// What `line` prints.
    pub(crate) fn of(line: fmt::Arguments<'_>) -> Self {
        let mut text = Self {
            field: [0; N],
            len: 0,
        };
        // Cut, not refused.
        let _ = text.write_fmt(line);
        text
    }

    /// The text without NUL.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.field.get(..self.len).unwrap_or(&[])
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        // The last place stays NUL.
        let room = N.saturating_sub(1).saturating_sub(self.len);
        let places = self.field.iter_mut().skip(self.len).take(room);
        for (place, byte) in places.zip(s.bytes()) {
            *place = byte;
        }
        self.len = self.len.saturating_add(room.min(s.len()));
        (s.len() <= room).then_some(()).ok_or(fmt::Error)
    }
}
