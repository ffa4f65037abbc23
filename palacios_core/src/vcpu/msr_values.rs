// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model-specific registers of a vCPU that neither the backend nor the local APIC holds.
#![forbid(unsafe_code)]

use crate::backend::vendor_msrs::{Content, VendorMsrs, SLOTS};
use crate::backend::{Backend, Features};
use crate::features::GuestFeatures;
use crate::host::Host;

const MTRR_FIRST: u32 = 0x200;
const MTRR_LAST_VARIABLE: u32 = 0x20f;
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// The status of machine checks, and its bits: RIPV, EIPV, MCIP.
pub(super) const MCG_STATUS: u32 = 0x17a;
pub(super) const MCG_STATUS_BITS: u64 = 0b111;
/// Enabled, fixed ranges too; what no range covers is write-back. Firmware would have set it so.
const MTRR_DEFAULT: u64 = 1 << 11 | 1 << 10 | 6;
/// Eight pairs, eleven fixed ranges, the default type.
const MTRRS: usize = 28;
/// The first of the three leaves with the processor's name.
const NAME_LEAF: u32 = 0x8000_0002;

/// The registers, and what they depend on.
#[derive(Clone, Debug)]
pub(super) struct Msrs {
    backend: Features,
    guest: GuestFeatures,
    /// Kept, not obeyed: nested paging gives guests write-back memory.
    mtrrs: [u64; MTRRS],
    pub(super) mcg_status: u64,
    /// What the guest wrote to registers of the vendor's table.
    vendor: [u64; SLOTS],
}

impl Msrs {
    pub(super) fn new<H: Host, B: Backend<H>>(backend: &B, guest: &GuestFeatures) -> Self {
        let mut msrs = Self {
            backend: backend.features(),
            guest: *guest,
            mtrrs: [0; MTRRS],
            mcg_status: 0,
            vendor: [0; SLOTS],
        };
        msrs.power_on::<H, B>();
        msrs
    }
    /// As firmware leaves them.
    pub(super) fn power_on<H: Host, B: Backend<H>>(&mut self) {
        self.mtrrs = [0; MTRRS];
        if let Some(default) = self.mtrrs.last_mut() {
            *default = MTRR_DEFAULT;
        }
        self.mcg_status = 0;
        for row in B::VENDOR_MSRS {
            if let Content::Kept { slot, initial, .. } = row.content {
                self.vendor[slot as usize] = initial;
            }
        }
    }
    /// What the backend offers.
    pub(super) fn backend(&self) -> &Features {
        &self.backend
    }
    /// What the guest has.
    pub(super) fn guest(&self) -> &GuestFeatures {
        &self.guest
    }

    /// Where a register of memory types is kept.
    pub(super) fn mtrr(&mut self, index: u32) -> Option<&mut u64> {
        self.mtrrs.get_mut(mtrr_slot(index)?)
    }

    /// What is kept here, by its number: memory types, the machine check's status, what the vendor's table keeps and the guest has changed. So a
    /// guest that has changed nothing there may go on on processors that have no such register.
    pub(super) fn kept<H: Host, B: Backend<H>>(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let memory_types = (MTRR_FIRST..=MTRR_DEF_TYPE)
            .filter_map(|index| Some((index, *self.mtrrs.get(mtrr_slot(index)?)?)));
        let vendor = B::VENDOR_MSRS.iter().filter_map(|row| match row.content {
            Content::Kept { slot, initial, .. } => {
                let value = self.vendor[slot as usize];
                (value != initial).then_some((row.first, value))
            }
            _ => None,
        });
        memory_types
            .chain([(MCG_STATUS, self.mcg_status)])
            .chain(vendor)
    }

