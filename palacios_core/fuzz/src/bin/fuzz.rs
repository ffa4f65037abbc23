// SPDX-License-Identifier: MIT OR Apache-2.0
//! A target under libFuzzer: `FUZZ_TARGET=uart fuzz CORPUS`. scripts/fuzz builds and runs it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palacios_fuzz::Target;
use std::sync::LazyLock;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names the target");
    Target::named(&name).unwrap_or_else(|| panic!("no target is named {name}"))
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
