// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels made here; what they are told is read tag by tag, as the specification says.

use super::*;
use crate::boot::testing::{boot, put, TestMemory};
use crate::image::testing::Spec;
use crate::ram::RamLayout;
use crate::state::{cr0, Seg};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// A header with these tags: kind, flags, contents.
fn header(tags: &[(u16, u16, &[u32])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, flags, words) in tags.iter().chain([&(0, 0, &[][..])]) {
        body.extend(kind.to_le_bytes());
        body.extend(flags.to_le_bytes());
        body.extend((8 + 4 * words.len() as u32).to_le_bytes());
        body.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        body.resize(body.len().next_multiple_of(8), 0);
    }
    let bytes = 16 + body.len() as u32;
    let sum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(bytes);
    let head = [HEADER_MAGIC, 0, bytes, sum];
    let head = head.into_iter().flat_map(u32::to_le_bytes);
    head.chain(body).collect()
}

/// A file of 4096 bytes that goes to 2 MiB, with a header of these tags besides at its byte 64.
fn flat(tags: &[(u16, u16, &[u32])]) -> Vec<u8> {
    let base = 2 * MIB as u32;
    let addresses = [base + 64, base, 0, base + 0x2000];
    let own: [(u16, u16, &[u32]); 2] = [(2, 0, &addresses), (3, 0, &[base + 0x100])];
    let mut file: Vec<u8> = (0..4096u32).map(|n| (n % 253) as u8).collect();
    put(&mut file, 64, &header(&[&own[..], tags].concat()));
    file
}

/// A 32-bit ELF file with one segment at 1 MiB, which is linked at 3 GiB more.
fn elf(tags: &[(u16, u16, &[u32])]) -> Vec<u8> {
    let mut file = vec![0; 0x200];
    put(&mut file, 0, b"\x7fELF\x01\x01\x01");
    put(&mut file, 16, &[2, 0, 3, 0]);
    put(&mut file, 24, &0xc010_0010u32.to_le_bytes());
    put(&mut file, 28, &[52]);
    put(&mut file, 42, &[32, 0, 1, 0]);
    for (n, field) in [1u32, 0x200, 0xc010_0000, 0x10_0000, 256, 0x1000]
        .iter()
        .enumerate()
    {
        put(&mut file, 52 + 4 * n, &field.to_le_bytes());
    }
    put(&mut file, 0x200, &header(tags));
    file.resize(0x400, 0x90);
    file
}

fn error(kernel: &[u8]) -> BootError {
    let spec = Spec {
        boot: "multiboot2",
        ..Spec::default()
    };
    boot(&spec, &[kernel]).map(|_| ()).unwrap_err()
}

/// The information's tags: kind and contents.
fn tags(memory: &TestMemory, at: u64) -> Vec<(u32, Vec<u8>)> {
    assert_eq!(at % 8, 0);
    let end = at + u64::from(memory.u32(at));
    assert_eq!(memory.u32(at + 4), 0);
    let (mut at, mut found) = (at + 8, Vec::new());
    while at < end {
        let (kind, bytes) = (memory.u32(at), memory.u32(at + 4));
        found.push((kind, memory.bytes(at + 8, bytes as usize - 8)));
        at = (at + u64::from(bytes)).next_multiple_of(8);
    }
    assert_eq!((at, found.pop()), (end, Some((0, vec![]))));
    found
}

#[test]
fn a_kernel_reads_what_it_is_told() {
    let spec = Spec {
        bootargs: "-v token=42",
        memory: 5 << 30,
        blobs: vec![
            ("kernel", 0, None),
            ("module", 1, Some("one a=b")),
            ("initrd", 2, None),
        ],
        ..Spec::default()
    };
    let blobs: [&[u8]; 3] = [&flat(&[]), b"first", &[9; 5000]];
    let (state, memory) = boot(&spec, &blobs).unwrap();
    assert_eq!(state.gprs[Reg::Rax], 0x36d7_6289);
    let told = tags(&memory, state.gprs[Reg::Rbx]);
    let of = |kind: u32| -> Vec<&[u8]> {
        let tags = told.iter().filter(|tag| tag.0 == kind);
        tags.map(|tag| tag.1.as_slice()).collect()
    };
    assert_eq!(of(1), [b"-v token=42\0"]);
    assert_eq!(of(2), [b"v3vee, like GRUB 2\0"]);
    let modules: Vec<_> = of(3)
        .iter()
        .map(|tag| {
            let field = |at: usize| u32::from_le_bytes(tag[at..at + 4].try_into().unwrap());
            let (start, end) = (field(0).into(), u64::from(field(4)));
            assert_eq!(start % 4096, 0);
            (memory.bytes(start, (end - start) as usize), &tag[8..])
        })
        .collect();
    let expected = [
        (b"first".to_vec(), &b"one a=b\0"[..]),
        (vec![9; 5000], b"\0"),
    ];
    assert_eq!(modules, expected);
    let bounds = [639u32, (3 << 20) - 1024].map(u32::to_le_bytes).concat();
    assert_eq!(of(4), [bounds]);
    let map = of(6)[0];
    assert_eq!(map[..8], [24, 0, 0, 0, 0, 0, 0, 0]);
    let word = |entry: &[u8], at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
    let regions = map[8..]
        .chunks(24)
        .map(|e| (word(e, 0), word(e, 8), word(e, 16)));
    let ours =
        layout::memory_map(RamLayout::new(5 << 30)).map(|r| (r.start, r.bytes, r.kind as u64));
    assert!(regions.eq(ours));
    let rsdp = memory.bytes(layout::ACPI_TABLES, 36);
    assert_eq!((of(14), of(15)), (vec![&rsdp[..20]], vec![&rsdp[..]]));
}

