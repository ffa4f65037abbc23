// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hostile images, machine descriptions and kernels. Nothing may panic, hang, or write outside of the machine's RAM.
#![forbid(unsafe_code)]

use crate::Target;
use palacios_core::addr::{Gpa, NotRam};
use palacios_core::boot;
use palacios_core::image::{write, Image};
use palacios_core::interfaces::GuestMemory;
use palacios_core::ram::RamLayout;
use palacios_testing::vm::Spec;
use std::cell::Cell;

/// The target.
pub const TARGET: Target = Target {
    name: "image",
    run,
    header_bytes: 1,
    step_bytes: 3,
};

fn run(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else {
        return;
    };
    match mode % 8 {
        0 => start(rest),
        1 => start_parts(rest, b"kernel"),
        2 => start_parts(&edited(tree(), rest), b"kernel"),
        3 => start_parts(&tree(), &edited(bzimage(), rest)),
        4 => start_parts(&tree(), &edited(elf(), rest)),
        5 => start_parts(&tree(), &edited(old_bzimage(), rest)),
        6 => start_parts(&tree(), &edited(multiboot2(), rest)),
        _ => start_parts(&tree(), &edited(pvh(), rest)),
    }
}

/// Starts the image of a machine that this tree describes, with this kernel.
pub fn start_parts(tree: &[u8], kernel: &[u8]) {
    if let Ok(image) = write::image(tree, &[kernel, b"initrd", b"module"]) {
        start(&image);
    }
}

/// Reads an image and loads its machine's memory.
pub fn start(image: &[u8]) {
    let machine = Image::parse(image).and_then(|image| image.machine());
    match machine {
        Ok(machine) => {
            let memory = Ram {
                layout: machine.ram,
                written: Cell::new(0),
            };
            if let Err(error) = boot::load(&machine, &memory) {
                assert!(!matches!(error, boot::BootError::NotRam(_)), "{error}");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// RAM that only checks its bounds, and that no more is written than there is, but for a little that is written twice.
struct Ram {
    layout: RamLayout,
    written: Cell<u64>,
}

impl GuestMemory for Ram {
    fn read(&self, at: Gpa, _: &mut [u8]) -> Result<(), NotRam> {
        Err(NotRam(at))
    }
    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
        assert!(self.layout.contains_all(at, data.len() as u64));
        self.written.set(self.written.get() + data.len() as u64);
        assert!(self.written.get() <= self.layout.bytes() + (1 << 20));
        Ok(())
    }
}

/// `file` with bytes of it replaced: a place of two bytes, then the byte.
pub(crate) fn edited(mut file: Vec<u8>, edits: &[u8]) -> Vec<u8> {
    for edit in edits.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        if let Some(byte) = file.get_mut(at) {
            *byte = edit[2];
        }
    }
    file
}

/// A machine with a kernel of these bytes, an initrd, a module and all else that a tree may describe.
pub fn machine(kernel: Vec<u8>) -> Spec {
    Spec {
        memory_bytes: 64 << 20,
        serial: true,
        bootargs: Some("a=b"),
        files: vec![
            ("initrd", b"initrd".to_vec()),
            ("module", b"module".to_vec()),
        ],
        ..Spec::new(kernel)
    }
}

fn tree() -> Vec<u8> {
    machine(Vec::new()).tree()
}

fn put(file: &mut [u8], at: usize, data: &[u8]) {
    file[at..at + data.len()].copy_from_slice(data);
}

/// A Linux kernel of one setup sector that wants 1 MiB at 16 MiB.
pub fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 2048];
    put(&mut file, 0x1f1, &[1]);
    put(&mut file, 0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\x02");
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x234, &[1, 21, 3, 0, 0xff, 7]);
    put(&mut file, 0x258, &(16u64 << 20).to_le_bytes());
    put(&mut file, 0x260, &(1u32 << 20).to_le_bytes());
    file
}

/// The same kernel with a 32-bit entry point and a protocol of its time.
pub fn old_bzimage() -> Vec<u8> {
    let mut file = bzimage();
    put(&mut file, 0x206, &[5, 2]);
    put(&mut file, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut file, 0x236, &[0, 0]);
    file
}

/// An ELF file of two segments at 1 MiB, and of what `data` puts at the beginning of the first one.
fn two_segments(kinds: [u32; 2], data: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    put(&mut file, 0, b"\x7fELF\x01\x01\x01");
    put(&mut file, 16, &[2, 0, 3, 0]);
    put(&mut file, 24, &0x10_0010u32.to_le_bytes());
    put(&mut file, 28, &[52]);
    put(&mut file, 42, &[32, 0, 2, 0]);
    let segments = [(52, [512u32, 0x10_0000, 256]), (84, [768, 0x10_2000, 128])];
    for (kind, (at, [offset, start, bytes])) in kinds.into_iter().zip(segments) {
        for (index, field) in [kind, offset, start, start, bytes, bytes * 4]
            .into_iter()
            .enumerate()
        {
            put(&mut file, at + 4 * index, &field.to_le_bytes());
        }
    }
    put(&mut file, 512, data);
    file
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A Multiboot kernel.
pub fn elf() -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    two_segments([1, 1], &words(&[magic, 0, magic.wrapping_neg()]))
}

/// A Multiboot 2 kernel that asks for a tag, an entry point and aligned modules.
pub fn multiboot2() -> Vec<u8> {
    let (magic, bytes) = (0xe852_50d6u32, 16 + 16 + 16 + 8 + 8);
    let head = [magic, 0, bytes, magic.wrapping_add(bytes).wrapping_neg()];
    let tags = [1, 12, 6, 0, 3, 12, 0x10_0020, 0, 6, 8, 0, 8];
    two_segments([1, 1], &words(&[&head[..], &tags].concat()))
}

/// A kernel with a PVH note.
pub fn pvh() -> Vec<u8> {
    const NOTE: u32 = 4;
    let xen = u32::from_le_bytes(*b"Xen\0");
    let mut file = two_segments([1, NOTE], &[0x90; 64]);
    put(&mut file, 768, &words(&[4, 4, 18, xen, 0x10_0010]));
    file
}
