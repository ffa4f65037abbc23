// SPDX-License-Identifier: MIT OR Apache-2.0
//! Has the core's files know that they are compiled against loom.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cfg=loom");
}