    /// A register of the vendor's table.
    pub(super) fn vendor<H: Host, B: Backend<H>>(&self, backend: &B, index: u32) -> Option<u64> {
        let row = VendorMsrs::find(B::VENDOR_MSRS, index)?;
        match row.content {
            Content::Constant(value) | Content::ReadOnly(value) => Some(value),
            Content::WriteOnly => None,
            Content::Kept { slot, .. } => Some(self.vendor[slot as usize]),
            Content::Cpuid(high, low) => {
                let high = high.map_or(0, |word| self.guest.word(word));
                Some(joined(high, self.guest.word(low)))
            }
            Content::Name => {
                let at = index.wrapping_sub(row.first);
                let [a, b, c, d] = backend.cpuid(NAME_LEAF.wrapping_add(at / 2), 0);
                Some(match at % 2 {
                    0 => joined(b, a),
                    _ => joined(d, c),
                })
            }
        }
    }
    /// Writes one; `false` if it takes nothing, or is in no table.
    pub(super) fn set_vendor<H: Host, B: Backend<H>>(&mut self, index: u32, value: u64) -> bool {
        match VendorMsrs::find(B::VENDOR_MSRS, index).map(|row| row.content) {
            None | Some(Content::ReadOnly(_)) => false,
            Some(Content::Kept { slot, writable, .. }) => {
                let kept = &mut self.vendor[slot as usize];
                *kept = *kept & !writable | value & writable;
                true
            }
            Some(Content::Constant(_) | Content::WriteOnly) => true,
            Some(Content::Cpuid(..) | Content::Name) => true,
        }
    }
}

/// Which of those that are kept a register of memory types is. They are in the order of their numbers.
fn mtrr_slot(index: u32) -> Option<usize> {
    let slot = match index {
        MTRR_FIRST..=MTRR_LAST_VARIABLE => index - MTRR_FIRST,
        0x250 => 16,
        0x258..=0x259 => 17 + (index - 0x258),
        0x268..=0x26f => 19 + (index - 0x268),
        MTRR_DEF_TYPE => 27,
        _ => return None,
    };
    Some(slot as usize)
}

fn joined(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Whether an MTRR takes `value` (SDM 3A: 11.11.2): memory types that there are, and nothing in reserved bits.
pub(super) fn valid_mtrr(index: u32, value: u64, physical_bits: u8) -> bool {
    const MASK_RESERVED: u64 = 0x7ff;
    const BASE_RESERVED: u64 = 0xf00;
    const DEF_TYPE_BITS: u64 = 0xcff;
    let is_type = |byte: u64| matches!(byte & 0xff, 0 | 1 | 4 | 5 | 6);
    let too_high = u64::MAX.checked_shl(physical_bits.into()).unwrap_or(0);
    match index {
        MTRR_FIRST..=MTRR_LAST_VARIABLE if index & 1 != 0 => {
            value & (MASK_RESERVED | too_high) == 0
        }
        MTRR_FIRST..=MTRR_LAST_VARIABLE => {
            value & (BASE_RESERVED | too_high) == 0 && is_type(value)
        }
        MTRR_DEF_TYPE => value & !DEF_TYPE_BITS == 0 && is_type(value),
        _ => value
            .to_le_bytes()
            .iter()
            .all(|byte| is_type((*byte).into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_types_are_checked() {
        for kind in 0..=255u64 {
            let known = [0, 1, 4, 5, 6].contains(&kind);
            assert_eq!(valid_mtrr(MTRR_DEF_TYPE, kind | 0xc00, 48), known);
            assert_eq!(valid_mtrr(0x200, kind | 0x8000_0000, 48), known);
            for byte in 0..8 {
                assert_eq!(valid_mtrr(0x250, kind << (8 * byte), 48), known);
            }
        }
        assert!(valid_mtrr(0x20f, 0xffff_ffff_f800, 48));
        for reserved in [1, 1 << 10, 1 << 48, 1 << 63] {
            assert!(!valid_mtrr(0x20f, reserved, 48), "{reserved:#x}");
        }
        for reserved in [1 << 8, 1 << 11, 1 << 48, 1 << 63] {
            assert!(!valid_mtrr(0x20e, reserved, 48), "{reserved:#x}");
        }
        for reserved in [1 << 8, 1 << 9, 1 << 12, 1 << 63] {
            assert!(!valid_mtrr(MTRR_DEF_TYPE, reserved, 48), "{reserved:#x}");
        }
    }
}
