// SPDX-License-Identifier: MIT OR Apache-2.0
//! The permission maps: which ports and model-specific registers a guest reaches without an exit. What passes are registers
//! that are switched with the guest, and that its CPUID says are there. All vCPUs share the maps.

use super::super::pages::Pages;
use crate::features::GuestFeatures;
use crate::host::{Host, NoMemory};

/// The I/O permission map covers 64 Ki ports and three bits more (APM 2: 15.10.1).
const IOPM_PAGES: u32 = 3;
/// Four vectors of 2 KiB, two bits a register; the last is reserved (APM 2: 15.11).
const MSRPM_PAGES: u32 = 2;

/// Model-specific registers that VMLOAD and VMSAVE switch (APM 2: 15.5.2), and PAT, of which a guest under nested paging
/// has its own (APM 2: 15.25.2).
pub(super) const SWITCHED: [u32; 11] = [
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::PAT,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
];

/// Numbers of model-specific registers.
pub(super) mod msr {
    pub use super::super::super::msr::*;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const TSC_RATIO: u32 = 0xc000_0104;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const NB_CFG: u32 = 0xc001_001f;
    pub const MMIO_CONFIG: u32 = 0xc001_0058;
    pub const VM_CR: u32 = 0xc001_0114;
    pub const VM_HSAVE_PA: u32 = 0xc001_0117;
    pub const DE_CFG: u32 = 0xc001_1029;
}

/// The MSR permission maps. A guest gets the one that fits its CPUID.
pub(super) struct Maps<H: Host> {
    /// Lets all through that is switched.
    open: Pages<H>,
    /// Lets all through but SPEC_CTRL.
    without_spec_ctrl: Pages<H>,
    /// Lets nothing through: for a guest that lacks one of the registers, which then is a #GP.
    closed: Pages<H>,
}

impl<H: Host> Maps<H> {
    pub(super) fn new(host: &H) -> Result<Self, NoMemory> {
        Ok(Self {
            open: msr_map(host, SWITCHED.into_iter().chain([msr::SPEC_CTRL]))?,
            without_spec_ctrl: msr_map(host, SWITCHED)?,
            closed: msr_map(host, [])?,
        })
    }
    /// The map for a guest with these features.
    pub(super) fn of(&self, features: &GuestFeatures) -> &Pages<H> {
        if !SWITCHED.iter().all(|index| features.has_msr(*index)) {
            return &self.closed;
        }
        match features.has_msr(msr::SPEC_CTRL) {
            true => &self.open,
            false => &self.without_spec_ctrl,
        }
    }
}

/// An I/O permission map that intercepts all.
pub(super) fn io_map<H: Host>(host: &H) -> Result<Pages<H>, NoMemory> {
    let mut map = Pages::new(host, IOPM_PAGES)?;
    map.bytes_mut().fill(0xff);
    Ok(map)
}

/// An MSR permission map that lets reads and writes of `passed` through and intercepts all else.
pub(super) fn msr_map<H: Host>(
    host: &H,
    passed: impl IntoIterator<Item = u32>,
) -> Result<Pages<H>, NoMemory> {
    let mut map = Pages::new(host, MSRPM_PAGES)?;
    let bytes = map.bytes_mut();
    bytes.fill(0xff);
    for index in passed {
        if let Some((at, bits)) = place(index) {
            if let Some(byte) = bytes.get_mut(at) {
                *byte &= !bits;
            }
        }
    }
    Ok(map)
}

/// The byte of the map that a register's two bits are in, and the bits: the lower is for reads, the upper for writes. A
/// register outside of the three ranges has none, and is always intercepted (APM 2: table 15-8).
fn place(index: u32) -> Option<(usize, u8)> {
    let base = match index {
        0..=0x1fff => 0,
        0xc000_0000..=0xc000_1fff => 0x800,
        0xc001_0000..=0xc001_1fff => 0x1000,
        _ => return None,
    };
    let n = index & 0x1fff;
    Some((base + (n / 4) as usize, 0b11 << (n % 4 * 2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::fake_host::FakeHost;
    use crate::features::{testing, Feature};

    /// Whether the processor would exit, worded after APM 2: 15.11 rather than after the code above.
    fn intercepted(map: &[u8], index: u32, write: bool) -> bool {
        let vector = match index >> 13 {
            0 => 0,
            0x6_0000 => 1,
            0x6_0008 => 2,
            _ => return true,
        };
        let bit = vector * 2048 * 8 + (index & 0x1fff) as usize * 2 + usize::from(write);
        map[bit / 8] & 1 << (bit % 8) != 0
    }

    #[test]
    fn only_what_is_switched_passes() {
        let mut map = msr_map(&FakeHost::default(), SWITCHED).unwrap();
        let map = map.bytes_mut();
        assert_eq!(map.len(), 8192);
        let all = (0..0x3000)
            .chain(0xbfff_ff00..0xc000_3000)
            .chain(0xc000_ff00..0xc001_3000);
        for index in all {
            for write in [false, true] {
                let passes = SWITCHED.contains(&index);
                assert_eq!(intercepted(map, index, write), !passes, "{index:#x}");
            }
        }
        let clear: u32 = map.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(clear, 2 * SWITCHED.len() as u32);
    }

    #[test]
    fn a_guest_reaches_what_its_cpuid_shows() {
        let maps = Maps::new(&FakeHost::default()).unwrap();
        let map = |gone: &[Feature]| maps.of(&testing::all_but(gone)).at();
        assert_eq!(map(&[]), maps.open.at());
        let spec_ctrl = [
            Feature::AmdIbrs,
            Feature::AmdStibp,
            Feature::AmdSsbd,
            Feature::AmdPsfd,
        ];
        assert_eq!(map(&spec_ctrl[1..]), maps.open.at());
        assert_eq!(map(&spec_ctrl), maps.without_spec_ctrl.at());
        for gone in [Feature::Sep, Feature::Pat, Feature::Syscall, Feature::Lm] {
            assert_eq!(map(&[gone]), maps.closed.at(), "{gone:?}");
        }
    }

    #[test]
    fn every_port_is_intercepted() {
        let mut map = io_map(&FakeHost::default()).unwrap();
        assert_eq!(map.bytes_mut().len(), 12288);
        assert!(map.bytes_mut().iter().all(|byte| *byte == 0xff));
    }
}
