// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels made here; what they are told is read as the ABI's structures say.

use super::*;
use crate::boot::testing::{boot, put};
use crate::image::testing::Spec;
use crate::ram::RamLayout;
use crate::state::{cr0, Reg, Seg, SegmentAttributes};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// A note, padded.
fn note(owner: &[u8], kind: u32, data: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [owner.len() as u32, data.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    for part in [owner, data] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// An ELF file with a segment at 1 MiB, linked very high, and these notes.
fn elf(is_64: bool, notes: &[u8]) -> Vec<u8> {
    let le = |value: u64| value.to_le_bytes()[..if is_64 { 8 } else { 4 }].to_vec();
    let (ph, entry_bytes) = if is_64 { (64, 56) } else { (52, 32) };
    let linked = if is_64 {
        0xffff_ffff_8010_0000
    } else {
        0xc010_0000
    };
    let mut file = vec![0; 0x400];
    put(&mut file, 0, b"\x7fELF");
    put(&mut file, 4, &[1 + u8::from(is_64), 1, 1]);
    put(&mut file, 16, &[2, 0, if is_64 { 62 } else { 3 }, 0]);
    put(&mut file, 24, &le(linked));
    put(&mut file, if is_64 { 32 } else { 28 }, &le(ph));
    put(
        &mut file,
        if is_64 { 54 } else { 42 },
        &[entry_bytes, 0, 2, 0],
    );
    let headers = [
        (4u32, [0x300, 0, 0, notes.len() as u64, notes.len() as u64]),
        (1, [0x200, linked, MIB, 0x80, 0x1000]),
    ];
    for (n, (kind, fields)) in headers.into_iter().enumerate() {
        let at = ph as usize + n * usize::from(entry_bytes);
        put(&mut file, at, &kind.to_le_bytes());
        for (n, value) in fields.into_iter().enumerate() {
            let field = if is_64 { 8 + 8 * n } else { 4 + 4 * n };
            put(&mut file, at + field, &le(value));
        }
        put(&mut file, at + if is_64 { 48 } else { 28 }, &[4]);
    }
    put(&mut file, 0x200, &[0x90; 0x80]);
    put(&mut file, 0x300, notes);
    file
}

/// A kernel whose entry is named by the note of `kind`, behind one of another owner.
fn kernel(is_64: bool, kind: u32, entry: u64) -> Vec<u8> {
    let entry = &entry.to_le_bytes()[..if is_64 { 8 } else { 4 }];
    let notes = [note(b"GNU\0", 18, &[1; 5]), note(b"Xen\0", kind, entry)];
    elf(is_64, &notes.concat())
}

#[test]
fn enters_in_protected_mode_where_the_note_says() {
    for is_64 in [false, true] {
        let (state, memory) = boot(&Spec::default(), &[&kernel(is_64, 18, MIB + 0x40)]).unwrap();
        assert_eq!(state.rip, MIB + 0x40);
        assert_eq!(state.control.cr0 & (cr0::PG | cr0::PE), cr0::PE);
        assert_eq!(
            (state.control.cr4, state.control.efer, state.rflags),
            (0, 0, 2)
        );
        let [code, task] = [Seg::Cs, Seg::Tr].map(|seg| state.segments[seg as usize]);
        assert_eq!((code.base, code.limit), (0, u32::MAX));
        assert!(code.attributes.has(SegmentAttributes::DB));
        assert_eq!((task.base, task.attributes.0 & 0xff), (0, 0x8b));
        assert_eq!(memory.bytes(MIB, 0x80), [0x90; 0x80]);
        assert_eq!(memory.bytes(MIB + 0x80, 0xf80), [0; 0xf80]);
    }
}

#[test]
fn a_kernel_reads_what_it_is_told() {
    let spec = Spec {
        bootargs: "quiet",
        memory: 5 << 30,
        blobs: vec![
            ("kernel", 0, None),
            ("module", 1, Some("one a=b")),
            ("initrd", 2, None),
        ],
        ..Spec::default()
    };
    let blobs: [&[u8]; 3] = [&kernel(true, 18, MIB), b"module", b"initrd"];
    let (state, memory) = boot(&spec, &blobs).unwrap();
    let at = state.gprs[Reg::Rbx];
    let text = |at: u64| {
        let bytes = memory.bytes(at, 32);
        let end = bytes.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    };
    let head = [0, 4, 8, 12].map(|offset| memory.u32(at + offset));
    assert_eq!(head, [0x336e_c578, 1, 0, 2]);
    let [modules, line, rsdp, map] = [16, 24, 32, 40].map(|offset| memory.u64(at + offset));
    assert_eq!((text(line).as_str(), rsdp), ("quiet", layout::ACPI_TABLES));
    for (n, (data, line)) in [(b"module", "one a=b"), (b"initrd", "")]
        .into_iter()
        .enumerate()
    {
        let entry = modules + 32 * n as u64;
        let [start, bytes, own_line, zero] =
            [0, 8, 16, 24].map(|offset| memory.u64(entry + offset));
        assert_eq!((start % 4096, zero), (0, 0));
        assert_eq!(memory.bytes(start, bytes as usize), data);
        assert_eq!(text(own_line), line);
    }
    let count = memory.u32(at + 48);
    let told = (0..u64::from(count)).map(|n| {
        let entry = map + 24 * n;
        (
            memory.u64(entry),
            memory.u64(entry + 8),
            memory.u64(entry + 16),
        )
    });
    let ours =
        layout::memory_map(RamLayout::new(5 << 30)).map(|r| (r.start, r.bytes, r.kind as u64));
    assert!(told.eq(ours));
}

#[test]
fn files_without_the_note_are_named() {
    let error = |boot_kind, kernel: &[u8]| {
        let spec = Spec {
            boot: boot_kind,
            ..Spec::default()
        };
        boot(&spec, &[kernel]).map(|_| ()).unwrap_err()
    };
    for file in [
        &kernel(true, 17, MIB)[..],
        &elf(true, &[]),
        &elf(false, &[0xff; 40]),
    ] {
        assert!(!has_note(file));
        let unsure = error("auto", file);
        assert!(matches!(unsure, BootError::UnknownKernel { .. }));
        assert!(unsure.to_string().contains("PVH note"), "{unsure}");
        assert!(matches!(error("pvh", file), BootError::NotPvh { .. }));
    }
    assert!(matches!(error("pvh", b"MZ"), BootError::NotPvh { .. }));
    let outside = error("pvh", &kernel(true, 18, 7));
    assert!(outside.to_string().contains("entry point"), "{outside}");
}

proptest! {
    #[test]
    fn spoiled_kernels_load_or_fail(is_64 in any::<bool>(), at in 0usize..0x340, value in any::<[u8; 4]>()) {
        let mut file = kernel(is_64, 18, MIB);
        put(&mut file, at, &value);
        let _ = boot(&Spec { boot: "pvh", memory: 4 * MIB, ..Spec::default() }, &[&file]);
    }
}
