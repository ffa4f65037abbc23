// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MSR bitmaps: which model-specific registers a guest reaches without an exit (SDM 3C: 24.6.9). All vCPUs share them.

use super::super::pages::Pages;
use super::caps::msr;
use crate::features::GuestFeatures;
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

/// The MSR bitmaps. A guest gets the one that fits its CPUID.
pub(super) struct Maps<H: Host> {
    /// Lets all through that is switched.
    open: Pages<H>,
    /// Lets nothing through: for a guest that lacks one of the registers, which then is a #GP.
    closed: Pages<H>,
}

impl<H: Host> Maps<H> {
    pub(super) fn new(host: &H) -> Result<Self, NoMemory> {
        Ok(Self {
            open: msr_map(host, SWITCHED.into_iter().chain(IN_WINDOWS))?,
            closed: msr_map(host, [])?,
        })
    }
    /// The map for a guest with these features.
    pub(super) fn of(&self, features: &GuestFeatures) -> &Pages<H> {
        let mut passing = SWITCHED.iter().chain(&IN_WINDOWS);
        match passing.all(|index| features.has_msr(*index)) {
            true => &self.open,
            false => &self.closed,
        }
    }
}

/// A map that lets reads and writes of `passed` through.
fn msr_map<H: Host>(host: &H, passed: impl IntoIterator<Item = u32>) -> Result<Pages<H>, NoMemory> {
    let mut map = Pages::new(host, 1)?;
    let bytes = map.bytes_mut();
    bytes.fill(0xff);
    for index in passed {
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
    use crate::features::{testing, Feature};

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
        let passing: Vec<u32> = SWITCHED.into_iter().chain(IN_WINDOWS).collect();
        let mut map = msr_map(&FakeHost::default(), passing.clone()).unwrap();
        let map = map.bytes_mut();
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

    #[test]
    fn a_guest_reaches_what_its_cpuid_shows() {
        let maps = Maps::new(&FakeHost::default()).unwrap();
        let map = |gone: &[Feature]| maps.of(&testing::all_but(gone)).at();
        assert_eq!(map(&[]), maps.open.at());
        for gone in [Feature::Sep, Feature::Pat, Feature::Syscall, Feature::Lm] {
            assert_eq!(map(&[gone]), maps.closed.at(), "{gone:?}");
        }
    }
}
