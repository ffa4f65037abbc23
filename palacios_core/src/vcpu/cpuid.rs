// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the guest's CPU says of itself: the features that it has (see [`crate::features`]), what the host's says of caches, sizes
//! and names, how many there are, and our signature.
#![forbid(unsafe_code)]

mod cpu;
mod topology;

pub use cpu::Cpu;

use crate::features::{Feature, Word};

/// The signature in EBX, ECX and EDX of leaf 0x4000_0000.
pub const SIGNATURE: [u8; 12] = *b"V3VEEV3VEE\0\0";
/// The first hypervisor leaf.
pub const HYPERVISOR_BASE: u32 = 0x4000_0000;

/// The bits of XCR0: x87, SSE, AVX, and the three of AVX-512.
const XCR0_X87: u64 = 1;
const XCR0_SSE: u64 = 1 << 1;
const XCR0_AVX: u64 = 1 << 2;
const XCR0_AVX_512: u64 = 7 << 5;

/// A leaf with features that each guest has, whatever the host's last one is.
const FEATURES_LEAF: u32 = 7;
/// The last leaf for which there is an answer, and the last extended one.
const MAX_LEAF: u32 = 0xd;
const MAX_EXTENDED_LEAF: u32 = 0x8000_0021;

/// The answer to `CPUID` with this EAX where it is the host's, but for how many leaves there are: vendor, name, and caches.
pub fn of_the_host(leaf: u32, native: impl Fn(u32, u32) -> [u32; 4]) -> Option<[u32; 4]> {
    let last = |least, most| {
        let [max, ebx, ecx, edx] = native(leaf, 0);
        Some([max.clamp(least, most), ebx, ecx, edx])
    };
    match leaf {
        0 => last(FEATURES_LEAF, MAX_LEAF),
        0x8000_0000 => last(0x8000_0000, MAX_EXTENDED_LEAF),
        0x8000_0002..=0x8000_0006 => Some(native(leaf, 0)),
        _ => None,
    }
}

/// The answer to `CPUID` with these EAX and ECX, to any but those [`of_the_host`]. `native` asks the host's CPU.
pub fn answer(
    cpu: &Cpu<'_>,
    leaf: u32,
    subleaf: u32,
    native: impl Fn(u32, u32) -> [u32; 4],
) -> [u32; 4] {
    match leaf {
        1 => leaf_1(cpu, native(1, 0)),
        4 => topology::caches_and_cores(cpu, native(4, subleaf)),
        6 => [cpu.word(Word::Leaf6Eax), 0, 0, 0],
        7 => leaf_7(cpu, subleaf),
        0xb => topology::levels(cpu, subleaf),
        0xd => xsave(cpu, subleaf, native),
        HYPERVISOR_BASE if cpu.features.has(Feature::Hypervisor) => hypervisor(),
        0x8000_0001 => {
            let [eax, ebx, ..] = native(leaf, 0);
            let (ecx, edx) = (cpu.word(Word::Extended1Ecx), cpu.word(Word::Extended1Edx));
            [eax, ebx, ecx, edx]
        }
        0x8000_0007 if cpu.tsc_stable => [0, 0, 0, cpu.word(Word::Extended7Edx)],
        0x8000_0008 => leaf_8000_0008(cpu, native(leaf, 0)),
        0x8000_001d if has_extended_topology(cpu) => topology::caches(cpu, native(leaf, subleaf)),
        0x8000_001e if has_extended_topology(cpu) => topology::extended(cpu),
        0x8000_0021 => [cpu.word(Word::Extended21Eax), 0, 0, 0],
        _ => [0; 4],
    }
}

fn has_extended_topology(cpu: &Cpu<'_>) -> bool {
    cpu.features.has(Feature::Topoext)
}

fn leaf_1(cpu: &Cpu<'_>, [eax, ebx, ..]: [u32; 4]) -> [u32; 4] {
    let clflush = ebx & 0xff00;
    let count = cpu.count.min(255) << 16;
    let ebx = clflush | count | cpu.index << 24;
    let (ecx, edx) = (cpu.word(Word::Leaf1Ecx), cpu.word(Word::Leaf1Edx));
    [eax, ebx, ecx, edx]
}

fn leaf_7(cpu: &Cpu<'_>, subleaf: u32) -> [u32; 4] {
    let second = cpu.word(Word::Leaf7Sub1Eax);
    match subleaf {
        0 => [
            u32::from(second != 0),
            cpu.word(Word::Leaf7Ebx),
            cpu.word(Word::Leaf7Ecx),
            cpu.word(Word::Leaf7Edx),
        ],
        1 => [second, 0, 0, 0],
        _ => [0; 4],
    }
}

/// The widths of addresses, and the cores.
fn leaf_8000_0008(cpu: &Cpu<'_>, [eax, ..]: [u32; 4]) -> [u32; 4] {
    let linear_bits = match cpu.features.has(Feature::La57) {
        true => 57,
        false => (eax >> 8 & 0xff).min(48),
    };
    let eax = u32::from(cpu.physical_bits) | linear_bits << 8;
    let ebx = cpu.word(Word::Extended8Ebx);
    [eax, ebx, topology::cores(cpu), 0]
}

