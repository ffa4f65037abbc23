// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a table of ACPI is put together, and the code in one (ACPI 6.5: 20.2), byte by byte. A table is on the heap while it is made: a kernel's stack is small.

use crate::addr::Gpa;
use crate::alloc_ext::try_append;
use crate::boot::error::BootError;
use crate::boot::layout::MP_TABLES;
use crate::boot::writer::Writer;
use crate::bytes::align_up;
use alloc::vec::Vec;

const HEADER_BYTES: usize = 36;

/// A table while it is made.
pub(super) struct Table {
    bytes: Vec<u8>,
    /// There was no memory for something.
    is_short: bool,
}

/// Words of the code.
pub(super) mod op {
    pub const NAME: u8 = 0x08;
    pub const SCOPE: &[u8] = &[0x10];
    pub const BUFFER: &[u8] = &[0x11];
    pub const PACKAGE: &[u8] = &[0x12];
    pub const METHOD: &[u8] = &[0x14];
    pub const DEVICE: &[u8] = &[0x5b, 0x82];
    pub const REGION: &[u8] = &[0x5b, 0x80];
    pub const FIELD: &[u8] = &[0x5b, 0x81];
    pub const IF: &[u8] = &[0xa0];
    pub const STORE: u8 = 0x70;
    pub const AND: u8 = 0x7b;
    pub const OR: u8 = 0x7d;
    pub const NOTIFY: u8 = 0x86;
    pub const DOUBLE_WORD_FIELD: u8 = 0x8a;
    pub const RETURN: u8 = 0xa4;
    pub const LOCAL0: u8 = 0x60;
    pub const LOCAL1: u8 = 0x61;
    pub const ARG0: u8 = 0x68;
    /// No target.
    pub const NOWHERE: u8 = 0;
}

/// Addresses that a bridge passes on (6.4.3.5).
#[derive(Clone, Copy)]
pub(super) enum Window {
    Buses,
    Ports,
    Memory,
}

impl Table {
    /// A table with its header (5.2.6), whose length and checksum are still open.
    pub fn new(signature: &[u8; 4], revision: u8) -> Self {
        let mut table = Self {
            bytes: Vec::new(),
            is_short: false,
        };
        table.put(signature);
        table.put(&[0; 4]);
        table.put(&[revision, 0]);
        table.put(b"V3VEE ");
        table.put(b"PALACIOS");
        table.u32(1);
        table.put(b"V3VE");
        table.u32(1);
        table
    }