#[test]
fn enters_in_protected_mode_where_the_header_says() {
    let file = flat(&[]);
    let (state, memory) = boot(&Spec::default(), &[&file]).unwrap();
    assert_eq!(state.rip, 2 * MIB + 0x100);
    assert_eq!(state.control.cr0 & (cr0::PG | cr0::PE), cr0::PE);
    let code = state.segments[Seg::Cs as usize];
    assert_eq!((code.base, code.limit), (0, u32::MAX));
    assert_eq!(memory.bytes(2 * MIB, 4096), file);
    assert_eq!(memory.bytes(2 * MIB + 4096, 4096), [0; 4096]);
}

#[test]
fn an_elf_file_is_entered_at_its_own_entry_or_the_headers() {
    let (state, memory) = boot(&Spec::default(), &[&elf(&[])]).unwrap();
    assert_eq!(state.rip, MIB + 0x10);
    assert_eq!(memory.bytes(MIB, 256), elf(&[])[0x200..0x300]);
    let (state, _) = boot(&Spec::default(), &[&elf(&[(3, 0, &[0x10_0080])])]).unwrap();
    assert_eq!(state.rip, MIB + 0x80);
}

/// The load address -1 stands for all of the file.
#[test]
fn a_file_can_be_loaded_from_its_beginning() {
    let base = 2 * MIB as u32;
    let mut file = vec![7; 4096];
    let addresses = [base + 64, u32::MAX, 0, 0];
    put(
        &mut file,
        64,
        &header(&[(2, 0, &addresses), (3, 0, &[base])]),
    );
    let (state, memory) = boot(&Spec::default(), &[&file]).unwrap();
    assert_eq!((state.rip, memory.bytes(2 * MIB, 4096)), (2 * MIB, file));
}

#[test]
fn what_a_header_requires_must_be_known() {
    let fine: [&[(u16, u16, &[u32])]; 6] = [
        &[(1, 0, &[1, 4, 6, 15, 21])],
        &[(6, 0, &[]), (7, 0, &[]), (9, 0, &[0])],
        &[(10, 0, &[MIB as u32, u32::MAX, 4096, 0])],
        &[(4, 0, &[2])],
        &[(5, 1, &[80, 25, 0]), (4, 1, &[1])],
        &[(77, 1, &[1]), (1, 1, &[99])],
    ];
    for tags in fine {
        assert!(boot(&Spec::default(), &[&elf(tags)]).is_ok(), "{tags:?}");
    }
    assert_eq!(error(&elf(&[(77, 0, &[1])])), BootError::UnknownTag(77));
    assert_eq!(error(&elf(&[(1, 0, &[1, 99])])), BootError::UnknownTag(99));
    assert_eq!(
        error(&elf(&[(5, 0, &[80, 25, 0])])),
        BootError::NeedsDisplay
    );
    assert_eq!(error(&elf(&[(4, 0, &[1])])), BootError::NeedsDisplay);
}

#[test]
fn kernels_that_cannot_be_loaded() {
    assert!(error(b"").to_string().contains("Multiboot 2 header"));
    let no_entry = header(&[(2, 0, &[0x20_0000, 0x20_0000, 0, 0])]);
    assert!(error(&no_entry).to_string().contains("no entry point"));
    let no_addresses = header(&[]);
    assert!(error(&no_addresses).to_string().contains("no ELF file"));
    let mut long_tag = elf(&[]);
    put(&mut long_tag, 0x214, &0x100u32.to_le_bytes());
    assert!(error(&long_tag)
        .to_string()
        .contains("longer than the header"));
    let mut cut = header(&[(1, 0, &[1])]);
    cut.truncate(20);
    assert!(matches!(error(&cut), BootError::Truncated { .. }));
}

#[test]
fn the_header_is_found_only_where_it_may_be() {
    for (at, found) in [
        (0, true),
        (8, true),
        (4, false),
        (32736, true),
        (32752, false),
        (32768, false),
    ] {
        let mut file = vec![0; at];
        file.extend(header(&[]));
        assert_eq!(has_header(&file), found, "{at}");
    }
    let mut other = header(&[]);
    put(&mut other, 4, &4u32.to_le_bytes());
    let sum = u32::from_le_bytes(other[12..16].try_into().unwrap());
    put(&mut other, 12, &(sum - 4).to_le_bytes());
    assert!(!has_header(&other), "for a MIPS processor");
}

/// A kernel of both kinds is started as before there was this one, unless the guest's description says otherwise.
#[test]
fn a_kernel_with_both_headers_is_started_by_either() {
    let mut file = elf(&[]);
    for (n, word) in [0x1bad_b002, 0, 0u32.wrapping_sub(0x1bad_b002)]
        .iter()
        .enumerate()
    {
        put(&mut file, 0x380 + 4 * n, &word.to_le_bytes());
    }
    for (kind, magic) in [
        ("auto", 0x2bad_b002),
        ("multiboot", 0x2bad_b002),
        ("multiboot2", 0x36d7_6289),
    ] {
        let spec = Spec {
            boot: kind,
            ..Spec::default()
        };
        let (state, _) = boot(&spec, &[&file]).unwrap();
        assert_eq!(state.gprs[Reg::Rax], magic, "{kind}");
    }
}

proptest! {
    #[test]
    fn spoiled_kernels_load_or_fail(at in 0usize..0x260, value in any::<[u8; 4]>(), is_elf in any::<bool>()) {
        let tags: &[(u16, u16, &[u32])] = &[(1, 0, &[1, 2]), (6, 0, &[])];
        let mut file = if is_elf { elf(tags) } else { flat(tags) };
        put(&mut file, at, &value);
        let _ = boot(&Spec { boot: "multiboot2", memory: 4 * MIB, ..Spec::default() }, &[&file]);
    }
}
