// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest.toml means, and what is said of a wrong one.

use super::*;
use std::fs;

/// Reads `text` as a guest.toml beside the files `kernel`, `a` and `b`.
fn read(text: &str) -> std::result::Result<Guest, String> {
    let dir = tempfile::tempdir().unwrap();
    for file in ["kernel", "a", "b"] {
        fs::write(dir.path().join(file), file).unwrap();
    }
    let file = dir.path().join("guest.toml");
    let guest = Definition::new(text, &file).guest();
    let strip = format!("{}/", dir.path().display());
    guest.map_err(|e| e.to_string().replace(&strip, ""))
}

fn refused(text: &str) -> String {
    read(text).unwrap_err()
}

const LEAST: &str = "memory = \"64M\"\nkernel = \"kernel\"\n";

fn name(file: &Contents) -> &str {
    match file {
        Contents::File(path) => path.file_name().unwrap().to_str().unwrap(),
        other => panic!("{other}"),
    }
}

fn names(files: &[Contents]) -> Vec<&str> {
    files.iter().map(name).collect()
}

#[test]
fn the_least_has_one_cpu_and_a_console() {
    let guest = read(LEAST).unwrap();
    let kernel = guest.kernel.clone();
    let expected = Guest {
        memory_bytes: 64 << 20,
        kernel,
        ..Guest::new(PathBuf::new())
    };
    assert_eq!(guest, expected);
    assert_eq!(guest.serials, [SerialPort::new(ComPort::Com1)]);
}

#[test]
fn everything_is_read() {
    let guest = read(
        r#"
        name = "all"
        memory = "2 GiB"
        vcpus = 3
        pins = [2, 0]
        cpu = ["-la57", "-pcid"]
        kernel = "kernel"
        boot = "multiboot"
        cmdline = "-x"
        initrd = ["a", "b"]
        console = "log"
        on_triple_fault = "reset"
        test_device = true
        [[module]]
        file = "a"
        cmdline = "a 1"
        [[module]]
        file = "b"
        [[serial]]
        port = "com2"
        stream = "log"
        [[serial]]
        port = "com1"
        "#,
    )
    .unwrap();
    assert_eq!(guest.name.as_deref(), Some("all"));
    assert_eq!((guest.memory_bytes, guest.vcpus), (2 << 30, 3));
    let without: Vec<_> = guest.without.iter().map(|f| f.name()).collect();
    assert_eq!(without, ["pcid", "la57"]);
    assert_eq!(
        (guest.pins, guest.boot),
        (vec![Some(2), Some(0)], Boot::Multiboot)
    );
    assert_eq!(guest.cmdline, "-x");
    assert_eq!(
        (guest.on_triple_fault, guest.test_device),
        (OnTripleFault::Reset, true)
    );
    assert_eq!(names(&guest.initrds), ["a", "b"]);
    let modules: Vec<_> = guest.modules.iter().map(|m| m.cmdline.as_str()).collect();
    assert_eq!(modules, ["a 1", ""]);
    assert_eq!(guest.console.as_deref(), Some("log"));
    let serials: Vec<_> = guest
        .serials
        .iter()
        .map(|s| (s.port.number(), s.stream.as_str()))
        .collect();
    assert_eq!(serials, [(2, "log"), (1, "com1")]);
}

#[test]
fn disks_have_files_or_sizes() {
    let disks = "[[disk]]\nfile = \"a\"\nread_only = true\n[[disk]]\nsize = 64\n[[disk]]\nfile = \"b\"\nsize = \"1K\"";
    let guest = read(&format!("{LEAST}{disks}")).unwrap();
    let all: Vec<_> = guest
        .disks
        .iter()
        .map(|disk| {
            let file = disk.contents.as_ref().map(name);
            (file, disk.bytes, disk.is_read_only)
        })
        .collect();
    let expected = [
        (Some("a"), None, true),
        (None, Some(64 << 20), false),
        (Some("b"), Some(1024), false),
    ];
    assert_eq!(all, expected);
}

#[test]
fn one_initrd_and_no_port() {
    let guest = read(&format!("{LEAST}initrd = \"a\"\nserial = []")).unwrap();
    assert_eq!(names(&guest.initrds), ["a"]);
    assert_eq!(guest.serials, []);
}