fn xsave(cpu: &Cpu<'_>, subleaf: u32, native: impl Fn(u32, u32) -> [u32; 4]) -> [u32; 4] {
    match subleaf {
        0 if cpu.features.has(Feature::Xsave) => {
            let size = |xcr0| xsave_bytes(xcr0, &native);
            let allowed = cpu.features.xcr0();
            [
                allowed as u32,
                size(cpu.xcr0),
                size(allowed),
                (allowed >> 32) as u32,
            ]
        }
        1 => {
            // Linux asks for the size when there is XSAVEC, and does not boot without an answer.
            let bytes = match cpu.features.has(Feature::Xsavec) {
                true => compacted_xsave_bytes(cpu.xcr0, &native),
                false => 0,
            };
            [cpu.word(Word::LeafDSub1Eax), bytes, 0, 0]
        }
        2..=62 if cpu.features.xcr0() >> subleaf & 1 != 0 => native(0xd, subleaf),
        _ => [0; 4],
    }
}

const LEGACY_AND_HEADER: u32 = 576;

/// The size of the standard-format area for the components of `xcr0`.
fn xsave_bytes(xcr0: u64, native: impl Fn(u32, u32) -> [u32; 4]) -> u32 {
    (2..63)
        .filter(|n| xcr0 >> n & 1 != 0)
        .fold(LEGACY_AND_HEADER, |size, n| {
            let [bytes, offset, ..] = native(0xd, n);
            size.max(offset.saturating_add(bytes))
        })
}

/// The same in the format of XSAVEC: one behind the other, where some begin at a multiple of 64 (SDM 1: 13.4.3).
fn compacted_xsave_bytes(xcr0: u64, native: impl Fn(u32, u32) -> [u32; 4]) -> u32 {
    const ALIGNED: u32 = 1 << 1;
    (2..63)
        .filter(|n| xcr0 >> n & 1 != 0)
        .fold(LEGACY_AND_HEADER, |size, n| {
            let [bytes, _, flags, _] = native(0xd, n);
            let at = if flags & ALIGNED != 0 {
                size.saturating_add(63) & !63
            } else {
                size
            };
            at.saturating_add(bytes)
        })
}

fn hypervisor() -> [u32; 4] {
    let mut words = SIGNATURE.chunks_exact(4).map(|c| {
        c.iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u32::from(*byte))
    });
    let mut next = || words.next().unwrap_or(0);
    [HYPERVISOR_BASE, next(), next(), next()]
}

