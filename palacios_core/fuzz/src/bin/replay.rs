// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a target on one input: `cargo run --package palacios_fuzz TARGET FILE`.

use palacios_fuzz::{Target, TARGETS};
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [name, file] = words.as_slice() else {
        let names = TARGETS.map(|target| target.name).join(", ");
        eprintln!("usage: replay TARGET FILE; a TARGET is one of {names}");
        return ExitCode::from(2);
    };
    let Some(target) = Target::named(name) else {
        eprintln!("replay: no target is named {name}");
        return ExitCode::from(2);
    };
    match std::fs::read(file) {
        Ok(input) => (target.run)(&input),
        Err(error) => {
            eprintln!("replay: {file}: {error}");
            return ExitCode::from(2);
        }
    }
    println!("{name} finds nothing wrong with {file}");
    ExitCode::SUCCESS
}