#[test]
fn errors_name_the_line_and_the_way_out() {
    let after = |more: &str| refused(&format!("{LEAST}{more}"));
    assert_eq!(
        after("vcpus = 65"),
        "guest.toml:3: vcpus: a machine has 1 to 64 virtual CPUs"
    );
    assert_eq!(
        after("\n\ninitrd = \"c\""),
        "guest.toml:5: initrd: c: no such file or directory"
    );
    assert_eq!(
        after("initrd = \".\""),
        "guest.toml:3: initrd: .: not a file"
    );
    assert_eq!(
        after("pins = [1, 2]"),
        "guest.toml:3: pins: more than vcpus, which is 1"
    );
    assert!(after("name = \"7\"").starts_with("guest.toml:3: name: use"));
    assert_eq!(
        after("console = \"com2\""),
        "guest.toml:3: console: no serial port has the stream `com2`"
    );
    let ports = "[[serial]]\nport = \"com1\"\n[[serial]]\nport = ";
    assert_eq!(
        after(&format!("{ports}\"com1\"")),
        "guest.toml:6: port: com1 is there twice"
    );
    assert_eq!(
        after(&format!("{ports}\"com9\"")),
        "guest.toml:6: port: is none of com1, com2, com3, com4"
    );
    assert_eq!(
        after(&format!("{ports}\"com2\"\nstream = \"com1\"")),
        "guest.toml:6: stream: `com1` is another port's, too"
    );
    assert!(after(&format!("{ports}\"com2\"\nstream = \"\""))
        .starts_with("guest.toml:7: stream: use 1"));
    assert!(after("cmdline = \"a\\u0000b\"").contains("NUL"));
    assert_eq!(
        after("cpu = [\"-pcid\", \"-lm57\"]"),
        "guest.toml:3: cpu: no feature is called `lm57`; is it `la57`? `v3 info --cpuid` lists all"
    );
    assert_eq!(
        after("cpu = [\"avx\"]"),
        "guest.toml:3: cpu: avx: features can only be taken away: write `-avx`"
    );
    assert_eq!(
        after("cpu = [\"-svm\"]"),
        "guest.toml:3: cpu: no guest has svm: a guest cannot run guests of its own"
    );
    let disk = |rest: &str| after(&format!("[[disk]]\n{rest}"));
    assert_eq!(
        disk("read_only = true"),
        "guest.toml:3: disk: has neither a file nor a size"
    );
    assert_eq!(
        disk("file = \"c\""),
        "guest.toml:4: file: c: no such file or directory"
    );
    for size in ["\"1000B\"", "0", "\"2T\""] {
        assert_eq!(
            disk(&format!("size = {size}")),
            "guest.toml:4: size: a disk has 512 bytes to 1 TiB, in steps of 512"
        );
    }
    assert!(after("cpu = [\"-osxsave\"]").contains("cannot be taken away"));
}

#[test]
fn a_missing_file_is_told_from_a_wrong_description() {
    let about_a_file = |more: &str| {
        let text = format!("{LEAST}{more}");
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kernel"), "").unwrap();
        let file = dir.path().join("guest.toml");
        let error = Definition::new(&text, &file).guest().unwrap_err();
        error.is_about_a_file
    };
    assert!(about_a_file("initrd = \"c\""));
    assert!(!about_a_file("vcpus = 65"));
}

#[test]
fn what_toml_itself_refuses_has_its_line_too() {
    assert!(refused("memory = ").starts_with("guest.toml:1: "));
    assert!(
        refused(&format!("{LEAST}colour = 1")).starts_with("guest.toml:3: unknown field `colour`")
    );
    assert!(refused(&format!("{LEAST}boot = \"efi\""))
        .starts_with("guest.toml:3: unknown variant `efi`"));
    assert!(refused(&format!("{LEAST}initrd = 5")).contains("expected a path or a list of paths"));
    assert!(refused("kernel = \"kernel\"").contains("missing field `memory`"));
    assert!(refused("kernel = \"kernel\"\nmemory = true")
        .starts_with("guest.toml:2: expected a size like"));
}

#[test]
fn memory_has_a_range_and_need_not_have_a_unit() {
    let definition = |m: &str| format!("kernel = \"kernel\"\nmemory = {m}");
    for same in ["\"512M\"", "\"512\"", "512"] {
        assert_eq!(read(&definition(same)).unwrap().memory_bytes, 512 << 20);
    }
    assert!(refused(&definition("1")).starts_with("guest.toml:2: memory: a machine has 2 to"));
    let memory = |m: &str| refused(&definition(&format!("\"{m}\"")));
    assert!(memory("512X").starts_with("guest.toml:2: memory: `512X` is not a size"));
    assert!(memory("1M").starts_with("guest.toml:2: memory: a machine has 2 to"));
    assert!(memory("2T").contains("a machine has"));
    assert!(memory("2049K").contains("steps of 4 KiB"));
}
