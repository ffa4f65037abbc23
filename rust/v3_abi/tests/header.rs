// SPDX-License-Identifier: MIT OR Apache-2.0
//! The header stands on its own in C, has no hidden padding, and says what the generated Rust says.

use std::{io::Write, path::Path, process::Command, process::Stdio};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn generated_rust_is_current() {
    let run = Command::new(here().join("regenerate"))
        .arg("--check")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy;
    assert!(
        run.status.success(),
        "{}{}",
        text(&run.stdout),
        text(&run.stderr)
    );
}

/// Compiles `source` behind an include of the header, as strictly as a C compiler can.
fn compile(language: &str, args: &[&str], source: &str) {
    let mut cc = Command::new("cc")
        .args([
            "-Wall",
            "-Wextra",
            "-Wpadded",
            "-pedantic",
            "-Werror",
            "-fsyntax-only",
        ])
        .arg("-I")
        .arg(here().join("../../host_linux/include/uapi"))
        .args(args)
        .args(["-x", language, "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a C compiler, `cc`");
    let mut stdin = cc.stdin.take().unwrap();
    write!(stdin, "#include <v3vee.h>\n{source}").unwrap();
    drop(stdin);
    assert!(cc.wait().unwrap().success(), "cc {language} {args:?}");
}

#[test]
fn c_accepts_it_and_pads_nothing() {
    compile("c", &["-std=c89"], "");
    compile("c", &["-std=c11"], "");
}

#[test]
fn c_and_rust_agree_on_numbers() {
    use v3_abi::*;
    let calls = [
        ("V3_VERSION", V3_VERSION),
        ("V3_CREATE", V3_CREATE),
        ("V3_LIST", V3_LIST),
        ("V3_FREE", V3_FREE),
        ("V3_VM_LAUNCH", V3_VM_LAUNCH),
        ("V3_VM_STOP", V3_VM_STOP),
        ("V3_VM_PAUSE", V3_VM_PAUSE),
        ("V3_VM_CONTINUE", V3_VM_CONTINUE),
        ("V3_VM_WAIT", V3_VM_WAIT),
        ("V3_VM_INFO", V3_VM_INFO),
        ("V3_VM_STATS", V3_VM_STATS),
        ("V3_VM_STREAM", V3_VM_STREAM),
        ("V3_VM_RELOCATE", V3_VM_RELOCATE),
        ("V3_VM_MOVE", V3_VM_MOVE),
        ("V3_VM_VCPU", V3_VM_VCPU),
        ("V3_VM_STREAMS", V3_VM_STREAMS),
        ("V3_VM_VCPU_REPORT", V3_VM_VCPU_REPORT),
        ("V3_VM_ATTACH", V3_VM_ATTACH),
        ("V3_VM_DETACH", V3_VM_DETACH),
        ("V3_VM_EJECT", V3_VM_EJECT),
        ("V3_VM_RESIZE", V3_VM_RESIZE),
        ("V3_VM_DEVICES", V3_VM_DEVICES),
        ("V3_VM_MEMORY_READ", V3_VM_MEMORY_READ),
        ("V3_VM_WALK", V3_VM_WALK),
        ("V3_VM_INTERRUPTS", V3_VM_INTERRUPTS),
        ("V3_VM_CHIPSET", V3_VM_CHIPSET),
    ];
    let source: String = calls
        .iter()
        .map(|(name, value)| format!("_Static_assert({name} == {value}u, \"{name}\");\n"))
        .collect();
    compile("c", &["-std=c11"], &source);
}

#[test]
fn layout_is_the_same_for_32_bits() {
    // The 64-bit compiler's own headers serve: the interface includes nothing else.
    let sizes = [
        ("version", 104),
        ("create", 104),
        ("info", 352),
        ("wait", 24),
        ("stat", 56),
        ("attach", 104),
        ("device", 264),
        ("memory_read", 24),
        ("walk", 320),
        ("interrupts", 256),
        ("chipset", 224),
        ("load_ram", 24),
        ("load", 32),
    ];
    let source: String = sizes
        .iter()
        .map(|(name, size)| format!("_Static_assert(sizeof(struct v3_{name}) == {size}, \"\");\n"))
        .collect();
    let multiarch = "-I/usr/include/x86_64-linux-gnu";
    compile("c", &["-m32", "-std=c11", multiarch], &source);
}
