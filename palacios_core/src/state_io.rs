// SPDX-License-Identifier: MIT OR Apache-2.0
//! Saved state: how devices and vCPUs write what a guest can observe, and read it back.
//!
//! A record is a version number and little-endian fields in a fixed order. Reading checks bounds; what a reader does not
//! like it refuses, so that a damaged record never becomes a device in an impossible state.
#![forbid(unsafe_code)]

use crate::alloc_ext::{try_append, NoMemory};
use alloc::vec::Vec;
use core::fmt;

/// Why state could not be saved or restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    /// No memory for the record.
    NoMemory,
    /// The record ends too early.
    Truncated,
    /// The record is of a version that this VMM does not know.
    Version(u32),
    /// A disk keeps what its guest wrote in the host's memory alone.
    LostWithVm,
    /// What holds a disk's bytes now is smaller than the disk was.
    SmallerStore,
    /// A field holds a value that the device cannot have; names the field.
    Value(&'static str),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("the host has too little memory"),
            Self::Truncated => f.write_str("it ends too early"),
            Self::Version(version) => write!(f, "its version {version} is not known here"),
            Self::LostWithVm => f.write_str("what its guest wrote to it is in memory alone"),
            Self::SmallerStore => f.write_str("the disk was larger than what holds its bytes now"),
            Self::Value(field) => write!(f, "{field} has a value that it cannot have"),
        }
    }
}

impl From<NoMemory> for StateError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// Appends fields to a record.
pub struct StateWriter<'a>(&'a mut Vec<u8>);

impl<'a> StateWriter<'a> {
    /// A record at the end of `to`.
    pub fn new(to: &'a mut Vec<u8>) -> Self {
        Self(to)
    }
    /// The end of the record, for somebody who appends to it.
    pub fn end(&mut self) -> &mut Vec<u8> {
        self.0
    }
    /// Raw bytes.
    pub fn bytes(&mut self, data: &[u8]) -> Result<(), StateError> {
        Ok(try_append(self.0, data)?)
    }
    /// One byte.
    pub fn u8(&mut self, v: u8) -> Result<(), StateError> {
        self.bytes(&[v])
    }
    /// Two bytes.
    pub fn u16(&mut self, v: u16) -> Result<(), StateError> {
        self.bytes(&v.to_le_bytes())
    }
    /// Four bytes.
    pub fn u32(&mut self, v: u32) -> Result<(), StateError> {
        self.bytes(&v.to_le_bytes())
    }
    /// Eight bytes.
    pub fn u64(&mut self, v: u64) -> Result<(), StateError> {
        self.bytes(&v.to_le_bytes())
    }
    /// A byte that is 0 or 1.
    pub fn bool(&mut self, v: bool) -> Result<(), StateError> {
        self.u8(u8::from(v))
    }
}

/// Takes fields from a record.
pub struct StateReader<'a>(&'a [u8]);

impl<'a> StateReader<'a> {
    /// Reads `from` from its beginning.
    pub fn new(from: &'a [u8]) -> Self {
        Self(from)
    }
    /// The next `N` bytes.
    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(StateError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }
    /// The next `len` bytes.
    pub fn slice(&mut self, len: usize) -> Result<&'a [u8], StateError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(StateError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }
    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
    /// There must be nothing left.
    pub fn end(&self, field: &'static str) -> Result<(), StateError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(StateError::Value(field)),
        }
    }
    /// One byte.
    pub fn u8(&mut self) -> Result<u8, StateError> {
        self.bytes::<1>().map(u8::from_le_bytes)
    }
    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, StateError> {
        self.bytes().map(u16::from_le_bytes)
    }
    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, StateError> {
        self.bytes().map(u32::from_le_bytes)
    }
    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, StateError> {
        self.bytes().map(u64::from_le_bytes)
    }
    /// A byte that must be 0 or 1.
    pub fn bool(&mut self, field: &'static str) -> Result<bool, StateError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError::Value(field)),
        }
    }
    /// The version at a record's head, which must be `known`.
    pub fn version(&mut self, known: u32) -> Result<(), StateError> {
        match self.u32()? {
            v if v == known => Ok(()),
            v => Err(StateError::Version(v)),
        }
    }
}
