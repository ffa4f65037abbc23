// SPDX-License-Identifier: MIT OR Apache-2.0
//! The leaves that say how CPUs share cores, caches and packages: one package, one core a vCPU, one thread a core. A
//! vCPU's number is its core's, and its APIC id.
//!
//! Kernels read one of several families of leaves, by vendor and age. All say the same here.

use super::cpu::Cpu;

/// How many low bits of an APIC id tell the cores apart.
fn width(cpu: &Cpu<'_>) -> u32 {
    cpu.count
        .checked_next_power_of_two()
        .map_or(31, u32::trailing_zeros)
}

/// The last id that a core can have.
fn last_id(cpu: &Cpu<'_>) -> u32 {
    (1u32 << width(cpu)).wrapping_sub(1)
}

/// Leaf 0xb: threads of a core, then cores of the package (SDM 2A: CPUID; APM 3: E.3.8).
pub(super) fn levels(cpu: &Cpu<'_>, subleaf: u32) -> [u32; 4] {
    const SMT: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    match subleaf {
        0 => [0, 1, SMT, cpu.index],
        1 => [width(cpu), cpu.count, CORE | 1, cpu.index],
        _ => [0, 0, subleaf & 0xff, cpu.index],
    }
}

/// Leaf 0x8000_001d: a cache of the host's, and who shares it. The third level and beyond are the package's, the
/// others a core's (APM 3: E.4.15).
pub(super) fn caches(cpu: &Cpu<'_>, [eax, ebx, ecx, edx]: [u32; 4]) -> [u32; 4] {
    const KIND: u32 = 0x1f;
    const SHARED_BY: u32 = 0xfff << 14;
    const CORES: u32 = 0x3f << 26;
    if eax & KIND == 0 {
        return [0; 4];
    }
    let shared_by = if eax >> 5 & 7 >= 3 { last_id(cpu) } else { 0 };
    let eax = eax & !(SHARED_BY | CORES) | shared_by << 14 & SHARED_BY;
    [eax, ebx, ecx, edx]
}

/// Leaf 4: the same, with the package's cores (SDM 2A: CPUID).
pub(super) fn caches_and_cores(cpu: &Cpu<'_>, native: [u32; 4]) -> [u32; 4] {
    let [eax, ebx, ecx, edx] = caches(cpu, native);
    match eax {
        0 => [0; 4],
        _ => [eax | last_id(cpu) << 26, ebx, ecx, edx],
    }
}

/// Leaf 0x8000_0008, ECX: cores less one, and the width of their part of an APIC id (APM 3: E.4.7). Reserved on others.
pub(super) fn cores(cpu: &Cpu<'_>) -> u32 {
    if !cpu.extended_topology {
        return 0;
    }
    width(cpu).min(0xf) << 12 | cpu.count.wrapping_sub(1) & 0xff
}

