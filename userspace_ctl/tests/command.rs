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
        "cons x",
        "create a b",
        "create --json a b --cpus 2",
        "run a.img",
        "run a.img --mem 64 --expect 1",
        "run --kernel k",
        "wait --for-launch x",
        "relocate 0 0 4096",
        "relocate 0 0x100000 2M",
        "core-move x 0 1",
        "core-move x 0 any",
        "debug x",
        "debug x --vcpu 1 --json",
        "debug x --walk 0x1000 --vcpu 1",
        "debug x --walk-physical 4096",
        "debug x --memory 0x1000,4K --json",
        "debug x --physical 0",
        "save x file",
        "save -p 0 -",
        "load file --no-launch --end com3=pty --new-tsc-rate --json",
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
fn run_and_wait_tell_their_own_failure_in_json() {
    for line in ["run a.img --json", "wait x --json"] {
        let done = v3(line).assert().code(125);
        let json: serde_json::Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
        let expected = serde_json::json!({
            "exit": 125, "reason": "tool-error", "exit_status": null,
            "message": "/dev/v3vee: no such device",
        });
        assert_eq!(json, expected);
    }
}

#[test]
fn a_wrong_command_line_is_125_and_told_like_every_error() {
    for line in [
        "boil",
        "run",
        "run a b",
        "run a --expect 2",
        "run a --mem 12X",
        "run a --cpus x",
        "run -b --kernel k",
        "launch",
        "launch --colour x",
        "stats",
        "create",
        "wait x --timeout soon",
        "relocate x 0 4Q",
        "console x --escape 7",
        "core-move x 0",
        "core-move x 0 nowhere",
        "debug",
        "debug x --walk there",
        "debug x --walk 0 --memory 0",
        "debug x --memory 0,0",
        "debug x --memory 0,17M",
        "debug x --physical 0 --vcpu 1",
        "debug x --vcpu -1",
        "completions csh",
    ] {
        v3(line).assert().code(125).stdout(is_empty()).stderr(
            starts_with("v3: ")
                .and(contains("\nhint: "))
                .and(contains("error:").not()),
        );
    }
    v3("run").assert().stderr(contains(
        "hint: usage: v3 run <FILE|--kernel <FILE>|--check>",
    ));
    // Nothing is asked for: that is no mistake in what is.
    v3("")
        .assert()
        .code(125)
        .stdout(is_empty())
        .stderr(contains("Usage"));
}

#[test]
fn one_kind_of_mistake_has_one_status_in_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let missing = "no such file or directory";
    fs::write(path("no-kernel.toml"), "memory = 16\nkernel = \"none\"\n").unwrap();
    fs::write(path("wrong.toml"), "memory = 1\nkernel = \"wrong.toml\"\n").unwrap();
    fs::write(path("text.toml"), "memory = 16\nkernel = \"wrong.toml\"\n").unwrap();
    // A file that is not there, whoever names it.
    for file in ["none.toml", "no-kernel.toml"] {
        v3(&format!("build {}", path(file)))
            .assert()
            .code(125)
            .stderr(starts_with("v3: ").and(contains(missing)));
    }
    // A folder that is a file.
    v3(&format!("man {}", path("wrong.toml")))
        .assert()
        .code(125);
    v3(&format!("links {}", path("wrong.toml")))
        .assert()
        .code(125);
    // A guest that is wrong.
    for file in ["wrong.toml", "text.toml"] {
        v3(&format!("build {}", path(file)))
            .assert()
            .code(126)
            .stderr(starts_with("v3: "));
    }
}

