// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes images and VMs.

use crate::cli::{Build, Changes, Create};
use crate::failure::{Failure, Outcome};
use crate::output::{print, print_json};
use crate::progress::{during, reading};
use crate::whole_file::write_whole;
use palacios_core::image::Image;
use serde::Serialize;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use v3_ctl::{
    check_memory, check_vcpus, node_of, read_file, Contents, Control, Definition, Guest, Vm,
};

pub fn build(args: &Build) -> Outcome {
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| args.toml.with_extension("img"));
    let image = build_image(&read_definition(&args.toml)?)?;
    during("writing the image", || {
        write_whole(&output, 0o666, |to| Ok(to.write_all(&image)?))
    })?;
    Ok(0)
}

/// A VM that was made.
#[derive(Serialize)]
pub struct Made<'a> {
    pub vm: u32,
    pub name: &'a str,
    pub node: String,
}

pub fn create(args: &Create) -> Outcome {
    let control = Control::open()?;
    let image = image_of(Some(&args.image), args.build, &args.changes)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name(&image, &args.image),
    };
    let vm = create_vm(&control, &image, &name)?.number();
    let node = node_of(vm);
    if args.format.json {
        let name = &name;
        print_json(&Made { vm, name, node })?;
    } else {
        print(&format!("VM ({name}) created at {node}\n"))?;
    }
    Ok(0)
}

pub fn create_vm(control: &Control, image: &[u8], name: &str) -> Result<Vm, Failure> {
    Ok(during("creating the VM", || control.create(image, name))?)
}

/// The guest that a TOML file describes.
fn read_definition(file: &Path) -> Result<Guest, Failure> {
    let raw = fs::read(file).map_err(|e| Failure::file(file, &e))?;
    let wrong = |what: &str| {
        Err(Failure::refused(format!("{}: {what}", file.display()))
            .hint("describe the guest in TOML, as `v3 build --help` shows"))
    };
    let Ok(text) = String::from_utf8(raw) else {
        return wrong("this is no text");
    };
    if text.trim_start().starts_with('<') {
        return wrong("this is XML, which is not read");
    }
    Ok(Definition::new(&text, file).guest()?)
}

/// The image for a VM. It is that of a file, guest.img or guest.toml, with some changes. Without a file a kernel is given.
pub fn image_of(
    file: Option<&Path>,
    is_definition: bool,
    changes: &Changes,
) -> Result<Vec<u8>, Failure> {
    let mut guest = match file {
        Some(file) if is_definition => read_definition(file)?,
        Some(file) => {
            let image = read(file)?;
            if changes.is_empty() {
                during("checking the image", || check(&image, file))?;
                return Ok(image);
            }
            Guest::of_image(&image, file)?
        }
        None => Guest::new(changes.kernel.clone().unwrap_or_default()),
    };
    changes.apply(&mut guest)?;
    build_image(&guest)
}

fn check(image: &[u8], file: &Path) -> Result<(), Failure> {
    let machine = Image::parse(image).and_then(|image| image.machine().map(|_| ()));
    machine.map_err(|e| Failure::refused(format!("{}: {e}", file.display())))
}

impl Changes {
    fn is_empty(&self) -> bool {
        let Self {
            kernel,
            initrd,
            module,
            append,
            cmdline,
            mem,
            cpus,
            pins,
            cpu,
            on_triple_fault,
            test_device,
        } = self;
        let files = kernel.is_none() && initrd.is_empty() && module.is_empty();
        let line = append.is_none() && cmdline.is_none();
        let cpus = cpus.is_none() && pins.is_empty() && cpu.is_empty();
        let machine = mem.is_none() && on_triple_fault.is_none() && !test_device;
        files && line && cpus && machine
    }

