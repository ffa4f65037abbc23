// SPDX-License-Identifier: MIT OR Apache-2.0
//! Model-specific registers that a vendor's processors have whatever CPUID says, because their family has them. Kernels know the
//! family and do not ask, so a guest must find them. Each vendor has a table; one that is in none is a #GP.
//!
//! Behind none of them is a register of the host's: what a guest writes there changes nothing.
//!
//! To add one: a row in its vendor's table, `svm/vendor_msrs.rs` or `vmx/vendor_msrs.rs`. If a bit of CPUID guards it, it belongs
//! elsewhere: an arm in `vcpu/msr_access.rs`, and its feature in `features/msr_gate.rs`.
#![forbid(unsafe_code)]

use crate::features::Word;

/// A row: registers that lie side by side and are alike.
#[derive(Clone, Copy, Debug)]
pub struct VendorMsrs {
    /// The first one's number.
    pub first: u32,
    /// The last one's.
    pub last: u32,
    /// What is in them.
    pub content: Content,
    /// Where it stands that they are there, and who counts on it.
    pub source: &'static str,
}

/// What is in such a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// This for ever; writes are ignored.
    Constant(u64),
    /// Nothing: a read is a #GP, writes are ignored.
    WriteOnly,
    /// Nothing can be written: a write is a #GP.
    ReadOnly(u64),
    /// What the guest wrote, as far as it may change it. Nobody obeys it.
    Kept {
        /// Where it is kept.
        slot: Slot,
        /// What is there first.
        initial: u64,
        /// The bits that the guest may change. A change of others is ignored.
        writable: u64,
    },
    /// Words of the guest's CPUID, the upper half first, if there is one; writes are ignored.
    Cpuid(Option<Word>, Word),
    /// The processor's name, eight bytes in each of six registers; writes are ignored.
    Name,
}

/// What a virtual CPU keeps for the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// IA32_MISC_ENABLE.
    MiscEnable,
    /// IGNNE.
    Ignne,
}

/// How many slots there are.
pub const SLOTS: usize = 2;

impl VendorMsrs {
    /// One register.
    pub const fn one(index: u32, content: Content, source: &'static str) -> Self {
        Self::range(index, index, content, source)
    }
    /// All from `first` to `last`.
    pub const fn range(first: u32, last: u32, content: Content, source: &'static str) -> Self {
        Self {
            first,
            last,
            content,
            source,
        }
    }
    /// The row of the register `index` in `table`.
    pub fn find(table: &[Self], index: u32) -> Option<&Self> {
        table
            .iter()
            .find(|row| (row.first..=row.last).contains(&index))
    }
}

/// IA32_MISC_ENABLE (SDM 4: table 2-2).
pub mod misc_enable {
    /// Fast strings are on.
    pub const FAST_STRINGS: u64 = 1 << 0;
    /// There are no branch traces; read-only.
    pub const NO_BRANCH_TRACE: u64 = 1 << 11;
    /// There are no event samples; read-only.
    pub const NO_EVENT_SAMPLES: u64 = 1 << 12;
    /// As firmware leaves it.
    pub const INITIAL: u64 = FAST_STRINGS | NO_BRANCH_TRACE | NO_EVENT_SAMPLES;
    /// What a guest may change.
    pub const WRITABLE: u64 = !(NO_BRANCH_TRACE | NO_EVENT_SAMPLES);
}

#[cfg(test)]
pub(super) fn check(table: &[VendorMsrs]) {
    for pair in table.windows(2) {
        assert!(pair[0].last < pair[1].first, "{:x?}: the rows ascend", pair);
    }
    for row in table {
        assert!(row.first <= row.last, "{row:x?}");
        assert!(!row.source.is_empty(), "{row:x?}: each has its source");
    }
}