#[test]
fn options_are_checked_without_a_guest() {
    for (options, code, message) in [
        ("--cpus 2 --mem 64 --initrd Cargo.toml", 0, ""),
        ("--cpuz 2", 125, "unexpected argument '--cpuz'"),
        ("--cpus 65", 126, "--cpus: a machine has 1 to 64"),
        ("--initrd none", 125, "v3: none: no such file"),
        ("--module none=words", 125, "v3: none: no such file"),
    ] {
        let done = v3(&format!("run --check {options}")).assert();
        done.code(code).stdout(is_empty()).stderr(contains(message));
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
        .stdout(contains("no module: /dev/v3vee: no such device"));
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
    v3(&format!(
        "build {} -o /nowhere/guest.img",
        path("guest.toml")
    ))
    .assert()
    .code(125)
    .stderr("v3: /nowhere/guest.img: no such file or directory\n");
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
    build("memory = \"16M\"\nvcpus = 0\nkernel = \"none\"")
        .stderr(contains("guest.toml:2: vcpus: "));
    build("memory = \"1\"\nkernel = \"none\"").stderr(contains("guest.toml:1: memory: "));
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

/// A folder with `v3` and all its links, as `v3 links` makes them, and the links' names.
fn links() -> (tempfile::TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("v3");
    // Not by this process: a child of another thread would hold the file open for writing for a moment, and nobody could execute it.
    Command::new("cp")
        .arg(assert_cmd::cargo::cargo_bin("v3"))
        .arg(&program)
        .assert()
        .success();
    Command::new(&program)
        .arg("links")
        .arg(dir.path())
        .assert()
        .code(0)
        .stdout(is_empty())
        .stderr(is_empty());
    let listed = v3("links --json").assert().code(0);
    let json: serde_json::Value = serde_json::from_slice(&listed.get_output().stdout).unwrap();
    let names = json.as_array().unwrap().iter();
    let names = names.map(|link| link["link"].as_str().unwrap().to_string());
    (dir, names.collect())
}

#[test]
fn palacios_names_are_links() {
    let (dir, names) = links();
    for wanted in [
        "v3_create",
        "v3_launch",
        "v3_stop",
        "v3_pause",
        "v3_continue",
        "v3_free",
        "v3_wait",
        "v3_cons",
        "v3_stream",
        "v3_stats",
        "v3_core_move",
        "v3_list",
        "v3_info",
    ] {
        assert!(names.iter().any(|name| name == wanted), "{wanted}");
    }
    for name in names {
        let link = dir.path().join(&name);
        Command::new(&link)
            .arg("--help")
            .assert()
            .code(0)
            .stdout(contains(format!("Usage: {name}")));
        Command::new(&link)
            .arg("--colour")
            .assert()
            .code(125)
            .stdout(is_empty())
            .stderr(starts_with("v3: ").and(contains(format!("hint: usage: {name}"))));
    }
    let mut free = Command::new(dir.path().join("v3_free"));
    free.arg("0")
        .assert()
        .code(125)
        .stderr(starts_with("v3: ").and(contains("insmod")));
    let unknown = dir.path().join("v3_boil");
    std::os::unix::fs::symlink("v3", &unknown).unwrap();
    Command::new(&unknown)
        .assert()
        .code(125)
        .stderr("v3: no command is called v3_boil\nhint: `v3 links` lists all names\n");
}

#[test]
fn links_are_listed() {
    v3("links")
        .assert()
        .code(0)
        .stdout(contains("v3_cons        v3 console\n"));
}

/// Has a real bash complete a line, with all that `v3 completions bash` gives; `path` is where it looks for programs.
/// The words are an array in the shell's syntax, of which the last is completed.
fn bash_completes(path: &Path, words: &str) -> Vec<String> {
    let script = format!(
        "source <({v3} completions bash) || exit 1
         COMP_WORDS=({words})
         COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_TYPE=9
         function=$(complete -p \"${{COMP_WORDS[0]}}\" | grep -o '_clap_complete_[a-z0-9_]*') || exit 1
         $function \"${{COMP_WORDS[0]}}\" \"${{COMP_WORDS[COMP_CWORD]}}\"
         printf '%s\n' \"${{COMPREPLY[@]}}\"",
        v3 = assert_cmd::cargo::cargo_bin("v3").display()
    );
    let path = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
    let run = Command::new("bash")
        .args(["--norc", "-c", &script])
        .env("PATH", path)
        .assert()
        .success()
        .stderr(is_empty());
    let text = String::from_utf8(run.get_output().stdout.clone()).unwrap();
    text.lines().map(Into::into).collect()
}

#[test]
fn bash_completes_commands_options_and_files_of_v3_and_its_links() {
    let (dir, names) = links();
    let complete = |words: &str| bash_completes(dir.path(), words);
    assert_eq!(complete("v3 lau"), ["launch"]);
    assert_eq!(complete("v3 run --exp"), ["--expect"]);
    assert_eq!(complete("v3_wait --for"), ["--for-launch"]);
    fs::write(dir.path().join("guest.img"), "").unwrap();
    let start = format!("{}/gue", dir.path().display());
    let file = [format!("{}/guest.img", dir.path().display())];
    assert_eq!(complete(&format!("v3 run {start}")), file);
    assert_eq!(complete(&format!("v3_create {start}")), file);
    for name in names {
        let options = complete(&format!("{name} --hel"));
        assert_eq!(options, ["--help"], "{name}");
    }
}

/// There is no module here: a program in place of `v3` gives the names. `tests/module.rs` asks the real one for them.
#[test]
fn bash_asks_v3_for_names_with_the_whole_line() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("v3");
    let script = "#!/bin/sh\n[ \"$V3_COMPLETE $*\" = \"bash -- v3_stream debian co\" ] || exit 1\n\
                  [ $_CLAP_COMPLETE_INDEX = 2 ] || exit 1\nprintf 'com1\\013com2'\n";
    fs::write(&fake, script).unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let streams = bash_completes(dir.path(), "v3_stream debian co");
    assert_eq!(streams, ["com1", "com2"]);
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
    let page = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    for name in ["v3.1", "v3-run.1", "v3-links.1", "v3_create.1", "v3_cons.1"] {
        assert!(page(name).contains(".SH SYNOPSIS"), "{name}");
    }
    for option in ["expect", "cpus", "append", "cmdline"] {
        assert!(
            page("v3-run.1").contains(&format!("\\-\\-{option}")),
            "{option}"
        );
    }
    assert!(page("v3-wait.1").contains("\\-\\-for\\-launch"));
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

/// A saved machine with a device and a page of memory.
fn saved() -> Vec<u8> {
    use palacios_core::saved_file::{write_begin, write_end, write_ram};
    use palacios_core::sections::{write_section, SectionName};
    let mut file = Vec::new();
    write_begin(&mut file, b"no image").unwrap();
    file.extend_from_slice(b"no image");
    let path = SectionName::new(format_args!("device/com3"));
    write_section(&mut file, &path, "serial", |to| to.u32(1)).unwrap();
    write_ram(&mut file, 2, |to| to.bytes(&[7; 4096])).unwrap();
    write_end(&mut file, 3).unwrap();
    file
}

#[test]
fn what_was_saved_is_described_without_a_module() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kept.v3");
    fs::write(&path, saved()).unwrap();
    let line = format!("inspect {}", path.display());
    v3(&line)
        .assert()
        .success()
        .stderr(is_empty())
        .stdout(starts_with("name: kept\nsections: 3, and 1 of RAM\n"))
        .stdout(contains(
            "  device/com3          serial                4 bytes\n",
        ));
    v3(&format!("{line} --json"))
        .assert()
        .success()
        .stdout(contains("\"name\":\"kept\",\"machine\":null"))
        .stdout(contains("\"ram_bytes\":4096"))
        .stdout(contains(
            "{\"id\":\"com3\",\"kind\":\"serial\",\"bytes\":4}",
        ));
    for (damage, told) in [
        (&saved()[..100], "it is cut off behind section device/com3"),
        (&saved()[..7], "it is no saved machine"),
        (&b"\x7fv3save\r\n and more"[..], "it is no saved machine"),
    ] {
        fs::write(&path, damage).unwrap();
        let message = format!("v3: {}: {told}\n", path.display());
        v3(&line)
            .assert()
            .code(126)
            .stdout(is_empty())
            .stderr(message);
    }
    v3("inspect absent")
        .assert()
        .code(125)
        .stderr(starts_with("v3: absent: no such file"));
    v3(&format!("inspect {}", dir.path().display()))
        .assert()
        .code(125)
        .stderr(contains("this is no file"));
}
