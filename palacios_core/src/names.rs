// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names that people give to VMs and devices.
#![forbid(unsafe_code)]

use core::fmt;

/// A name: 1 to `MOST` letters, digits, `-`, `_` or `.`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name<const MOST: usize> {
    bytes: [u8; MOST],
    len: u8,
}

/// A VM's name.
pub type VmName = Name<63>;
/// What a device is known by among those of its VM.
pub type DeviceId = Name<31>;

impl<const MOST: usize> Name<MOST> {
    /// Checks a name.
    pub const fn new(name: &str) -> Option<Self> {
        let name = name.as_bytes();
        if name.is_empty() || name.len() > MOST || name.len() > u8::MAX as usize {
            return None;
        }
        let mut bytes = [0; MOST];
        let (mut to, mut from): (&mut [u8], &[u8]) = (&mut bytes, name);
        while let ([slot, slots @ ..], [byte, rest @ ..]) = (to, from) {
            if !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'_' | b'.') {
                return None;
            }
            *slot = *byte;
            (to, from) = (slots, rest);
        }
        let len = name.len() as u8;
        Some(Self { bytes, len })
    }
    /// The name.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl DeviceId {
    /// The name of a device of which a machine has one: that of its kind.
    pub const fn of_kind(kind: &'static str) -> Self {
        const NAMELESS: DeviceId = match DeviceId::new("device") {
            Some(name) => name,
            None => panic!(),
        };
        match Self::new(kind) {
            Some(name) => name,
            None => NAMELESS,
        }
    }

    /// One of several of a name: `rng-2`.
    pub fn numbered(name: &Self, number: usize) -> Self {
        let mut numbered = *name;
        // Two digits are enough for all that a machine has; a long name is cut off.
        let digits = [
            b'-',
            b'0' + (number / 10 % 10) as u8,
            b'0' + (number % 10) as u8,
        ];
        let suffix = match number {
            0..=9 => [digits[0], digits[2], 0],
            _ => digits,
        };
        let used = if number < 10 { 2 } else { 3 };
        let kept = usize::from(name.len).min(name.bytes.len().saturating_sub(used));
        for (to, from) in numbered
            .bytes
            .iter_mut()
            .skip(kept)
            .zip(suffix.iter().take(used))
        {
            *to = *from;
        }
        numbered.len = kept.saturating_add(used) as u8;
        numbered
    }
}

impl<const MOST: usize> fmt::Debug for Name<MOST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const MOST: usize> fmt::Display for Name<MOST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_its_letters_and_its_length() {
        type Short = Name<5>;
        for good in ["a", "COM-1", "x_.9"] {
            assert_eq!(Short::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "com one", "com123", "/", "\u{e9}"] {
            assert!(Short::new(bad).is_none(), "{bad}");
        }
        let rng = DeviceId::new("rng").unwrap();
        assert_eq!(DeviceId::numbered(&rng, 2).as_str(), "rng-2");
        assert_eq!(DeviceId::numbered(&rng, 64).as_str(), "rng-64");
        let long = DeviceId::new(&"x".repeat(31)).unwrap();
        assert_eq!(DeviceId::numbered(&long, 12).as_str().len(), 31);
        assert_eq!(std::format!("{:>6}", Short::new("com1").unwrap()), "  com1");
    }
}
