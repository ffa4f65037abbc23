// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exit statuses and messages of `v3` where no module is loaded.

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::{contains, is_empty, starts_with};
use std::fs;
use std::path::Path;

fn v3(line: &str) -> Command {
    let mut command = Command::cargo_bin("v3").unwrap();
    command.args(line.split_whitespace());
    command
}

/// Whether these tests may say that there is no module.
fn is_module_absent() -> bool {
    !Path::new("/dev/v3vee").exists()
}

#[test]
fn without_the_module_every_call_says_so() {
    assert!(
        is_module_absent(),
        "these tests expect a machine without v3vee.ko"
    );
    let vm = [
        "launch", "stop", "pause", "continue", "free", "info", "stats", "console", "wait",
    ];
    let named = vm
        .iter()
        .flat_map(|c| ["x", "0", "/dev/v3-vm0"].map(|v| format!("{c} {v}")));
    let others = [
        "list",
        "list --json",
        "stream x com1",
        "stream -i 0 com1",
        "create a b",
        "run a.img",
        "run --kernel k",
        "relocate 0 0 4096",
        "core-move x 0 1",
        "core-move x 0 any",
    ]
    .map(String::from);
    for line in named.chain(others) {
        let message =
            "v3: /dev/v3vee: no such device\nhint: is the module loaded? insmod v3vee.ko\n";
        v3(&line)
            .assert()
            .code(125)
            .stdout(is_empty())
            .stderr(message);
    }
}

#[test]
fn run_tells_its_own_failure_in_json() {
    let run = v3("run a.img --json").assert().code(125);
    let json: serde_json::Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    let expected = serde_json::json!({
        "exit": 125, "reason": "tool-error", "exit_status": null,
        "message": "/dev/v3vee: no such device",
    });
    assert_eq!(json, expected);
}

#[test]
fn a_wrong_command_line_is_125() {
    for line in [
        "",
        "boil",
        "run",
        "run a --kernel b",
        "launch",
        "stats",
        "create",
        "console x --escape 7",
        "core-move x 0",
        "core-move x 0 nowhere",
    ] {
        v3(line)
            .assert()
            .code(125)
            .stdout(is_empty())
            .stderr(contains("Usage").or(contains("--help")));
    }
}

#[test]
fn help_and_version_are_0() {
    v3("--help")
        .assert()
        .code(0)
        .stdout(contains("Exit status"));
    v3("run --help")
        .assert()
        .code(0)
        .stdout(contains("124").and(contains("--timeout")));
    v3("--version").assert().code(0).stdout(starts_with("v3 "));
    v3("version")
        .assert()
        .code(0)
        .stdout(contains("module not loaded"));
    v3("version --json")
        .assert()
        .code(0)
        .stdout(contains("\"module\":null"));
}

#[test]
fn builds_an_image_and_leaves_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    // The least Multiboot 1 kernel; tests/build.rs explains it.
    let words = [
        0x1bad_b002u32,
        1 << 16,
        0xe451_4ffe,
        1 << 20,
        1 << 20,
        0,
        0,
        (1 << 20) + 32,
    ];
    let kernel: Vec<u8> = words
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .chain([0xf4])
        .collect();
    fs::write(path("kernel"), kernel).unwrap();
    fs::write(
        path("guest.toml"),
        "memory = \"16M\"\nkernel = \"kernel\"\n",
    )
    .unwrap();
    v3(&format!("build {}", path("guest.toml")))
        .assert()
        .code(0)
        .stdout(is_empty())
        .stderr(is_empty());
    v3(&format!(
        "build {} -o {}",
        path("guest.toml"),
        path("other")
    ))
    .assert()
    .code(0);
    let image = fs::read(path("guest.img")).unwrap();
    assert!(palacios_core::image::Image::parse(&image).is_ok());
    assert_eq!(image, fs::read(path("other")).unwrap());
    let mut left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["guest.img", "guest.toml", "kernel", "other"]);
}

#[test]
fn a_wrong_definition_is_126_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let toml = dir.path().join("guest.toml");
    let build = |text: &str| {
        fs::write(&toml, text).unwrap();
        v3(&format!("build {}", toml.display())).assert().code(126)
    };
    build("memory = \"16M\"\nkernel = \"none\"").stderr(contains("guest.toml:2: kernel: "));
    build("memory = \"16\"\nkernel = \"none\"").stderr(contains("guest.toml:1: memory: "));
    build("<vm class=\"PC\"></vm>").stderr(contains("this is XML").and(contains("hint: ")));
    assert!(!toml.with_extension("img").exists());
}

#[test]
fn a_missing_definition_is_125() {
    v3("build /nowhere/guest.toml")
        .assert()
        .code(125)
        .stderr("v3: /nowhere/guest.toml: no such file or directory\n");
}

#[test]
fn palacios_names_are_links() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "v3_create",
        "v3_launch",
        "v3_stop",
        "v3_pause",
        "v3_continue",
        "v3_free",
        "v3_cons",
        "v3_stream",
        "v3_stats",
    ];
    for name in names {
        let link = dir.path().join(name);
        std::os::unix::fs::symlink(assert_cmd::cargo::cargo_bin("v3"), &link).unwrap();
        Command::new(&link)
            .arg("--help")
            .assert()
            .code(0)
            .stdout(contains(format!("Usage: {name}")));
        Command::new(&link)
            .assert()
            .code(125)
            .stderr(contains("Usage").or(contains("--help")));
    }
    let mut free = Command::new(dir.path().join("v3_free"));
    free.arg("0").assert().code(125).stderr(contains("insmod"));
}

#[test]
fn manual_and_completions() {
    v3("man").assert().code(0).stdout(contains(".TH v3 1"));
    for shell in ["bash", "zsh", "fish"] {
        v3(&format!("completions {shell}"))
            .assert()
            .code(0)
            .stdout(contains("stats"));
    }
    let dir = tempfile::tempdir().unwrap();
    v3(&format!("man {}", dir.path().display()))
        .assert()
        .code(0)
        .stdout(is_empty());
    for page in ["v3.1", "v3-run.1", "v3-build.1", "v3_create.1", "v3_cons.1"] {
        assert!(
            fs::read_to_string(dir.path().join(page))
                .unwrap()
                .contains(".SH SYNOPSIS"),
            "{page}"
        );
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let v3 = assert_cmd::cargo::cargo_bin("v3");
    let line = format!(
        "{} completions bash | head -c 1; echo ${{PIPESTATUS[0]}}",
        v3.display()
    );
    Command::new("bash")
        .args(["-c", &line])
        .assert()
        .success()
        .stdout(predicates::str::ends_with("0\n"))
        .stderr(is_empty());
}