    fn apply(&self, guest: &mut Guest) -> Result<(), Failure> {
        if let Some(kernel) = &self.kernel {
            guest.kernel = Contents::File(kernel.clone());
        }
        let initrds = self.initrd.iter().cloned();
        guest.initrds.extend(initrds.map(Contents::File));
        guest.modules.extend(self.module.iter().cloned());
        if let Some(cmdline) = &self.cmdline {
            guest.cmdline.clone_from(cmdline);
        }
        if let Some(more) = &self.append {
            let space = if guest.cmdline.is_empty() { "" } else { " " };
            guest.cmdline = format!("{}{space}{more}", guest.cmdline);
        }
        let wrong = |option: &str, why| Failure::refused(format!("{option}: {why}"));
        if let Some(bytes) = self.mem {
            guest.memory_bytes = check_memory(bytes).map_err(|why| wrong("--mem", why))?;
        }
        if let Some(count) = self.cpus {
            guest.vcpus = check_vcpus(count).map_err(|why| wrong("--cpus", why))?;
        }
        self.cpu
            .iter()
            .for_each(|feature| guest.without.insert(*feature));
        if let Some(what) = self.on_triple_fault {
            guest.on_triple_fault = what;
        }
        guest.test_device |= self.test_device;
        self.pin(guest)
    }

    /// Checks them without a guest to change: its kernel is still to come.
    pub fn check_alone(&self) -> Result<(), Failure> {
        let mut guest = Guest::new(PathBuf::new());
        self.apply(&mut guest)?;
        let modules = guest.modules.iter().map(|module| &module.contents);
        for contents in guest.initrds.iter().chain(modules) {
            if let Contents::File(file) = contents {
                read(file)?;
            }
        }
        Ok(())
    }

    fn pin(&self, guest: &mut Guest) -> Result<(), Failure> {
        let count = guest.vcpus as usize;
        if self.pins.len() > count {
            return Err(Failure::refused(format!(
                "--pins names more CPUs than the machine has, which is {count}"
            ))
            .hint("give one for each virtual CPU that is to be pinned, and with --cpus as many virtual CPUs"));
        }
        if !self.pins.is_empty() {
            guest.pins = self.pins.iter().map(|cpu| cpu.0).collect();
        }
        // With fewer virtual CPUs than the image has, the pins of the others are of no use.
        guest.pins.truncate(count);
        Ok(())
    }
}

/// Reads a file, and shows how far it is.
fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    Ok(reading(|step| read_file(file, step))?)
}

/// Builds an image, and shows how far it is.
pub fn build_image(guest: &Guest) -> Result<Vec<u8>, Failure> {
    Ok(reading(|step| guest.build(step))?)
}

/// The name of a VM whose maker gave none: the image's, else the file's.
pub fn default_name(image: &[u8], file: &Path) -> String {
    let parsed = Image::parse_again(image);
    let machine = parsed.as_ref().ok().and_then(|image| image.machine().ok());
    let named = machine
        .and_then(|machine| machine.name)
        .filter(|name| is_name(name));
    named.map_or_else(|| name_of_file(file), Into::into)
}

fn is_name(name: &str) -> bool {
    v3_abi::is_vm_name(name.as_bytes())
}

