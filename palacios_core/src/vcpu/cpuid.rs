// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the guest's CPU says of itself: what the host's says, less all that this VMM does not carry, plus our signature.
//!
//! Features are let through by list, never by default: a bit that a new CPU adds stays hidden until it is known what it
//! takes to virtualize it.
#![forbid(unsafe_code)]

mod topology;

use crate::state::cr4;

/// The signature in EBX, ECX and EDX of leaf 0x4000_0000.
pub const SIGNATURE: [u8; 12] = *b"V3VEEV3VEE\0\0";
/// The first hypervisor leaf.
pub const HYPERVISOR_BASE: u32 = 0x4000_0000;

/// The bits of XCR0: x87, SSE, AVX, and the three of AVX-512.
const XCR0_X87: u64 = 1;
const XCR0_AVX_512: u64 = 7 << 5;

/// What the answers depend on.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Its number, which is its APIC id.
    pub index: u32,
    /// How many there are.
    pub count: u32,
    /// CR4 now.
    pub cr4: u64,
    /// XCR0 now.
    pub xcr0: u64,
    /// What the guest may set in XCR0.
    pub xcr0_allowed: u64,
    /// The local APIC is enabled in its base register.
    pub apic_enabled: bool,
    /// All vCPUs' time stamp counters agree, and run at one rate in all states.
    pub tsc_stable: bool,
    /// Cores and caches are told in the extended leaves: `Backend::EXTENDED_TOPOLOGY`.
    pub extended_topology: bool,
}

const fn bits(list: &[u32]) -> u32 {
    let (mut mask, mut i) = (0, 0);
    while i < list.len() {
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

/// SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, x2APIC, MOVBE, POPCNT, TSC deadline, AES, F16C, RDRAND.
const LEAF_1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 29, 30]);
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
const AVX: u32 = 1 << 28;
const HYPERVISOR: u32 = 1 << 31;
/// FPU, VME, DE, PSE, TSC, MSR, PAE, CX8, SEP, MTRR, PGE, CMOV, PAT, PSE-36, CLFLUSH, MMX, FXSR, SSE, SSE2.
const LEAF_1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 8, 11, 12, 13, 15, 16, 17, 19, 23, 24, 25, 26,
]);
const APIC: u32 = 1 << 9;
const HTT: u32 = 1 << 28;
/// FSGSBASE, BMI1, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
const LEAF_7_EBX: u32 = bits(&[0, 3, 7, 8, 9, 10, 18, 19, 20, 23, 24, 29]);
const AVX2: u32 = 1 << 5;
const AVX_512_EBX: u32 = bits(&[16, 17, 21, 28, 30, 31]);
/// UMIP, GFNI.
const LEAF_7_ECX: u32 = bits(&[2, 8]);
/// VAES, VPCLMULQDQ.
const AVX_ECX: u32 = bits(&[9, 10]);
/// VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ.
const AVX_512_ECX: u32 = bits(&[1, 6, 11, 12, 14]);
/// FSRM.
const LEAF_7_EDX: u32 = bits(&[4]);
/// LAHF, CR8 by LOCK MOV, ABM, SSE4A, misaligned SSE, PREFETCHW.
const LEAF_8_1_ECX: u32 = bits(&[0, 4, 5, 6, 7, 8]);
/// The bits that leaf 1 has too, SYSCALL, NX, MMX extensions, FXSR optimization, 1 GiB pages, long mode, 3DNow!.
const LEAF_8_1_EDX: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 8, 11, 12, 13, 15, 16, 17, 20, 22, 23, 24, 25, 26, 29, 30, 31,
]);
/// CLZERO, XSAVE of error pointers.
const LEAF_8_8_EBX: u32 = bits(&[0, 2]);
/// XSAVEOPT, XSAVEC, XGETBV with ECX 1.
const LEAF_D_1_EAX: u32 = bits(&[0, 1, 2]);
const XSAVEC: u32 = 1 << 1;

/// In EDX of leaf 0x8000_0007.
const INVARIANT_TSC: u32 = 1 << 8;

