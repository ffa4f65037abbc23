// SPDX-License-Identifier: MIT OR Apache-2.0
//! bzImages made here; `linux-loader` says what a loader makes of them.

use super::*;
use crate::boot::testing::{boot, put, TestMemory};
use crate::image::testing::Spec;
use crate::ram::RamLayout;
use crate::state::{cr0, efer, Seg, SegmentAttributes};
use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::{bzimage::BzImage, KernelLoader};
use proptest::prelude::*;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;
const SETUP_SECTS: u8 = 3;

/// A kernel with 6000 bytes of code that wants 4 MiB at 16 MiB.
fn bzimage() -> Vec<u8> {
    let code: Vec<u8> = (0..6000u32).map(|i| (i % 251) as u8).collect();
    let mut file = Vec::new();
    put(&mut file, 0x1f1, &[SETUP_SECTS]);
    put(&mut file, 0x1f4, &(6000u32 / 16).to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS\x0f\x02");
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut file, 0x234, &[1, 21, 0x7f, 0]);
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &(16 * MIB).to_le_bytes());
    put(&mut file, 0x260, &(4 * MIB as u32).to_le_bytes());
    put(&mut file, 512 * (usize::from(SETUP_SECTS) + 1), &code);
    file
}

fn with(at: usize, data: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    put(&mut file, at, data);
    file
}

fn spec(initrds: u32) -> Spec {
    let mut spec = Spec {
        boot: "linux",
        ..Spec::default()
    };
    spec.blobs
        .extend((1..=initrds).map(|index| ("initrd", index, None)));
    spec
}

fn error(kernel: &[u8]) -> BootError {
    boot(&spec(0), &[kernel]).map(|_| ()).unwrap_err()
}

fn zero_page(memory: &TestMemory) -> boot_params {
    *boot_params::from_slice(&memory.bytes(ZERO_PAGE.0, 4096)).unwrap()
}

