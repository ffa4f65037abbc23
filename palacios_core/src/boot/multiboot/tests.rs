// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels made here; the `multiboot` crate, which kernels use, reads what they are given.

use super::*;
use crate::boot::testing::{boot, put};
use crate::image::testing::Spec;
use crate::ram::RamLayout;
use crate::state::{cr0, Seg};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const TEXT: &[u8] = b"code of the kernel";

fn header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
    let fields = [HEADER_MAGIC, flags, checksum];
    fields
        .iter()
        .chain(addresses)
        .flat_map(|field| field.to_le_bytes())
        .collect()
}

/// An ELF file with a header's segment at `start`, linked 0xc000_0000 higher, and zeros up to `bytes`.
fn elf(is_64: bool, start: u64, bytes: u64, flags: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let le = |value: u64, wide: bool| value.to_le_bytes()[..if wide { 8 } else { 4 }].to_vec();
    let linked = start + 0xc000_0000;
    put(&mut file, 0, b"\x7fELF");
    put(&mut file, 4, &[1 + u8::from(is_64), 1, 1]);
    put(&mut file, 16, &[2, 0, if is_64 { 62 } else { 3 }, 0]);
    let data = [header(flags, &[]), TEXT.to_vec()].concat();
    let ph = if is_64 { 64 } else { 52 };
    put(&mut file, 24, &le(linked + 12, is_64));
    put(
        &mut file,
        if is_64 { 32 } else { 28 },
        &le(ph as u64, is_64),
    );
    put(
        &mut file,
        if is_64 { 54 } else { 42 },
        &[if is_64 { 56 } else { 32 }, 0, 1, 0],
    );
    put(&mut file, ph, &1u32.to_le_bytes());
    let fields = [0x200, linked, start, data.len() as u64, bytes];
    for (index, value) in fields.into_iter().enumerate() {
        let at = if is_64 { 8 + 8 * index } else { 4 + 4 * index };
        put(&mut file, ph + at, &le(value, is_64));
    }
    put(&mut file, 0x200, &data);
    file
}

fn kernel() -> Vec<u8> {
    elf(false, MIB, 0x3000, 3)
}

fn error(kernel: &[u8]) -> BootError {
    let spec = Spec {
        boot: "multiboot",
        ..Spec::default()
    };
    boot(&spec, &[kernel]).map(|_| ()).unwrap_err()
}

#[test]
fn a_kernel_reads_what_it_is_told() {
    let spec = Spec {
        bootargs: "-v token=42",
        memory: 5 << 30,
        blobs: vec![
            ("kernel", 0, None),
            ("module", 1, Some("one a=b")),
            ("module", 2, None),
        ],
        ..Spec::default()
    };
    let (state, memory) = boot(&spec, &[&kernel(), b"first", &[9; 5000]]).unwrap();
    assert_eq!(state.gprs[Reg::Rax], 0x2bad_b002);
    let told = crate::multiboot_oracle::read(state.gprs[Reg::Rbx], |at, len| memory.bytes(at, len))
        .unwrap();
    assert_eq!(
        (told.command_line.as_str(), told.loader_name.as_str()),
        ("-v token=42", "v3vee, like GRUB 2")
    );
    assert_eq!(told.bounds, (639, 3 * 1024 * 1024 - 1024));
    let map: Vec<_> = layout::memory_map(RamLayout::new(5 << 30))
        .map(|r| (r.start, r.bytes, r.kind == layout::RegionKind::Ram))
        .collect();
    assert_eq!(told.memory_map, map);
    let first = (MIB + 0x3000, MIB + 0x3005, "one a=b".into());
    let second = (MIB + 0x4000, MIB + 0x4000 + 5000, String::new());
    assert_eq!(told.modules, [first, second]);
    assert_eq!(memory.bytes(MIB + 0x3000, 5), b"first");
    assert_eq!(memory.bytes(MIB + 0x4000, 5000), [9; 5000]);
}

#[test]
fn segments_are_loaded_and_the_rest_of_them_zero() {
    for is_64 in [false, true] {
        let (state, memory) = boot(&Spec::default(), &[&elf(is_64, MIB, 0x3000, 0)]).unwrap();
        assert_eq!(memory.bytes(MIB + 12, TEXT.len()), TEXT);
        let end = 12 + TEXT.len();
        assert_eq!(
            memory.bytes(MIB + end as u64, 0x3000 - end),
            vec![0; 0x3000 - end]
        );
        assert_eq!(
            memory.bytes(MIB + 0x3000, 1),
            [0xa5],
            "what is not the kernel's stays"
        );
        // Linked high, entered low: paging is off.
        assert_eq!(state.rip, MIB + 12);
    }
}

