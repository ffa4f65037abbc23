// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MSR bitmap: which model-specific registers a guest reaches without an exit (SDM 3C: 24.6.9). All vCPUs share one.

use super::super::pages::Pages;
use super::caps::msr;
use crate::host::{Host, NoMemory};

/// Registers that entries and exits switch.
pub(super) const SWITCHED: [u32; 6] = [
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::PAT,
    msr::FS_BASE,
    msr::GS_BASE,
];
/// Registers that are switched with the window (see [`super::super::switched`]), and are the guest's own meanwhile.
pub(super) const IN_WINDOWS: [u32; 5] = [
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::KERNEL_GS_BASE,
];

/// What a guest finds in registers that say what its processor is, and that its VMX is locked off (SDM 4: table 2-2).
pub(super) fn fixed(index: u32) -> Option<u64> {
    const FAST_STRINGS: u64 = 1 << 0;
    const NO_BRANCH_TRACE: u64 = 1 << 11;
    const NO_EVENT_SAMPLES: u64 = 1 << 12;
    const LOCKED: u64 = 1 << 0;
    Some(match index {
        msr::FEATURE_CONTROL => LOCKED,
        msr::MISC_ENABLE => FAST_STRINGS | NO_BRANCH_TRACE | NO_EVENT_SAMPLES,
        msr::PLATFORM_ID => 0,
        _ => return None,
    })
}

/// A map that lets reads and writes of what is switched through.
pub(super) fn msr_map<H: Host>(host: &H) -> Result<Pages<H>, NoMemory> {
    let mut map = Pages::new(host, 1)?;
    let bytes = map.bytes_mut();
    bytes.fill(0xff);
    for index in SWITCHED.into_iter().chain(IN_WINDOWS) {
        for (at, bit) in places(index).into_iter().flatten() {
            if let Some(byte) = bytes.get_mut(at) {
                *byte &= !bit;
            }
        }
    }
    Ok(map)
}

/// The bytes and bits for reads and for writes of a register; one outside of the two ranges always exits.
fn places(index: u32) -> Option<[(usize, u8); 2]> {
    let base = match index {
        0..=0x1fff => 0,
        0xc000_0000..=0xc000_1fff => 0x400,
        _ => return None,
    };
    let at = base + (index & 0x1fff) as usize / 8;
    let bit = 1 << (index % 8);
    Some([(at, bit), (at + 0x800, bit)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::fake_host::FakeHost;

    /// Whether the processor would exit, worded after SDM 3C: 24.6.9 rather than after the code above.
    fn exits(map: &[u8], index: u32, write: bool) -> bool {
        let part = match (index >> 13, write) {
            (0, false) => 0,
            (0x6_0000, false) => 1,
            (0, true) => 2,
            (0x6_0000, true) => 3,
            _ => return true,
        };
        let bit = part * 1024 * 8 + (index & 0x1fff) as usize;
        map[bit / 8] & 1 << (bit % 8) != 0
    }

    #[test]
    fn only_what_is_switched_passes() {
        let mut map = msr_map(&FakeHost::default()).unwrap();
        let map = map.bytes_mut();
        let passing: Vec<u32> = SWITCHED.into_iter().chain(IN_WINDOWS).collect();
        for index in (0..0x3000).chain(0xbfff_ff00..0xc000_3000) {
            for write in [false, true] {
                assert_eq!(
                    exits(map, index, write),
                    !passing.contains(&index),
                    "{index:#x}"
                );
            }
        }
        let clear: u32 = map.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(clear, 2 * passing.len() as u32);
    }
}