#[test]
fn the_zero_page_says_what_another_loader_reads() {
    let kernel = bzimage();
    let (_, memory) = boot(&spec(1), &[&kernel, b"initrd"]).unwrap();
    let params = zero_page(&memory);
    let theirs: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
    let mut file = std::io::Cursor::new(&kernel);
    let loaded = BzImage::load(&theirs, Some(GuestAddress(16 * MIB)), &mut file, None).unwrap();
    let mut expected = loaded.setup_header.unwrap();
    let (mut code, at) = (vec![0; 6000], loaded.kernel_load);
    theirs.read_slice(&mut code, at).unwrap();
    assert_eq!((memory.bytes(at.0, 6000), at.0), (code, 16 * MIB));
    // All that the kernel's own header says is passed on, but for what a loader fills in.
    expected.type_of_loader = 0xff;
    expected.vid_mode = 0xffff;
    expected.ramdisk_image = params.hdr.ramdisk_image;
    expected.ramdisk_size = 6;
    expected.cmd_line_ptr = COMMAND_LINE.0 as u32;
    // Theirs sets this, which only the 32-bit protocol needs.
    expected.code32_start = params.hdr.code32_start;
    assert_eq!(params.hdr.as_slice(), expected.as_slice());
    assert_eq!({ params.acpi_rsdp_addr }, ACPI_TABLES);
    assert_eq!(memory.bytes(COMMAND_LINE.0, 14), b"console=ttyS0\0");
    let used = usize::from(params.e820_entries);
    let map: Vec<_> = params.e820_table[..used]
        .iter()
        .map(|e| (e.addr, e.size, e.r#type))
        .collect();
    let ours: Vec<_> = layout::memory_map(RamLayout::new(256 * MIB))
        .map(|r| (r.start, r.bytes, r.kind as u32))
        .collect();
    assert_eq!(map, ours);
}

#[test]
fn enters_in_long_mode_with_all_reachable() {
    let (state, memory) = boot(&spec(0), &[&bzimage()]).unwrap();
    assert_eq!(
        (state.rip, state.gprs[Reg::Rsi]),
        (16 * MIB + 0x200, ZERO_PAGE.0)
    );
    assert_eq!(
        state.control.cr0 & (cr0::PG | cr0::PE | cr0::CD | cr0::NW),
        cr0::PG | cr0::PE
    );
    assert_eq!(state.control.efer, efer::LME | efer::LMA);
    assert_eq!(state.rflags, 2);
    let cs = state.segments[Seg::Cs as usize];
    assert!(
        cs.selector == 0x10
            && cs.attributes.has(SegmentAttributes::L)
            && !cs.attributes.has(SegmentAttributes::DB)
    );
    assert_eq!(state.segments[Seg::Ds as usize].selector, 0x18);
    // The descriptors that Linux itself has for these (arch/x86/include/asm/segment.h).
    assert_eq!(
        [0x10, 0x18].map(|s| memory.u64(state.gdtr.base + s)),
        [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]
    );
    for gva in [0, ZERO_PAGE.0, 16 * MIB + 0x1234, 0xffff_fff8] {
        assert_eq!(translate(&memory, state.control.cr3, gva), gva);
    }
}

/// A walk by the book, of 2 MiB pages.
fn translate(memory: &TestMemory, cr3: u64, gva: u64) -> u64 {
    let mut table = cr3;
    for shift in [39, 30] {
        let entry = memory.u64(table + (gva >> shift & 511) * 8);
        assert_eq!(entry & 0x83, 3);
        table = entry & !0xfff;
    }
    let entry = memory.u64(table + (gva >> 21 & 511) * 8);
    assert_eq!(entry & 0x83, 0x83);
    (entry & !0x1f_ffff) + (gva & 0x1f_ffff)
}

#[test]
fn initrds_are_joined_at_multiples_of_four() {
    let (_, memory) = boot(&spec(3), &[&bzimage(), b"first", b"two!", b"3"]).unwrap();
    let hdr = zero_page(&memory).hdr;
    assert_eq!(
        memory.bytes(hdr.ramdisk_image.into(), hdr.ramdisk_size as usize),
        b"first\0\0\0two!3"
    );
    assert_eq!(u64::from(hdr.ramdisk_image), 256 * MIB - 4096);
}

#[test]
fn initrds_stay_where_the_kernel_reaches() {
    let kernel = with(0x22c, &0x01ff_ffffu32.to_le_bytes());
    let (_, memory) = boot(&spec(1), &[&kernel, &[7; 5000]]).unwrap();
    assert_eq!({ zero_page(&memory).hdr.ramdisk_image }, 0x200_0000 - 8192);
    let reach = with(0x22c, &0x0150_0000u32.to_le_bytes());
    let error = boot(&spec(1), &[&reach, &vec![7; 2 << 20]])
        .map(|_| ())
        .unwrap_err();
    assert_eq!(
        error,
        BootError::FilesTooBig {
            bytes: 2 * MIB,
            room: MIB + 1
        }
    );
    // With more than 3 GiB of RAM it does not go into the hole, nor above it.
    let big = Spec {
        memory: 8 << 30,
        ..spec(1)
    };
    let kernel = with(0x22c, &u32::MAX.to_le_bytes());
    let (_, memory) = boot(&big, &[&kernel, b"x"]).unwrap();
    assert_eq!(
        u64::from(zero_page(&memory).hdr.ramdisk_image),
        LOW_RAM_END - 4096
    );
}

#[test]
fn no_initrd_is_no_address() {
    let (_, memory) = boot(&spec(0), &[&bzimage()]).unwrap();
    let hdr = zero_page(&memory).hdr;
    assert_eq!(({ hdr.ramdisk_image }, { hdr.ramdisk_size }), (0, 0));
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let small = Spec {
        memory: 20 * MIB - 4096,
        ..spec(0)
    };
    let error = boot(&small, &[&bzimage()]).map(|_| ()).unwrap_err();
    assert!(matches!(error, BootError::NeedsMemory { .. }));
    // It knows what loading takes, and does not say that this is enough.
    let words = error.to_string();
    assert!(
        words.ends_with(" MiB, and a kernel needs more to run"),
        "{words}"
    );
    let need = match error {
        BootError::NeedsMemory { need, .. } => need.next_multiple_of(MIB),
        _ => 0,
    };
    assert!(boot(
        &Spec {
            memory: need,
            ..spec(0)
        },
        &[&bzimage()]
    )
    .is_ok());
    let tight = Spec {
        memory: 20 * MIB,
        ..spec(1)
    };
    assert!(matches!(
        boot(&tight, &[&bzimage(), b"x"]),
        Err(BootError::NeedsMemory { .. })
    ));
    assert!(boot(
        &Spec {
            memory: 20 * MIB,
            ..spec(0)
        },
        &[&bzimage()]
    )
    .is_ok());
}

#[test]
fn kernels_that_are_none_are_named() {
    let elf = error(b"\x7fELF and more").to_string();
    assert!(elf.contains("bzImage") && elf.contains("vmlinux"), "{elf}");
    assert!(error(b"\x1f\x8b\x08").to_string().contains("compressed"));
    assert!(error(b"").to_string().contains("empty"));
    assert!(matches!(error(&[0; 8192]), BootError::NotBzImage { .. }));
    assert_eq!(
        error(&with(0x206, &[0x05, 1])),
        BootError::OldProtocol { version: 0x105 }
    );
    assert!(error(&with(0x206, &[0x05, 1])).to_string().contains("1.05"));
    assert_eq!(error(&with(0x211, &[0x80])), BootError::ZImage);
    assert!(error(&with(0x211, &[0])).to_string().contains("bzImage"));
    let mut low_entry = with(0x236, &[0]);
    put(&mut low_entry, 0x214, &0x1000u32.to_le_bytes());
    assert!(error(&low_entry).to_string().contains("code32_start"));
    for out_of_range in [
        with(0x258, &0x9_0000u64.to_le_bytes()),
        with(0x258, &[0xff; 8]),
        with(0x260, &[0xff; 4]),
    ] {
        assert_eq!(error(&out_of_range), BootError::OutOfRange);
    }
    let long = Spec {
        bootargs: Box::leak("x".repeat(2048).into_boxed_str()),
        ..spec(0)
    };
    assert_eq!(
        boot(&long, &[&bzimage()]).map(|_| ()).unwrap_err(),
        BootError::CommandLineTooLong {
            bytes: 2048,
            limit: 2047
        }
    );
}

#[test]
fn every_truncation_is_an_error() {
    let kernel = bzimage();
    for len in (0..0x280).chain([1000, 2048, kernel.len() - 16]) {
        let error = error(&kernel[..len]);
        let magic_is_there = len >= 0x206;
        assert_eq!(
            matches!(error, BootError::Truncated { .. }),
            magic_is_there,
            "{len}: {error}"
        );
    }
    assert_eq!(
        error(&kernel[..8000]),
        BootError::Truncated {
            need: 8048,
            have: 8000
        }
    );
}

/// `syssize` counts paragraphs, the last of which need not be full.
#[test]
fn a_short_last_paragraph_is_no_cut() {
    let kernel = bzimage();
    for missing in 1..16 {
        let short = &kernel[..kernel.len() - missing];
        let (_, memory) = boot(&spec(0), &[short]).unwrap();
        assert_eq!(memory.bytes(16 * MIB, 6000 - missing), short[2048..]);
    }
}

/// The registers and the mode of the 32-bit boot protocol.
#[test]
fn a_32_bit_kernel_is_entered_in_protected_mode() {
    let mut kernel = with(0x236, &[0]);
    put(&mut kernel, 0x214, &0x10_0020u32.to_le_bytes());
    let (state, memory) = boot(&spec(0), &[&kernel]).unwrap();
    assert_eq!(
        (state.rip, state.gprs[Reg::Rsi]),
        (16 * MIB + 0x20, ZERO_PAGE.0)
    );
    for reg in [Reg::Rbp, Reg::Rdi, Reg::Rbx] {
        assert_eq!(state.gprs[reg], 0);
    }
    assert_eq!(state.control.cr0 & (cr0::PG | cr0::PE), cr0::PE);
    assert_eq!((state.control.efer, state.rflags), (0, 2));
    let [code, data] = [Seg::Cs, Seg::Ds].map(|seg| state.segments[seg as usize]);
    assert_eq!((code.selector, code.base, code.limit), (0x10, 0, u32::MAX));
    assert!(code.attributes.has(SegmentAttributes::DB));
    assert!(!code.attributes.has(SegmentAttributes::L));
    assert_eq!((data.selector, data.base, data.limit), (0x18, 0, u32::MAX));
    assert_eq!(
        { zero_page(&memory).hdr.code32_start },
        16 * (MIB as u32) + 0x20
    );
}

/// What each version of the protocol brought is read since then alone.
#[test]
fn old_protocols_have_the_limits_of_their_time() {
    let garbage = |version: u16| {
        let mut kernel = bzimage();
        // All fields since 2.03, which kernels before had other things in.
        put(&mut kernel, 0x22c, &[0xff; 0x40]);
        put(&mut kernel, 0x206, &version.to_le_bytes());
        kernel
    };
    for version in [0x202, 0x203, 0x205] {
        let mut kernel = garbage(version);
        put(&mut kernel, 0x1f6, &[0xff; 2]);
        if version >= 0x204 {
            put(&mut kernel, 0x1f6, &[0; 2]);
        }
        let (state, memory) = boot(&spec(1), &[&kernel, b"initrd"]).unwrap();
        assert_eq!(state.rip, MIB, "{version:#x}");
        assert_eq!(memory.bytes(MIB, 6000), kernel[2048..]);
        let hdr = zero_page(&memory).hdr;
        assert_eq!(
            (hdr.ramdisk_image, hdr.ramdisk_size),
            (256 * (MIB as u32) - 4096, 6)
        );
        let long = Spec {
            bootargs: Box::leak("x".repeat(256).into_boxed_str()),
            ..spec(0)
        };
        let error = boot(&long, &[&kernel]).map(|_| ()).unwrap_err();
        let (bytes, limit) = (256, 255);
        assert_eq!(error, BootError::CommandLineTooLong { bytes, limit });
    }
    // 2.02 knows no end for an initrd, and gets one below 896 MiB.
    let big = Spec {
        memory: 2 << 30,
        ..spec(1)
    };
    let (_, memory) = boot(&big, &[&garbage(0x202), b"x"]).unwrap();
    assert_eq!({ zero_page(&memory).hdr.ramdisk_image }, 0x3800_0000 - 4096);
}

/// They look for the zero page where boot loaders put it, and for the command line by its offset from there.
#[test]
fn kernels_before_2_02_find_zero_page_and_command_line_by_their_place() {
    for version in [0x200u16, 0x201] {
        let mut kernel = bzimage();
        // All fields since 2.02.
        put(&mut kernel, 0x228, &[0xff; 0x44]);
        put(&mut kernel, 0x206, &version.to_le_bytes());
        let old = Spec {
            bootargs: "root=/dev/hda1",
            ..spec(1)
        };
        let (state, memory) = boot(&old, &[&kernel, b"initrd"]).unwrap();
        assert_eq!((state.rip, state.gprs[Reg::Rsi]), (MIB, 0x9_0000));
        assert_eq!(memory.bytes(MIB, 6000), kernel[2048..]);
        assert_eq!(memory.bytes(0x9_0020, 4), [0x3f, 0xa3, 0x00, 0x80]);
        assert_eq!(memory.bytes(0x9_8000, 15), b"root=/dev/hda1\0");
        let initrd = [memory.u32(0x9_0218), memory.u32(0x9_021c)];
        assert_eq!(initrd, [256 * (MIB as u32) - 4096, 6]);
        assert_eq!(memory.u32(0x9_01e0), 255 << 10);
    }
}

/// It moves itself to the address that it prefers, and needs its memory there.
#[test]
fn a_kernel_that_cannot_be_moved_is_loaded_at_one_mib() {
    for (at, data) in [(0x234, [0; 8]), (0x258, [0; 8])] {
        let mut kernel = bzimage();
        let bytes = if at == 0x234 { 1 } else { 8 };
        put(&mut kernel, at, &data[..bytes]);
        let (state, memory) = boot(&spec(0), &[&kernel]).unwrap();
        assert_eq!(state.rip, MIB + 0x200);
        assert_eq!(memory.bytes(MIB, 6000), kernel[2048..]);
    }
    let small = Spec {
        memory: 20 * MIB - 4096,
        ..spec(0)
    };
    let fixed = with(0x234, &[0]);
    let error = boot(&small, &[&fixed]).map(|_| ()).unwrap_err();
    assert!(matches!(error, BootError::NeedsMemory { .. }), "{error}");
}

#[test]
fn kernels_without_a_memory_map_find_how_much_memory_there_is() {
    let (_, memory) = boot(&spec(0), &[&bzimage()]).unwrap();
    assert_eq!(memory.u32(ZERO_PAGE.0 + 0x1e0), 255 << 10);
    assert_eq!(memory.bytes(ZERO_PAGE.0 + 2, 2), [0xff, 0xff]);
}

proptest! {
    #[test]
    fn spoiled_headers_load_or_fail(at in 0x1f1usize..0x270, value in any::<[u8; 4]>()) {
        let _ = boot(&spec(1), &[&with(at, &value), b"initrd"]);
    }
}