const MAX_LEAF: u32 = 0xd;
/// The last one for which there is an answer: [`topology`]'s.
const MAX_EXTENDED_LEAF: u32 = 0x8000_001e;

/// The answer to `CPUID` with these EAX and ECX. `native` asks the host's CPU.
pub fn answer(
    cpu: &Cpu,
    leaf: u32,
    subleaf: u32,
    native: impl Fn(u32, u32) -> [u32; 4],
) -> [u32; 4] {
    match leaf {
        0 => {
            let [max, ebx, ecx, edx] = native(0, 0);
            [max.min(MAX_LEAF), ebx, ecx, edx]
        }
        1 => leaf_1(cpu, native(1, 0)),
        // The APIC timer goes on in all power states.
        6 => [1 << 2, 0, 0, 0],
        7 if subleaf == 0 => leaf_7(cpu, native(7, 0)),
        4 => topology::caches_and_cores(cpu, native(4, subleaf)),
        0xb => topology::levels(cpu, subleaf),
        0xd => xsave(cpu, subleaf, native),
        HYPERVISOR_BASE => hypervisor(),
        0x4000_0001..=0x4fff_ffff => [0; 4],
        0x8000_0000 => {
            let [max, ebx, ecx, edx] = native(leaf, 0);
            [max.min(MAX_EXTENDED_LEAF), ebx, ecx, edx]
        }
        0x8000_0001 => {
            let [eax, ebx, ecx, edx] = native(leaf, 0);
            let ecx = ecx & LEAF_8_1_ECX | topology::features(cpu, ecx);
            [eax, ebx, ecx, edx & LEAF_8_1_EDX | apic(cpu)]
        }
        // The brand, and the caches.
        0x8000_0002..=0x8000_0006 => native(leaf, 0),
        0x8000_0007 if cpu.tsc_stable => [0, 0, 0, native(leaf, 0)[3] & INVARIANT_TSC],
        0x8000_0008 => {
            let [eax, ebx, _, _] = native(leaf, 0);
            let ecx = topology::cores(cpu);
            [eax & 0xffff, ebx & LEAF_8_8_EBX, ecx, 0]
        }
        0x8000_001d | 0x8000_001e if !topology::has_extensions(cpu, &native) => [0; 4],
        0x8000_001d => topology::caches(cpu, native(leaf, subleaf)),
        0x8000_001e => topology::extended(cpu),
        _ => [0; 4],
    }
}

fn apic(cpu: &Cpu) -> u32 {
    if cpu.apic_enabled {
        APIC
    } else {
        0
    }
}

fn leaf_1(cpu: &Cpu, [eax, ebx, ecx, edx]: [u32; 4]) -> [u32; 4] {
    let clflush = ebx & 0xff00;
    let count = cpu.count.min(255) << 16;
    let mut features = ecx & LEAF_1_ECX | X2APIC | TSC_DEADLINE | HYPERVISOR;
    if cpu.xcr0_allowed != 0 {
        features |= ecx & XSAVE;
        if cpu.xcr0_allowed & 4 != 0 {
            features |= ecx & AVX;
        }
        if cpu.cr4 & cr4::OSXSAVE != 0 {
            features |= OSXSAVE;
        }
    }
    if cpu.xcr0_allowed & 4 == 0 {
        // FMA and F16C have no meaning without AVX.
        features &= !(1 << 12 | 1 << 29);
    }
    let htt = if cpu.count > 1 { HTT } else { 0 };
    let ebx = clflush | count | cpu.index << 24;
    [eax, ebx, features, edx & LEAF_1_EDX | apic(cpu) | htt]
}

fn leaf_7(cpu: &Cpu, [_, ebx, ecx, edx]: [u32; 4]) -> [u32; 4] {
    let (mut b, mut c) = (LEAF_7_EBX, LEAF_7_ECX);
    if cpu.xcr0_allowed & 4 != 0 {
        (b, c) = (b | AVX2, c | AVX_ECX);
    }
    if cpu.xcr0_allowed & XCR0_AVX_512 == XCR0_AVX_512 {
        (b, c) = (b | AVX_512_EBX, c | AVX_512_ECX);
    }
    [0, ebx & b, ecx & c, edx & LEAF_7_EDX]
}

