// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that end early, at each of their bytes.

use palacios_fuzz::image::{
    bzimage, elf, machine, multiboot2, old_bzimage, pvh, start, start_parts,
};

#[test]
fn images_cut_at_every_byte() {
    let image = machine(bzimage()).image();
    for end in 0..image.len() {
        start(&image[..end]);
    }
}

#[test]
fn trees_cut_at_every_byte() {
    let tree = machine(bzimage()).tree();
    for end in 0..tree.len() {
        start_parts(&tree[..end], &bzimage());
    }
}

#[test]
fn kernels_cut_at_every_byte() {
    let tree = machine(Vec::new()).tree();
    for kernel in [bzimage(), old_bzimage(), elf(), multiboot2(), pvh()] {
        for end in 0..kernel.len() {
            start_parts(&tree, &kernel[..end]);
        }
    }
}
