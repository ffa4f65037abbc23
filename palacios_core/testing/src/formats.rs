// SPDX-License-Identifier: MIT OR Apache-2.0
//! Formats of nested tables: the two vendors', and one in which every field is somewhere else.

use palacios_core::memory::nested::{BitChange, Format};

/// Bits 12–51.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// AMD's: the long-mode format, for the user (APM 2: 15.25.5).
pub const fn npt(levels: u8) -> Format {
    Format {
        levels,
        table: 0b111,
        leaf: 0b111,
        read_only: BitChange::clear(1 << 1),
        no_execute: BitChange::set(1 << 63),
        write_combining: BitChange::set(1 << 3),
        uncached: BitChange::set(3 << 3),
        large: 1 << 7,
        large_executable: true,
        huge: true,
        present: 1,
        address: ADDRESS,
    }
}

/// Intel's, write-back (SDM 3C: 29.3.2).
pub const fn ept(levels: u8) -> Format {
    Format {
        levels,
        table: 0b111,
        leaf: 0b111 | 6 << 3,
        read_only: BitChange::clear(1 << 1),
        no_execute: BitChange::clear(1 << 2),
        write_combining: BitChange {
            clear: 7 << 3,
            set: 1 << 3,
        },
        uncached: BitChange::clear(7 << 3),
        large: 1 << 7,
        large_executable: true,
        huge: true,
        present: 0b111,
        address: ADDRESS,
    }
}

/// Nobody's.
pub const ODD: Format = Format {
    levels: 4,
    table: 1 << 63 | 1 << 2,
    leaf: 1 << 2 | 1 << 58,
    read_only: BitChange {
        clear: 1 << 58,
        set: 1 << 3,
    },
    no_execute: BitChange::set(1 << 60),
    write_combining: BitChange::set(1 << 61),
    uncached: BitChange::set(1 << 62),
    large: 1 << 1,
    large_executable: true,
    huge: false,
    present: 1 << 2,
    address: ADDRESS,
};

/// The same of a processor that large pages of code would harm.
pub const fn no_large_code(format: Format) -> Format {
    Format {
        large_executable: false,
        ..format
    }
}

/// All of them.
pub const ALL: [Format; 5] = [npt(4), npt(5), ept(4), ept(5), ODD];