fn xsave(cpu: &Cpu, subleaf: u32, native: impl Fn(u32, u32) -> [u32; 4]) -> [u32; 4] {
    match subleaf {
        0 => {
            let size = |xcr0| xsave_bytes(xcr0, &native);
            let allowed = cpu.xcr0_allowed;
            [
                allowed as u32,
                size(cpu.xcr0),
                size(allowed),
                (allowed >> 32) as u32,
            ]
        }
        1 => match native(0xd, 1)[0] & LEAF_D_1_EAX {
            // Linux asks for the size when there is XSAVEC, and does not boot without an answer.
            eax if eax & XSAVEC != 0 => [eax, compacted_xsave_bytes(cpu.xcr0, &native), 0, 0],
            eax => [eax, 0, 0, 0],
        },
        2..=62 if cpu.xcr0_allowed >> subleaf & 1 != 0 => native(0xd, subleaf),
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
        && all_or_none(4, 2)
        && all_or_none(XCR0_AVX_512, XCR0_AVX_512 | 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Cpu = Cpu {
        index: 1,
        count: 4,
        cr4: 0,
        xcr0: 1,
        xcr0_allowed: 7,
        apic_enabled: true,
        tsc_stable: true,
        extended_topology: false,
    };

    fn all_ones(leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (0xd, 2) => [256, 576, 0, 0],
            (0 | 0x8000_0000, _) => [u32::MAX, 1, 2, 3],
            _ => [u32::MAX; 4],
        }
    }

    #[test]
    fn a_cpu_that_has_everything_shows_only_what_is_listed() {
        let [_, ebx, ecx, edx] = answer(&CPU, 1, 0, all_ones);
        assert_eq!(ebx >> 24, 1);
        assert_eq!(ebx >> 16 & 0xff, 4);
        assert_eq!(
            ecx & (1 << 5 | 1 << 3 | OSXSAVE),
            0,
            "virtualization, MONITOR, and XSAVE not enabled"
        );
        assert_ne!(ecx & HYPERVISOR, 0);
        assert_ne!(edx & APIC, 0);
        assert_eq!(answer(&CPU, 0x8000_0001, 0, all_ones)[2] & 4, 0);
        assert_eq!(answer(&CPU, 7, 0, all_ones)[1] & AVX_512_EBX, 0);
        assert_eq!(answer(&CPU, 0x8000_000a, 0, all_ones), [0; 4]);
        assert_eq!(answer(&CPU, 0, 0, all_ones)[0], MAX_LEAF);
        assert_eq!(answer(&CPU, 0x8000_0007, 0, all_ones)[3], INVARIANT_TSC);
        let unstable = Cpu {
            tsc_stable: false,
            ..CPU
        };
        assert_eq!(answer(&unstable, 0x8000_0007, 0, all_ones), [0; 4]);
    }

    #[test]
    fn the_signature_reads_as_text() {
        let [max, b, c, d] = answer(&CPU, HYPERVISOR_BASE, 0, all_ones);
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
        let cpu = Cpu {
            xcr0: 0x67,
            xcr0_allowed: 0xe7,
            ..CPU
        };
        assert_eq!(answer(&cpu, 0xd, 1, native), [7, 896 + 512, 0, 0]);
        let without = |leaf, subleaf| match native(leaf, subleaf) {
            [eax, ..] if (leaf, subleaf) == (0xd, 1) => [eax & !XSAVEC, 0, 0, 0],
            other => other,
        };
        assert_eq!(answer(&cpu, 0xd, 1, without), [5, 0, 0, 0]);
    }

    #[test]
    fn xsave_sizes_follow_xcr0() {
        let [low, now, max, high] = answer(&CPU, 0xd, 0, all_ones);
        assert_eq!((low, now, max, high), (7, 576, 832, 0));
        assert_eq!(answer(&CPU, 0xd, 1, all_ones), [7, 576, 0, 0]);
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