/// Whether a guest may set XCR0 to `value` (SDM 1: 13.3).
pub fn valid_xcr0(value: u64, allowed: u64) -> bool {
    let all_or_none = |bits: u64, needed: u64| value & bits == 0 || value & needed == needed;
    value & XCR0_X87 != 0
        && value & !allowed == 0
        && all_or_none(XCR0_AVX, XCR0_AVX | XCR0_SSE)
        && all_or_none(XCR0_AVX_512, XCR0_AVX_512 | XCR0_AVX | XCR0_SSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Features;
    use crate::features::testing::{self, all_ones};
    use crate::features::GuestFeatures;
    use crate::state::cr4;

    fn cpu(features: &GuestFeatures) -> Cpu<'_> {
        Cpu {
            index: 1,
            count: 4,
            cr4: 0,
            xcr0: 1,
            apic_enabled: true,
            tsc_stable: true,
            physical_bits: 48,
            extended_topology: false,
            features,
        }
    }

    /// All features of which the host saves `xcr0`.
    fn saving(xcr0: u64) -> GuestFeatures {
        let backend = Features {
            xcr0,
            ..testing::BACKEND
        };
        testing::on(&all_ones, backend, &[])
    }

    #[test]
    fn a_cpu_that_has_everything_shows_only_what_is_offered() {
        let features = saving(7);
        let guest = cpu(&features);
        let [_, ebx, ecx, edx] = answer(&guest, 1, 0, all_ones);
        assert_eq!(ebx >> 24, 1);
        assert_eq!(ebx >> 16 & 0xff, 4);
        assert_eq!(
            ecx & (1 << 5 | 1 << 3 | 1 << 27),
            0,
            "virtualization, MONITOR, and XSAVE not enabled"
        );
        assert_ne!(ecx & 1 << 31, 0, "the hypervisor's bit");
        assert_ne!(edx & 1 << 9, 0, "the local APIC's bit");
        assert_eq!(answer(&guest, 0x8000_0001, 0, all_ones)[2] & 4, 0);
        let avx_512 = 1 << 16 | 1 << 17 | 1 << 21 | 1 << 28 | 1 << 30 | 1 << 31;
        assert_eq!(answer(&guest, 7, 0, all_ones)[1] & avx_512, 0);
        assert_eq!(answer(&guest, 0x8000_000a, 0, all_ones), [0; 4]);
        assert_eq!(of_the_host(0, all_ones).unwrap()[0], MAX_LEAF);
        assert_eq!(answer(&guest, 0x8000_0007, 0, all_ones)[3], 1 << 8);
        let unstable = Cpu {
            tsc_stable: false,
            ..guest
        };
        assert_eq!(answer(&unstable, 0x8000_0007, 0, all_ones), [0; 4]);
    }

    #[test]
    fn there_are_as_many_leaves_as_are_answered() {
        let last = |leaf, max| of_the_host(leaf, |_, _| [max, 1, 2, 3]).unwrap();
        assert_eq!(last(0, 0x20), [0xd, 1, 2, 3]);
        assert_eq!(last(0, 0xb)[0], 0xb);
        assert_eq!(last(0, 1)[0], 7, "each guest has features in leaf 7");
        assert_eq!(last(0x8000_0000, 0x8000_0028)[0], MAX_EXTENDED_LEAF);
        assert_eq!(last(0x8000_0000, 0x8000_0008)[0], 0x8000_0008);
        assert_eq!(of_the_host(1, all_ones), None);
        assert_eq!(of_the_host(0x8000_0001, all_ones), None);
        assert_eq!(
            of_the_host(0x8000_0004, |leaf, _| [leaf; 4]),
            Some([0x8000_0004; 4])
        );
    }

    #[test]
    fn what_varies_follows_the_registers() {
        let features = testing::all_but(&[]);
        let with = |cr4, apic_enabled, count| {
            let guest = Cpu {
                cr4,
                apic_enabled,
                count,
                ..cpu(&features)
            };
            let bit = |leaf, register: usize, n: u32| {
                answer(&guest, leaf, 0, all_ones)[register] >> n & 1 != 0
            };
            [bit(1, 2, 27), bit(7, 2, 4), bit(1, 3, 9), bit(1, 3, 28)]
        };
        assert_eq!(with(0, false, 1), [false; 4]);
        assert_eq!(with(cr4::OSXSAVE, false, 1), [true, false, false, false]);
        assert_eq!(with(cr4::PKE, true, 1), [false, true, true, false]);
        assert_eq!(with(0, false, 2), [false, false, false, true]);
    }

    #[test]
    fn addresses_are_as_wide_as_the_guest_has_them() {
        let answer = |gone: &[Feature]| {
            let features = testing::all_but(gone);
            answer(&cpu(&features), 0x8000_0008, 0, |_, _| [57 << 8 | 52; 4])[0]
        };
        assert_eq!(answer(&[]), 57 << 8 | 48);
        assert_eq!(answer(&[Feature::La57]), 48 << 8 | 48);
    }

    #[test]
    fn without_its_bit_the_hypervisor_has_no_leaves() {
        let features = testing::all_but(&[Feature::Hypervisor]);
        assert_eq!(
            answer(&cpu(&features), HYPERVISOR_BASE, 0, all_ones),
            [0; 4]
        );
    }

    #[test]
    fn the_signature_reads_as_text() {
        let features = testing::all_but(&[]);
        let [max, b, c, d] = answer(&cpu(&features), HYPERVISOR_BASE, 0, all_ones);
        let text: Vec<u8> = [b, c, d].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(text, SIGNATURE);
        assert_eq!(max, HYPERVISOR_BASE);
    }

    #[test]
    fn compacted_sizes_leave_out_what_is_off() {
        // 2 has its place, 5 follows it at once, 6 at a multiple of 64, 7 is off.
        let native = |leaf: u32, subleaf: u32| match (leaf, subleaf) {
            (0xd, 1) => [7, 0, 0, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 5) => [24, 1088, 0, 0],
            (0xd, 6) => [512, 1152, 2, 0],
            (0xd, 7) => [1024, 1664, 0, 0],
            _ => [0; 4],
        };
        let sizes = |gone: &[Feature]| {
            let features = testing::all_but(gone);
            let guest = Cpu {
                xcr0: 0x67,
                ..cpu(&features)
            };
            answer(&guest, 0xd, 1, native)
        };
        assert_eq!(sizes(&[]), [15, 896 + 512, 0, 0]);
        assert_eq!(sizes(&[Feature::Xsavec]), [5, 0, 0, 0]);
        assert_eq!(sizes(&[Feature::Xsave]), [0; 4]);
    }

    #[test]
    fn xsave_sizes_follow_xcr0() {
        let features = saving(7);
        let guest = cpu(&features);
        let [low, now, max, high] = answer(&guest, 0xd, 0, all_ones);
        assert_eq!((low, now, max, high), (7, 576, 832, 0));
        assert_eq!(answer(&guest, 0xd, 1, all_ones), [15, 576, 0, 0]);
        let none = testing::all_but(&[Feature::Xsave]);
        assert_eq!(answer(&cpu(&none), 0xd, 0, all_ones), [0; 4]);
        assert!(
            valid_xcr0(7, 7)
                && valid_xcr0(1, 7)
                && !valid_xcr0(5, 7)
                && !valid_xcr0(6, 7)
                && !valid_xcr0(0xe7, 7)
        );
        assert!(valid_xcr0(0xe7, 0xe7) && !valid_xcr0(0x27, 0xe7));
    }
}