/// Leaf 0x8000_001e: extended APIC id; core, with one thread; node 0, the only one.
pub(super) fn extended(cpu: &Cpu<'_>) -> [u32; 4] {
    [cpu.index, cpu.index & 0xff, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::super::{answer, of_the_host, Cpu};
    use crate::features::{testing, Feature};

    /// Where a CPU is, and among how many: package, core, cores of the package, threads of the core.
    type CpuPosition = (u32, u32, u32, u32);

    /// What CPU `index` of `count` answers on a host.
    fn ask(
        (index, count): (u32, u32),
        extended_topology: bool,
        host: &dyn Fn(u32, u32) -> [u32; 4],
        (leaf, subleaf): (u32, u32),
    ) -> [u32; 4] {
        let gone: &[Feature] = match extended_topology {
            true => &[],
            false => &[Feature::Topoext],
        };
        let cpu = Cpu {
            index,
            count,
            cr4: 0,
            xcr0: 1,
            apic_enabled: true,
            tsc_stable: true,
            physical_bits: 48,
            extended_topology,
            features: &testing::on(host, testing::BACKEND, gone),
        };
        answer(&cpu, leaf, subleaf, host)
    }

    /// A host of 96 cores with two threads each, all of it visible: three levels of caches, topology extensions.
    fn host(extended: bool) -> impl Fn(u32, u32) -> [u32; 4] {
        move |leaf, subleaf| match leaf {
            0 => [0x20, 0, 0, 0],
            4 | 0x8000_001d if subleaf < 4 && extended == (leaf != 4) => {
                let level = [1, 1, 2, 3][subleaf as usize];
                [1 | level << 5 | 95 << 14 | 63 << 26, 63, 1023, 0]
            }
            4 | 0x8000_001d => [0; 4],
            0x8000_0000 => [0x8000_0028, 0, 0, 0],
            _ => [u32::MAX; 4],
        }
    }

    /// By the levels of leaf 0xb, as new kernels do on every processor.
    fn by_levels(ask: &dyn Fn(u32, u32) -> [u32; 4]) -> CpuPosition {
        let [smt, threads, ..] = ask(0xb, 0);
        let [width, all, _, id] = ask(0xb, 1);
        let core = (id & ((1 << width) - 1)) >> smt;
        (id >> width, core, all / threads, threads)
    }

    /// By leaves 1 and 4, as old kernels do where there are no extended leaves.
    fn by_leaf_4(ask: &dyn Fn(u32, u32) -> [u32; 4]) -> CpuPosition {
        let [_, ebx, _, edx] = ask(1, 0);
        let (id, logical) = (ebx >> 24, ebx >> 16 & 0xff);
        let core_ids = (ask(4, 0)[0] >> 26) + 1;
        assert_eq!(edx >> 28 & 1 != 0, logical > 1);
        let threads = logical.next_power_of_two() / core_ids;
        (id / core_ids, id % core_ids, logical / threads, threads)
    }

    /// By leaf 0x8000_0008, as old kernels do where it is not reserved.
    fn by_cores(ask: &dyn Fn(u32, u32) -> [u32; 4]) -> CpuPosition {
        let [_, ebx, ..] = ask(1, 0);
        let (id, ecx) = (ebx >> 24, ask(0x8000_0008, 0)[2]);
        let (cores, width) = ((ecx & 0xff) + 1, ecx >> 12 & 0xf);
        let legacy = ask(0x8000_0001, 0)[2] & 2 != 0;
        assert_eq!(legacy, cores > 1, "leaf 1 counts cores, not threads");
        (
            id >> width,
            id & ((1 << width) - 1),
            cores,
            (ebx >> 16 & 0xff) / cores,
        )
    }

    /// By leaf 0x8000_001e, as kernels do where there are topology extensions.
    fn by_extensions(ask: &dyn Fn(u32, u32) -> [u32; 4]) -> CpuPosition {
        assert_ne!(ask(0x8000_0001, 0)[2] & 1 << 22, 0);
        let [id, ebx, ecx, _] = ask(0x8000_001e, 0);
        let (cores, threads) = ((ask(0x8000_0008, 0)[2] & 0xff) + 1, (ebx >> 8 & 0xff) + 1);
        assert_eq!((id, ecx), (ebx & 0xff, 0), "one node");
        (0, ebx & 0xff, cores, threads)
    }

    fn each_cpu(extended: bool, test: impl Fn(&dyn Fn(u32, u32) -> [u32; 4], CpuPosition)) {
        for count in 1..=64 {
            for index in 0..count {
                let host = host(extended);
                let ask = |leaf, subleaf| ask((index, count), extended, &host, (leaf, subleaf));
                test(&ask, (0, index, count, 1));
            }
        }
    }

    #[test]
    fn all_standard_leaves_say_the_same() {
        each_cpu(false, |ask, place| {
            assert_eq!(by_levels(ask), place);
            assert_eq!(by_leaf_4(ask), place);
            assert_eq!(ask(0x8000_0008, 0)[2], 0);
            assert_eq!(ask(0x8000_001e, 0), [0; 4]);
        });
    }

    #[test]
    fn all_extended_leaves_say_the_same() {
        each_cpu(true, |ask, place| {
            assert_eq!(by_levels(ask), place);
            assert_eq!(by_cores(ask), place);
            assert_eq!(by_extensions(ask), place);
            assert_eq!(ask(4, 0), [0; 4]);
        });
    }

    #[test]
    fn the_last_cache_is_the_packages_and_the_others_a_cores() {
        for (extended, leaf) in [(false, 4), (true, 0x8000_001d)] {
            each_cpu(extended, |ask, (_, _, count, _)| {
                let shared_by = |n| (ask(leaf, n)[0] >> 14 & 0xfff) + 1;
                let ids = count.next_power_of_two();
                assert_eq!([0, 1, 2, 3].map(shared_by), [1, 1, 1, ids]);
                assert_eq!(ask(leaf, 4), [0; 4], "the end of the list");
                assert_eq!(ask(leaf, 3)[1..3], [63, 1023], "its size is the host's");
            });
        }
    }

    #[test]
    fn the_extended_leaves_of_topology_are_within_the_last() {
        let last = of_the_host(0x8000_0000, host(true)).unwrap()[0];
        assert!(last >= 0x8000_001e);
    }

    #[test]
    fn a_host_without_extensions_shows_none() {
        let host = |leaf, subleaf| match leaf {
            0x8000_0001 => [0; 4],
            _ => host(true)(leaf, subleaf),
        };
        let ask = |leaf| ask((1, 4), true, &host, (leaf, 0));
        assert_eq!(ask(0x8000_0001)[2], 1 << 1, "leaf 1 counts cores");
        assert_eq!(ask(0x8000_001d), [0; 4]);
        assert_eq!(ask(0x8000_001e), [0; 4]);
    }
}
