// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nothing refers to the core's exception table (`__ex_table`), so the linker is asked to keep what nobody refers to.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-tests=-Wl,--no-gc-sections");
}