/// A name made of a file's, without its ending and without what a name cannot have.
fn name_of_file(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let allowed = |c: char| if is_name(&format!("x{c}")) { c } else { '_' };
    let name: String = stem.chars().map(allowed).take(40).collect();
    if is_name(&name) {
        name
    } else {
        format!("vm{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_becomes_a_vms() {
        let name = |file: &str| name_of_file(Path::new(file));
        assert_eq!(name("/boot/guest.img"), "guest");
        assert_eq!(name("vmlinuz-6.1.0-amd64"), "vmlinuz-6.1");
        assert_eq!(name("my guest.img"), "my_guest");
        assert_eq!(name("42.img"), "vm42");
        assert_eq!(name(".."), "vm");
        assert!(is_name(&name(&"x".repeat(200))));
    }

    use crate::cli::{Cli, Command};
    use clap::Parser;
    use palacios_core::devices::test_device;
    use palacios_core::features::Feature;
    use palacios_core::image::{Machine, OnTripleFault};

    /// The changes that a command line asks for.
    fn changes(options: &str) -> Changes {
        let line = format!("v3 run guest.img {options}");
        match Cli::parse_from(line.split_whitespace()).command {
            Command::Run(run) => run.changes,
            _ => panic!(),
        }
    }

    /// The least Multiboot 1 kernel (tests/build.rs explains it), with a last word to tell one from another.
    fn kernel(last: u32) -> Vec<u8> {
        let (magic, flags, load) = (0x1bad_b002u32, 1 << 16, 1 << 20);
        let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
        let words = [magic, flags, checksum, load, load, 0, 0, load + 32, last];
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// A folder with an image of 16 MiB and 4 CPUs, three of them pinned, and files to change it.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, data) in [
            ("k", kernel(1)),
            ("k2", kernel(2)),
            ("m", b"m".into()),
            ("m2", b"m2".into()),
        ] {
            fs::write(path(name), data).unwrap();
        }
        let toml = "name = \"first\"\nmemory = 16\nvcpus = 4\npins = [3, 2, 1]\nkernel = \"k\"\n\
                    cmdline = \"a=1\"\n[[module]]\nfile = \"m\"\ncmdline = \"one\"\n\
                    [[serial]]\nport = \"com2\"\nstream = \"log\"\n[[serial]]\nport = \"com1\"\n";
        fs::write(path("guest.toml"), toml).unwrap();
        let image = image_of(Some(&path("guest.toml")), true, &Changes::default()).unwrap();
        fs::write(path("guest.img"), image).unwrap();
        dir
    }

    /// Looks at the machine that the image in `dir` is with changes; `@` in the options is the folder.
    fn changed(dir: &Path, options: &str, look: impl FnOnce(Machine<'_>)) {
        let options = options.replace('@', &dir.display().to_string());
        let image = image_of(Some(&dir.join("guest.img")), false, &changes(&options)).unwrap();
        look(Image::parse(&image).unwrap().machine().unwrap());
    }

    fn refused(dir: &Path, options: &str) -> Failure {
        let options = options.replace('@', &dir.display().to_string());
        image_of(Some(&dir.join("guest.img")), false, &changes(&options)).unwrap_err()
    }

    #[test]
    fn what_is_not_changed_stays() {
        let dir = folder();
        changed(dir.path(), "--mem 32", |machine| {
            assert_eq!(machine.ram.bytes(), 32 << 20);
            assert_eq!((machine.name, machine.vcpus), (Some("first"), 4));
            let pins: Vec<_> = (0..4).map(|vcpu| machine.pin(vcpu)).collect();
            assert_eq!(pins, [Some(3), Some(2), Some(1), None]);
            assert_eq!((machine.bootargs, machine.kernel), ("a=1", &kernel(1)[..]));
            let modules: Vec<_> = machine.modules().map(|m| (m.data, m.bootargs)).collect();
            assert_eq!(modules, [(&b"m"[..], "one")]);
            let serials: Vec<_> = machine
                .serials()
                .map(|s| (s.port.base(), s.stream))
                .collect();
            assert_eq!(serials, [(0x3f8, "com1"), (0x2f8, "log")]);
            assert_eq!(machine.console, Some("com1"));
        });
    }

    #[test]
    fn an_image_without_changes_is_taken_to_the_byte() {
        let dir = folder();
        let file = dir.path().join("guest.img");
        let image = image_of(Some(&file), false, &Changes::default()).unwrap();
        assert_eq!(image, fs::read(file).unwrap());
    }

    #[test]
    fn append_adds_to_the_command_line_and_cmdline_replaces_it() {
        let dir = folder();
        let line = |options: &str, expected: &str| {
            changed(dir.path(), options, |machine| {
                assert_eq!(machine.bootargs, expected)
            });
        };
        line("--append b=2", "a=1 b=2");
        line("--cmdline b=2", "b=2");
        line("--cmdline b=2 --append c", "b=2 c");
        let mut guest = Guest::new("k".into());
        changes("--append c").apply(&mut guest).unwrap();
        assert_eq!(guest.cmdline, "c");
    }

    #[test]
    fn cpus_and_their_pins_are_changed() {
        let dir = folder();
        let pins = |options: &str, expected: &[Option<u32>]| {
            changed(dir.path(), options, |machine| {
                let pins: Vec<_> = (0..machine.vcpus).map(|vcpu| machine.pin(vcpu)).collect();
                assert_eq!(pins, expected);
            });
        };
        pins("--cpus 2", &[Some(3), Some(2)]);
        pins("--cpus 5", &[Some(3), Some(2), Some(1), None, None]);
        pins("--pins any,7", &[None, Some(7), None, None]);
        pins("--cpus 1 --pins 9", &[Some(9)]);
        let too_many = refused(dir.path(), "--cpus 1 --pins 4,2");
        assert_eq!(too_many.code, crate::failure::REFUSED);
        assert!(too_many.to_string().contains("which is 1\nhint: "));
    }

    #[test]
    fn features_are_taken_away_besides_those_of_the_image() {
        let dir = folder();
        let without = |options: &str, expected: &[Feature]| {
            changed(dir.path(), options, |machine| {
                assert_eq!(machine.without.iter().collect::<Vec<_>>(), expected);
            });
        };
        without("--mem 32", &[]);
        without("--cpu -la57,-pcid", &[Feature::Pcid, Feature::La57]);
        without("--cpu=-avx --cpu=-sse3", &[Feature::Sse3, Feature::Avx]);
        let image = image_of(
            Some(&dir.path().join("guest.img")),
            false,
            &changes("--cpu -avx"),
        );
        fs::write(dir.path().join("guest.img"), image.unwrap()).unwrap();
        without("--cpu -pcid", &[Feature::Pcid, Feature::Avx]);
    }

    #[test]
    fn files_are_added_and_the_kernel_is_replaced() {
        let dir = folder();
        let options = "--kernel @/k2 --module @/m2=two --initrd @/m";
        changed(dir.path(), options, |machine| {
            assert_eq!(machine.kernel, kernel(2));
            let modules: Vec<_> = machine.modules().map(|m| (m.data, m.bootargs)).collect();
            assert_eq!(modules, [(&b"m"[..], "one"), (&b"m2"[..], "two")]);
            assert_eq!(machine.initrds().collect::<Vec<_>>(), [b"m"]);
        });
    }

    #[test]
    fn triple_faults_and_the_test_device_are_changed() {
        let dir = folder();
        let machine = |options: &str, expected| {
            changed(dir.path(), options, |machine| {
                assert_eq!(
                    (machine.on_triple_fault, machine.has(&test_device::KIND)),
                    expected
                );
            });
        };
        machine("--mem 32", (OnTripleFault::Stop, false));
        machine("--test-device", (OnTripleFault::Stop, true));
        machine("--on-triple-fault reset", (OnTripleFault::Reset, false));
        let definition = dir.path().join("guest.toml");
        let toml = fs::read_to_string(&definition).unwrap();
        let wishes = "on_triple_fault = \"reset\"\ntest_device = true\n";
        fs::write(&definition, format!("{wishes}{toml}")).unwrap();
        let image = image_of(Some(&definition), true, &Changes::default()).unwrap();
        fs::write(dir.path().join("guest.img"), image).unwrap();
        machine("--mem 32", (OnTripleFault::Reset, true));
        machine("--on-triple-fault stop", (OnTripleFault::Stop, true));
    }

    #[test]
    fn a_changed_guest_is_checked_as_a_built_one() {
        let dir = folder();
        for (options, message) in [
            ("--mem 1", "--mem: a machine has 2 to"),
            ("--mem 2T", "--mem: a machine has"),
            ("--mem 2049K", "in steps of 4 KiB"),
            ("--cpus 0", "--cpus: a machine has 1 to 64 virtual CPUs"),
            ("--cpus 65", "--cpus: a machine has"),
        ] {
            let wrong = refused(dir.path(), options);
            assert_eq!(wrong.code, crate::failure::REFUSED, "{options}");
            assert!(wrong.message().contains(message), "{wrong}");
        }
        let no_kernel = refused(dir.path(), "--kernel @/m");
        assert_eq!(no_kernel.code, crate::failure::REFUSED);
        assert!(no_kernel.message().contains("m: the kernel is neither"));
        let missing = refused(dir.path(), "--initrd @/none");
        assert_eq!(missing.code, crate::failure::TOOL);
        assert!(missing
            .message()
            .ends_with("none: no such file or directory"));
        fs::write(dir.path().join("m"), vec![0; 8 << 20]).unwrap();
        let small = refused(dir.path(), "--mem 4 --module @/m");
        assert_eq!(small.code, crate::failure::REFUSED);
        assert!(
            small
                .message()
                .contains("guest.img, its kernel: the machine has"),
            "{small}"
        );
    }
}