/// So xv6 and JOS name it.
#[test]
fn an_entry_point_may_be_a_physical_address() {
    for is_64 in [false, true] {
        let mut file = elf(is_64, MIB, 0x3000, 0);
        put(&mut file, 24, &((MIB + 12) as u32).to_le_bytes());
        if is_64 {
            put(&mut file, 28, &[0; 4]);
        }
        let (state, _) = boot(&Spec::default(), &[&file]).unwrap();
        assert_eq!(state.rip, MIB + 12);
    }
}

#[test]
fn an_entry_point_that_could_be_either_is_virtual() {
    let mut file = elf(false, MIB, 0x3000, 0);
    put(&mut file, 52 + 8, &(MIB as u32 + 0x1000).to_le_bytes());
    put(&mut file, 24, &(MIB as u32 + 0x100c).to_le_bytes());
    let (state, _) = boot(&Spec::default(), &[&file]).unwrap();
    assert_eq!(state.rip, MIB + 12);
}

#[test]
fn enters_in_flat_protected_mode() {
    let (state, memory) = boot(&Spec::default(), &[&kernel()]).unwrap();
    assert_eq!(state.control.cr0 & (cr0::PE | cr0::PG), cr0::PE);
    assert_eq!(
        (state.control.efer, state.control.cr4, state.rflags),
        (0, 0, 2)
    );
    let cs = state.segments[Seg::Cs as usize];
    assert_eq!((cs.base, cs.limit, cs.attributes.0), (0, u32::MAX, 0xc9b));
    for seg in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs, Seg::Ss] {
        let segment = state.segments[seg as usize];
        assert_eq!(
            (segment.base, segment.limit, segment.attributes.0),
            (0, u32::MAX, 0xc93)
        );
    }
    assert_eq!(memory.u64(state.gdtr.base + 0x10), 0x00cf_9b00_0000_ffff);
    memory
        .write(Gpa(state.gprs[Reg::Rsp] - 64), &[1; 64])
        .unwrap();
}

/// Load addresses in the header count, in an ELF file, too.
#[test]
fn addresses_in_the_header_come_first() {
    let base = 2 * MIB as u32;
    for magic in [b"none", b"\x7fELF"] {
        let mut file = magic.to_vec();
        let addresses = [base + 32, base, base + 70, base + 0x2000, base + 40];
        put(&mut file, 64, &header(1 << 16, &addresses));
        put(&mut file, 96, b"loaded, not this");
        let (state, memory) = boot(&Spec::default(), &[&file]).unwrap();
        assert_eq!(state.rip, u64::from(base) + 40);
        assert_eq!(memory.bytes(u64::from(base), 70), file[32..102]);
        assert_eq!(memory.bytes(u64::from(base) + 64, 6), b"loaded");
        assert_eq!(
            memory.bytes(u64::from(base) + 70, 0x2000 - 70),
            [0; 0x2000 - 70]
        );
    }
}

#[test]
fn addresses_that_contradict_each_other() {
    let base = 2 * MIB as u32;
    let with = |addresses: [u32; 5]| {
        let mut file = vec![0; 4096];
        put(&mut file, 64, &header(1 << 16, &addresses));
        error(&file)
    };
    assert!(matches!(
        with([base, base + 1, 0, 0, base]),
        BootError::BadKernel(_)
    ));
    assert!(matches!(
        with([base + 65, base, 0, 0, base]),
        BootError::BadKernel(_)
    ));
    assert!(matches!(
        with([base, base, base - 1, 0, base]),
        BootError::BadKernel(_)
    ));
    assert!(matches!(
        with([base, base, base + 64, base + 63, base]),
        BootError::BadKernel(_)
    ));
    assert!(matches!(
        with([base, base, base + 5000, 0, base]),
        BootError::Truncated { .. }
    ));
    assert!(matches!(
        with([base, base, 0, 0, base - 1]),
        BootError::BadKernel(_)
    ));
    assert!(matches!(
        with([base, base, 0, u32::MAX, base]),
        BootError::SegmentTooHigh
    ));
}

