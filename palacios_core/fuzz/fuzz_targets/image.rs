// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hostile images, machine descriptions and kernels. Nothing may panic, hang, or write outside of the machine's RAM.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palacios_core::addr::{Gpa, NotRam};
use palacios_core::boot;
use palacios_core::devices::GuestMemory;
use palacios_core::image::{write, Image};
use palacios_core::memory::{HIGH_RAM, LOW_RAM_END};
use std::cell::Cell;

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else {
        return;
    };
    match mode % 5 {
        0 => run(rest),
        1 => run_parts(rest, b"kernel"),
        2 => run_parts(&edited(tree(), rest), b"kernel"),
        3 => run_parts(&tree(), &edited(bzimage(), rest)),
        _ => run_parts(&tree(), &edited(elf(), rest)),
    }
});

fn run_parts(tree: &[u8], kernel: &[u8]) {
    if let Ok(image) = write::image(tree, &[kernel, b"initrd", b"module"]) {
        run(&image);
    }
}

fn run(image: &[u8]) {
    let machine = Image::parse(image).and_then(|image| image.machine());
    match machine {
        Ok(machine) => {
            let memory = Ram {
                bytes: machine.memory_bytes,
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
    bytes: u64,
    written: Cell<u64>,
}

impl GuestMemory for Ram {
    fn read(&self, at: Gpa, _: &mut [u8]) -> Result<(), NotRam> {
        Err(NotRam(at))
    }
    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
        let low_end = self.bytes.min(LOW_RAM_END);
        let high = HIGH_RAM..HIGH_RAM + (self.bytes - low_end);
        let end = at.0 + data.len() as u64;
        assert!(end <= low_end || (high.contains(&at.0) && end <= high.end));
        self.written.set(self.written.get() + data.len() as u64);
        assert!(self.written.get() <= self.bytes + (1 << 20));
        Ok(())
    }
}

/// `file` with bytes of it replaced: a place of two bytes, then the byte.
fn edited(mut file: Vec<u8>, edits: &[u8]) -> Vec<u8> {
    for edit in edits.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        if let Some(byte) = file.get_mut(at) {
            *byte = edit[2];
        }
    }
    file
}

fn tree() -> Vec<u8> {
    write_tree().expect("the tree is well-formed")
}

fn write_tree() -> vm_fdt::FdtWriterResult<Vec<u8>> {
    let mut fdt = vm_fdt::FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "v3vee,pc")?;
    let memory = fdt.begin_node("memory@0")?;
    fdt.property_array_u64("reg", &[0, 64 << 20])?;
    fdt.end_node(memory)?;
    let cpus = fdt.begin_node("cpus")?;
    let cpu = fdt.begin_node("cpu@0")?;
    fdt.property_u32("reg", 0)?;
    fdt.end_node(cpu)?;
    fdt.end_node(cpus)?;
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", "a=b")?;
    fdt.end_node(chosen)?;
    let blobs = fdt.begin_node("blobs")?;
    for (index, label) in ["kernel", "initrd", "module"].into_iter().enumerate() {
        let blob = fdt.begin_node(&format!("blob@{index}"))?;
        fdt.property_string("label", label)?;
        fdt.property_u32("v3vee,index", index as u32)?;
        fdt.end_node(blob)?;
    }
    fdt.end_node(blobs)?;
    let devices = fdt.begin_node("devices")?;
    let serial = fdt.begin_node("serial@3f8")?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[0x3f8, 8])?;
    fdt.property_u32("interrupts", 4)?;
    fdt.property_string("v3vee,stream", "com1")?;
    fdt.end_node(serial)?;
    fdt.end_node(devices)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn put(file: &mut [u8], at: usize, data: &[u8]) {
    file[at..at + data.len()].copy_from_slice(data);
}

/// A Linux kernel of one setup sector that wants 1 MiB at 16 MiB.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 2048];
    put(&mut file, 0x1f1, &[1]);
    put(&mut file, 0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\x02");
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x234, &[1, 21, 3, 0, 0xff, 7]);
    put(&mut file, 0x258, &(16u64 << 20).to_le_bytes());
    put(&mut file, 0x260, &(1u32 << 20).to_le_bytes());
    file
}

/// A Multiboot kernel of two segments at 1 MiB.
fn elf() -> Vec<u8> {
    let mut file = vec![0; 1024];
    put(&mut file, 0, b"\x7fELF\x01\x01\x01");
    put(&mut file, 16, &[2, 0, 3, 0]);
    put(&mut file, 24, &0x10_0010u32.to_le_bytes());
    put(&mut file, 28, &[52]);
    put(&mut file, 42, &[32, 0, 2, 0]);
    for (at, [offset, start, bytes]) in
        [(52, [512u32, 0x10_0000, 256]), (84, [768, 0x10_2000, 128])]
    {
        for (index, field) in [1, offset, start, start, bytes, bytes * 4]
            .into_iter()
            .enumerate()
        {
            put(&mut file, at + 4 * index, &field.to_le_bytes());
        }
    }
    put(&mut file, 512, &0x1bad_b002u32.to_le_bytes());
    put(
        &mut file,
        520,
        &0u32.wrapping_sub(0x1bad_b002).to_le_bytes(),
    );
    file
}
