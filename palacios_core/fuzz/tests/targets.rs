// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each target on its corpus, and on inputs made from it.
//!
//! The input at hand is always in a file, so that one which panics, hangs or aborts can be run again. V3VEE_FUZZ_SEED makes
//! other inputs, V3VEE_FUZZ_INPUTS more or fewer.

use palacios_fuzz::{Inputs, Target, TARGETS};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

const SEED: u64 = 0x7061_6c61_6369_6f73;
const INPUTS: u64 = 10_000;

/// A target, and the file with the input at hand.
struct Run {
    target: Target,
    path: PathBuf,
    file: File,
}

impl Run {
    fn of(name: &str, kind: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.{kind}"));
        Self {
            target: Target::named(name).expect("a target of that name"),
            file: File::create(&path).expect("a writable target folder"),
            path,
        }
    }

    /// Takes an input. A failure says how to run it again.
    fn take(&mut self, what: &str, input: &[u8]) {
        self.keep(input).expect("a writable target folder");
        let Self { target, path, .. } = self;
        assert!(
            catch_unwind(|| (target.run)(input)).is_ok(),
            "{0} fails on {what}. To run it again: cargo run --package palacios_fuzz {0} {1}",
            target.name,
            path.display()
        );
    }

    fn keep(&mut self, input: &[u8]) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(input, 0)
    }
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| {
        let number = text.parse();
        number.unwrap_or_else(|_| panic!("{variable} is a decimal number, not {text}"))
    })
}

fn corpus(name: &str) {
    let mut run = Run::of(name, "corpus");
    let corpus = run.target.corpus();
    assert!(!corpus.is_empty());
    for (file, input) in corpus {
        run.take(&format!("corpus/{name}/{file}"), &input);
    }
}

fn generated_inputs(name: &str) {
    let mut run = Run::of(name, "generated");
    let corpus = run.target.corpus().into_iter();
    let corpus: Vec<_> = corpus.map(|(_, input)| input).collect();
    let seed = number("V3VEE_FUZZ_SEED", SEED);
    let inputs = Inputs::new(run.target, &corpus, seed);
    for (n, input) in (0..number("V3VEE_FUZZ_INPUTS", INPUTS)).zip(inputs) {
        run.take(&format!("input {n} of seed {seed}"), &input);
    }
}

macro_rules! tests {
    ($($name:ident),*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(mod $name {
            #[test]
            fn corpus() {
                super::corpus(stringify!($name));
            }
            #[test]
            fn generated_inputs() {
                super::generated_inputs(stringify!($name));
            }
        })*
    };
}
tests!(
    apic,
    devices,
    emulator,
    image,
    kept,
    pci,
    state,
    uart,
    virtio_blk,
    virtio_queue
);

#[test]
fn every_target_is_tested() {
    assert_eq!(TESTED, TARGETS.map(|target| target.name));
}