#[test]
fn kernels_that_cannot_be_loaded() {
    assert!(error(b"\x7fELF").to_string().contains("vmlinux"));
    assert_eq!(error(&elf(false, MIB, 0x3000, 4)), BootError::NeedsDisplay);
    assert_eq!(
        error(&elf(false, MIB, 0x3000, 0x8001)),
        BootError::UnknownFlags(0x8000)
    );
    assert!(error(&elf(false, 0x9_0000, 0xf000, 0))
        .to_string()
        .contains("1 MiB or above"));
    assert!(matches!(
        error(&elf(false, 256 * MIB, 0x3000, 0)),
        BootError::NeedsMemory { .. }
    ));
    let too_high = error(&elf(true, 4 << 30, 0x3000, 0));
    assert_eq!(too_high, BootError::SegmentTooHigh);
    assert!(too_high.to_string().contains("3072 MiB"));
    assert!(error(&elf(false, MIB, 20, 0))
        .to_string()
        .contains("longer in its file"));
    let mut entry = kernel();
    put(&mut entry, 24, &7u32.to_le_bytes());
    assert!(error(&entry).to_string().contains("entry point"));
    let mut other = kernel();
    other[18] = 0x28;
    assert!(error(&other).to_string().contains("another processor"));
    assert!(matches!(
        error(&kernel()[..0x210]),
        BootError::Truncated { .. }
    ));
    let unsure = boot(&Spec::default(), &[b"MZ no kernel"])
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(unsure, BootError::UnknownKernel { .. }));
}

/// 65535 segments over each other would take hours to clear.
#[test]
fn overlapping_segments_are_refused_quickly() {
    let mut file = elf(false, 2 * MIB, 128 * MIB, 0);
    let segment = file[52..84].to_vec();
    put(&mut file, 28, &0x400u32.to_le_bytes());
    put(&mut file, 44, &u16::MAX.to_le_bytes());
    put(&mut file, 0x400, &segment.repeat(u16::MAX.into()));
    assert_eq!(
        error(&file),
        BootError::BadKernel(
            "its segments overlap: together they are longer than the memory that they cover"
        )
    );
}

#[test]
fn modules_that_do_not_fit() {
    let spec = |memory: u64, bootargs| Spec {
        memory,
        blobs: vec![("kernel", 0, None), ("module", 1, Some(bootargs))],
        ..Spec::default()
    };
    let module = vec![1; 2 << 20];
    let small = boot(&spec(3 * MIB, ""), &[&kernel(), &module])
        .map(|_| ())
        .unwrap_err();
    assert_eq!(
        small,
        BootError::NeedsMemory {
            need: 3 * MIB + 0x3000,
            have: 3 * MIB
        }
    );
    assert!(boot(&spec(4 * MIB, ""), &[&kernel(), &module]).is_ok());
    let long = Box::leak("x".repeat(600_000).into_boxed_str());
    let long = boot(&spec(64 * MIB, long), &[&kernel(), b""])
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(long, BootError::CommandLineTooLong { bytes: 600_034, .. }),
        "{long}"
    );
}

/// Each on its page, behind the modules.
#[test]
fn initial_file_systems_become_the_last_module() {
    let spec = Spec {
        blobs: vec![
            ("kernel", 0, None),
            ("initrd", 1, None),
            ("module", 2, Some("one")),
            ("initrd", 3, None),
        ],
        ..Spec::default()
    };
    let (state, memory) = boot(&spec, &[&kernel(), b"first", b"module", b"more"]).unwrap();
    let told = crate::multiboot_oracle::read(state.gprs[Reg::Rbx], |at, len| memory.bytes(at, len));
    let modules = told.unwrap().modules;
    let contents = |n: usize| {
        let (start, end, _) = modules[n];
        assert_eq!(start % 4096, 0);
        memory.bytes(start, (end - start) as usize)
    };
    assert_eq!((modules.len(), modules[0].2.as_str()), (2, "one"));
    assert_eq!(contents(0), b"module");
    assert_eq!(
        (contents(1), modules[1].2.as_str()),
        (b"first\0\0\0more".to_vec(), "")
    );
}

#[test]
fn the_header_is_found_only_where_it_may_be() {
    for (at, found) in [
        (0, true),
        (8180, true),
        (8184, false),
        (8192, false),
        (2, false),
    ] {
        let mut file = vec![0; at];
        file.extend(header(0, &[]));
        assert_eq!(has_header(&file), found, "{at}");
    }
}

proptest! {
    #[test]
    fn spoiled_kernels_load_or_fail(is_64 in any::<bool>(), at in 0usize..0x210, value in any::<[u8; 4]>()) {
        let mut file = elf(is_64, MIB, 0x3000, 0);
        put(&mut file, at, &value);
        let _ = boot(&Spec { boot: "multiboot", memory: 4 * MIB, ..Spec::default() }, &[&file]);
    }

    #[test]
    fn random_addresses_load_or_fail(addresses in any::<[u32; 5]>(), narrow in any::<bool>()) {
        let addresses = if narrow { addresses.map(|a| 0x20_0000 + a % 0x1000) } else { addresses };
        let mut file = header(1 << 16, &addresses);
        file.extend([1; 5000]);
        let _ = boot(&Spec { memory: 4 * MIB, ..Spec::default() }, &[&file]);
    }
}
