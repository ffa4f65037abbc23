// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links a kernel: fixed addresses, and nothing of any system.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    println!("cargo:rerun-if-changed=link.ld");
    for arg in [
        "-static",
        "--build-id=none",
        "-zmax-page-size=4096",
        "-znoexecstack",
        "--no-warn-rwx-segments",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-T{dir}/link.ld");
}
