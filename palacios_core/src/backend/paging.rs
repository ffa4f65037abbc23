// SPDX-License-Identifier: MIT OR Apache-2.0
//! What changes of the control registers mean for cached translations.

use crate::state::{cr0, cr4, efer, Control};

/// Changes of these by the VMM leave stale translations (APM 2: 15.16; SDM 3C: 28.3.3), as does any of CR3. PCIDE and the
/// protections are there because the architecture flushes for them when a guest sets them itself.
const PAGING_CR0: u64 = cr0::PG | cr0::WP | cr0::CD | cr0::NW;
const PAGING_CR4: u64 =
    cr4::PGE | cr4::PAE | cr4::PSE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::LA57 | cr4::PKE;
const PAGING_EFER: u64 = efer::NXE | efer::LMA | efer::LME;

/// Whether translations made under `old` may be wrong under `new`.
pub(super) fn changes_translation(old: &Control, new: &Control) -> bool {
    (old.cr0 ^ new.cr0) & PAGING_CR0 != 0
        || old.cr3 != new.cr3
        || (old.cr4 ^ new.cr4) & PAGING_CR4 != 0
        || (old.efer ^ new.efer) & PAGING_EFER != 0
}
