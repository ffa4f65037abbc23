// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hostile input for the core. A target takes any bytes, and panics when the core does something wrong with them.
//!
//! `cargo test` runs each target on its corpus and on the inputs that [`Inputs`] makes. The program `fuzz` runs one for
//! hours under libFuzzer, which prefers inputs that reach new code. The program `replay` runs one input again.
#![forbid(unsafe_code)]

pub mod apic;
pub mod devices;
pub mod emulator;
pub mod image;
mod inputs;
pub mod kept;
pub mod pci;
pub mod state;
pub mod uart;
pub mod virtio_blk;
pub mod virtio_queue;

pub use inputs::Inputs;
use std::path::Path;

/// All targets, by name.
pub const TARGETS: [Target; 10] = [
    apic::TARGET,
    devices::TARGET,
    emulator::TARGET,
    image::TARGET,
    kept::TARGET,
    pci::TARGET,
    state::TARGET,
    uart::TARGET,
    virtio_blk::TARGET,
    virtio_queue::TARGET,
];

/// What takes hostile input. Most read an input as a header and steps of equal size.
#[derive(Clone, Copy)]
pub struct Target {
    /// The name of its module, and of its folder in `corpus/`.
    pub name: &'static str,
    /// Takes any bytes, and panics when something is wrong.
    pub run: fn(&[u8]),
    /// The size of the header.
    pub header_bytes: usize,
    /// The size of a step.
    pub step_bytes: usize,
}

impl Target {
    /// The target of that name.
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// The inputs in its corpus with the names of their files, in the order of the names.
    pub fn corpus(&self) -> Vec<(String, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(self.name);
        let files = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut inputs: Vec<_> = files
            .map(|file| file.expect("a readable folder"))
            .map(|file| {
                let bytes = std::fs::read(file.path()).expect("a readable file");
                (file.file_name().to_string_lossy().into_owned(), bytes)
            })
            .collect();
        inputs.sort();
        inputs
    }
}

/// The value in the second half of a step.
fn value(step: &[u8; 8]) -> u32 {
    u32::from_le_bytes([step[4], step[5], step[6], step[7]])
}

/// How many bytes a step's access has: 1, 2 or 4.
fn size(step: &[u8; 8]) -> u8 {
    1 << (step[2] & 3).min(2)
}

/// The steps of an input, and what is behind the last whole one.
fn steps<const BYTES: usize>(input: &[u8]) -> (Vec<[u8; BYTES]>, &[u8]) {
    let chunks = input.chunks_exact(BYTES);
    let rest = chunks.remainder();
    let steps = chunks.map(|step| step.try_into().expect("a whole step"));
    (steps.collect(), rest)
}
