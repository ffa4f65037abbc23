// SPDX-License-Identifier: MIT OR Apache-2.0
//! Addresses: three kinds that must not be mixed, 64 bits wide on every host.

use core::fmt;

/// Size of the smallest page.
pub const PAGE_SIZE: u64 = 4096;
/// Size of a large page, a leaf one level up.
pub const LARGE_PAGE_SIZE: u64 = 2 << 20;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address of the page it lies in.
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }
            /// Its offset in that page.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
            /// The address `bytes` further, if there is one.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(at) => Some(Self(at)),
                    None => None,
                }
            }
            /// The address `bytes` further, around the end of the address space.
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A guest-physical address.
    Gpa
);
address!(
    /// A guest-virtual (linear) address.
    Gva
);
address!(
    /// A host-physical address.
    Hpa
);

/// A guest-physical address behind which there is no RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRam(pub Gpa);

impl fmt::Display for NotRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no guest RAM at {}", self.0)
    }
}