    pub fn put(&mut self, data: &[u8]) {
        self.is_short |= try_append(&mut self.bytes, data).is_err();
    }
    pub fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }
    pub fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }
    pub fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// An object whose contents `body` puts, in a package of at most 1 MiB (20.2.4).
    pub fn package(&mut self, opcode: &[u8], body: impl FnOnce(&mut Self)) {
        self.put(opcode);
        let start = self.bytes.len();
        self.put(&[0; 3]);
        body(self);
        let len = self.bytes.len().saturating_sub(start);
        let behind = self.bytes.get_mut(start..).unwrap_or_default();
        if let Some(to) = behind.first_chunk_mut() {
            *to = [
                0x80 | (len & 0xf) as u8,
                (len >> 4) as u8,
                (len >> 12) as u8,
            ];
        }
    }
    /// A number, as short as it can be said.
    pub fn integer(&mut self, value: u32) {
        match value {
            0 | 1 => self.put(&[value as u8]),
            2..=0xff => self.put(&[0x0a, value as u8]),
            0x100..=0xffff => {
                self.put(&[0x0b]);
                self.u16(value as u16);
            }
            _ => {
                self.put(&[0x0c]);
                self.u32(value);
            }
        }
    }
    /// An object's name, behind which the object stands.
    pub fn name(&mut self, name: &[u8; 4]) {
        self.put(&[op::NAME]);
        self.put(name);
    }
    /// A number with a name.
    pub fn named_integer(&mut self, name: &[u8; 4], value: u32) {
        self.name(name);
        self.integer(value);
    }
    /// A device's id, of the form PNP0000 (19.3.4); `product` is its four digits.
    pub fn pnp_id(&mut self, product: u16) {
        let [high, low] = product.to_be_bytes();
        self.name(b"_HID");
        self.put(&[0x0c, 0x41, 0xd0, high, low]);
    }
    pub fn device(&mut self, name: &[u8; 4], body: impl FnOnce(&mut Self)) {
        self.package(op::DEVICE, |t| {
            t.put(name);
            body(t);
        });
    }
    /// A method. One that makes names is not entered twice.
    pub fn method(&mut self, name: &[u8; 4], arguments: u8, body: impl FnOnce(&mut Self)) {
        const SERIALIZED: u8 = 1 << 3;
        self.package(op::METHOD, |t| {
            t.put(name);
            t.put(&[arguments | SERIALIZED]);
            body(t);
        });
    }
    /// Ports, or a function's configuration space, with fields for all of it, each of so many bytes.
    pub fn fields(&mut self, name: &[u8; 4], space: u8, at: u32, width: u8, names: &[&[u8; 4]]) {
        let bytes = names.len().saturating_mul(width.into());
        self.put(op::REGION);
        self.put(name);
        self.put(&[space]);
        self.integer(at);
        self.integer(bytes as u32);
        self.package(op::FIELD, |t| {
            t.put(name);
            // Accesses are as wide as a field.
            t.put(&[if width == 1 { 1 } else { 3 }]);
            for field in names {
                t.put(*field);
                t.put(&[width.saturating_mul(8)]);
            }
        });
    }

    /// Resources with a name (6.4): `body` puts them, of so many bytes.
    pub fn resources(&mut self, name: &[u8; 4], bytes: u16, body: impl FnOnce(&mut Self)) {
        self.name(name);
        self.package(op::BUFFER, |t| {
            t.put(&[0x0b]);
            t.u16(bytes.saturating_add(2));
            body(t);
            // The end, without a checksum (6.4.2.9).
            t.put(&[0x79, 0]);
        });
    }
    /// Ports, all 16 address bits decoded (6.4.2.5): 8 bytes.
    pub fn ports(&mut self, port: u16, count: u8) {
        self.put(&[0x47, 1]);
        self.u16(port);
        self.u16(port);
        self.put(&[1, count]);
    }
    /// Memory that is always there (6.4.3.4): 12 bytes.
    pub fn fixed_memory(&mut self, at: u32, bytes: u32) {
        self.put(&[0x86, 9, 0, 1]);
        self.u32(at);
        self.u32(bytes);
    }
    /// Interrupts of which one may be used, active high, level-triggered and shared (6.4.3.6): 5 bytes, and 4 for each.
    pub fn level_interrupts(&mut self, all: &[u8]) {
        self.put(&[0x89]);
        self.u16(2u16.saturating_add((all.len() as u16).saturating_mul(4)));
        self.put(&[0b1001, all.len() as u8]);
        for one in all {
            self.u32((*one).into());
        }
    }
    /// A window of a bridge, of 16, 32 or 64 bits (6.4.3.5): 16, 26 or 46 bytes.
    pub fn window(&mut self, what: Window, bits: u8, range: &core::ops::Range<u64>) {
        let (kind, flags) = match what {
            Window::Memory => (0, 1),
            Window::Ports => (1, 3),
            Window::Buses => (2, 0),
        };
        let (tag, length) = match bits {
            16 => (0x88, 13),
            32 => (0x87, 23),
            _ => (0x8a, 43),
        };
        self.put(&[tag, length, 0, kind, 0b1100, flags]);
        let last = range.end.saturating_sub(1);
        let bytes = range.end.saturating_sub(range.start);
        for value in [0, range.start, last, 0, bytes] {
            let all = value.to_le_bytes();
            self.put(all.get(..usize::from(bits / 8)).unwrap_or(&all));
        }
    }

    /// Closes the table and writes it; returns where.
    pub fn write(mut self, to: &mut Writer<'_>) -> Result<u64, BootError> {
        if self.is_short || self.bytes.len() < HEADER_BYTES {
            return Err(BootError::NoMemory);
        }
        let len = self.bytes.len() as u32;
        if let Some(length) = self.bytes.get_mut(4..8) {
            copy(length, &len.to_le_bytes());
        }
        let sum = checksum(&self.bytes);
        if let Some(field) = self.bytes.get_mut(9) {
            *field = sum;
        }
        place(to, &self.bytes)
    }
}

/// Copies what fits; `copy_from_slice` would have to panic where the lengths differ.
pub(in crate::boot) fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// What makes the bytes' sum zero.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Writes a table at the next multiple of 64, the alignment of the FACS.
pub(super) fn place(to: &mut Writer<'_>, table: &[u8]) -> Result<u64, BootError> {
    to.at = Gpa(align_up(to.at.0, 64));
    let end = to.at.0.saturating_add(table.len() as u64);
    if end > MP_TABLES {
        return Err(BootError::TablesTooBig);
    }
    Ok(to.bytes(table)?.0)
}
