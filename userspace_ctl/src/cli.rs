// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: `v3 COMMAND …`. Palacios' names are in [`crate::links`].

mod disk;
mod ends;
mod help;
mod values;

use crate::complete;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueHint};
use clap_complete::engine::ArgValueCandidates;
pub use disk::DiskFile;
pub use ends::{EndOf, Ends};
use palacios_core::features::Feature;
use std::path::PathBuf;
use std::time::Duration;
use v3_ctl::{parse_length, parse_memory, parse_seconds, ModuleFile, OnTripleFault};
pub use values::{Cpu, Memory};

/// Builds guest images, and runs and watches virtual machines of v3vee.ko
#[derive(Parser)]
#[command(name = "v3", version, arg_required_else_help = true, after_help = help::V3)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make a guest.img of a guest.toml
    #[command(after_help = help::BUILD)]
    Build(Build),
    /// Make a VM of a guest.img
    #[command(after_help = help::CREATE)]
    Create(Create),
    /// Start a VM
    Launch(OneVm),
    /// Stop a VM for good
    Stop(OneVm),
    /// Halt a VM's CPUs and its clock
    Pause(OneVm),
    /// Let a paused VM go on
    Continue(OneVm),
    /// Free a VM that does not run
    Free(Free),
    /// Wait until a VM stops, and exit as it did
    #[command(after_help = help::WAIT)]
    Wait(Wait),
    /// Create, launch, attach the console, wait and free in one
    #[command(after_help = help::RUN)]
    Run(Run),
    /// List all VMs
    List(Format),
    /// Describe a VM, or the module
    #[command(after_help = help::INFO)]
    Info(Info),
    /// Print a VM's counters
    Stats(Stats),
    /// Attach to a VM's console
    #[command(alias = "cons", after_help = help::CONSOLE)]
    Console(Console),
    /// Attach to a byte stream of a VM, such as a serial port
    #[command(after_help = help::CONSOLE)]
    Stream(Stream),
    /// Attach a device to a VM, running or not
    #[command(after_help = help::attach())]
    Attach(Attach),
    /// Detach a device from a VM, running or not
    Detach(Detach),
    /// Give a disk of a VM, running or not, another size
    #[command(after_help = help::RESIZE)]
    Resize(Resize),
    /// List a VM's devices
    Devices(Devices),
    /// Look into a VM, running or not: registers, interrupts, page tables, memory
    #[command(after_help = help::DEBUG)]
    Debug(Debug),
    /// Write a VM to a file, from which it can go on
    #[command(after_help = help::SAVE)]
    Save(Save),
    /// Make a VM that goes on from what was saved
    #[command(after_help = help::LOAD)]
    Load(Load),
    /// Say what is in a saved VM
    Inspect(Inspect),
    /// Give a VM other host memory for some of its pages
    Relocate(Relocate),
    /// Move a virtual CPU to a CPU of the host, running or not
    CoreMove(CoreMove),
    /// Print the versions of this program and of the module
    Version(Format),
    /// Make links with Palacios' names, or list them
    #[command(after_help = help::LINKS)]
    Links(Links),
    /// Print the completions for a shell
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// The shell
        #[arg(value_parser = complete::shells())]
        shell: String,
    },
    /// Print the manual page, or write all pages
    Man {
        /// The folder for all pages
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

#[derive(Args)]
pub struct OneVm {
    /// Name, number, or /dev/v3-vmN
    #[arg(add = ArgValueCandidates::new(complete::vms))]
    pub vm: String,
}

#[derive(Args)]
pub struct Build {
    /// The description of the guest
    pub toml: PathBuf,
    /// The image to write [default: the description's path, ending in .img]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Args)]
pub struct Create {
    /// FILE is a guest.toml: build the image first
    #[arg(short, long)]
    pub build: bool,
    /// The guest.img
    #[arg(value_name = "FILE")]
    pub image: PathBuf,
    /// Name of the VM [default: the one in the image, else the file's]
    pub name: Option<String>,
    #[command(flatten)]
    pub format: Format,
    #[command(flatten)]
    pub changes: Changes,
}

#[derive(Args)]
pub struct Free {
    /// Stop the VM first if it runs
    #[arg(short, long)]
    pub force: bool,
    #[command(flatten)]
    pub target: OneVm,
}

#[derive(Args)]
pub struct Wait {
    #[command(flatten)]
    pub target: OneVm,
    /// How long to wait at most
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
    /// Wait also for a VM that was not launched yet: somebody else launches it
    #[arg(long)]
    pub for_launch: bool,
    /// Exit with 0 if the guest ended with the test exit N, and with 1 if not
    #[arg(long, value_name = "N", value_parser = values::expected)]
    pub expect: Option<u32>,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
pub struct Format {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Info {
    /// List the features of the processor: whether the host and guests have each, and why not
    #[arg(long)]
    pub cpuid: bool,
    /// Name, number, or /dev/v3-vmN; without it, the module and the processor
    #[arg(add = ArgValueCandidates::new(complete::vms))]
    pub vm: Option<String>,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
pub struct Stats {
    #[command(flatten)]
    pub target: OneVm,
    /// Print counters that are zero, too (JSON always has them)
    #[arg(short, long)]
    pub all: bool,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
pub struct EscapeKey {
    /// The key that, with Ctrl, begins an escape
    #[arg(long, value_name = "KEY", default_value = "]", value_parser = values::escape)]
    pub escape: u8,
}

#[derive(Args)]
pub struct Console {
    #[command(flatten)]
    pub target: OneVm,
    #[command(flatten)]
    pub key: EscapeKey,
}

#[derive(Args)]
pub struct Stream {
    /// Pass each key on at once, as for a console; else line by line
    #[arg(short, long)]
    pub interactive: bool,
    #[command(flatten)]
    pub target: OneVm,
    /// Name of the stream, such as com1
    #[arg(add = ArgValueCandidates::new(complete::streams))]
    pub stream: String,
    #[command(flatten)]
    pub key: EscapeKey,
}

#[derive(Args)]
pub struct Attach {
    #[command(flatten)]
    pub target: OneVm,
    /// Kind of the device, such as serial or disk
    #[arg(add = ArgValueCandidates::new(complete::kinds))]
    pub kind: String,
    /// What the device is to be known by [default: the VM chooses]
    #[arg(long)]
    pub id: Option<String>,
    /// First port of a serial port: 0x3f8, 0x2f8, 0x3e8 or 0x2e8 [default: the first that is free]
    #[arg(long, value_parser = values::port)]
    pub port: Option<u16>,
    /// Slot of a PCI device: 2 to 31 [default: the first that is free]
    #[arg(long, value_name = "N", conflicts_with = "port", value_parser = clap::value_parser!(u8).range(2..32))]
    pub slot: Option<u8>,
    #[command(flatten)]
    pub key: EscapeKey,
    #[command(flatten)]
    pub format: Format,
    #[command(flatten)]
    pub ends: Ends,
}

#[derive(Args)]
pub struct Detach {
    #[command(flatten)]
    pub target: OneVm,
    /// What the device is known by, such as com3
    #[arg(add = ArgValueCandidates::new(complete::devices))]
    pub id: String,
    /// Take a PCI device away without asking the guest
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Args)]
pub struct Resize {
    #[command(flatten)]
    pub target: OneVm,
    /// What the disk is known by
    #[arg(add = ArgValueCandidates::new(complete::devices))]
    pub id: String,
    /// How large it is to be, such as 20G [default: what its file or block device has now]
    #[arg(value_parser = parse_length)]
    pub size: Option<u64>,
    /// It may become smaller, and lose what is behind its new end
    #[arg(long)]
    pub shrink: bool,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
pub struct Devices {
    #[command(flatten)]
    pub target: OneVm,
    /// Say what they do in a second, or in as many as are given
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1", value_parser = parse_seconds)]
    pub rates: Option<Duration>,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
#[command(group(ArgGroup::new("what").args(["walk", "walk_physical", "memory", "physical"])))]
pub struct Debug {
    #[command(flatten)]
    pub target: OneVm,
    /// Show this virtual CPU alone; with --walk and --memory, use its page tables [default there: 0]
    #[arg(long, value_name = "N", conflicts_with_all = ["physical", "walk_physical"])]
    pub vcpu: Option<u32>,
    /// Follow the page tables to a linear address, and then the nested tables
    #[arg(long, value_name = "ADDR", value_parser = values::address)]
    pub walk: Option<u64>,
    /// Follow the nested tables to a guest-physical address
    #[arg(long, value_name = "ADDR", value_parser = values::address)]
    pub walk_physical: Option<u64>,
    /// Dump memory from a linear address on
    #[arg(long, value_name = "ADDR[,LEN]", value_parser = values::memory)]
    pub memory: Option<Memory>,
    /// Dump memory from a guest-physical address on
    #[arg(long, value_name = "ADDR[,LEN]", value_parser = values::memory)]
    pub physical: Option<Memory>,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
pub struct Save {
    /// Leave the VM paused; without it, it goes on
    #[arg(short, long)]
    pub pause: bool,
    #[command(flatten)]
    pub target: OneVm,
    /// The file to write; `-` is standard output
    pub file: PathBuf,
}

#[derive(Args)]
pub struct Load {
    /// What `v3 save` wrote
    pub file: PathBuf,
    /// Name of the VM [default: the one in the image, else the file's]
    pub name: Option<String>,
    /// Make the VM only: `v3 launch` has it go on
    #[arg(long)]
    pub no_launch: bool,
    /// Where the stream of a device that was attached leads, or its disk is: END is pty, pipe:PATH, file:PATH, socket:PATH,
    /// disk:PATH[,OPTION…] or none
    #[arg(long = "end", value_name = "ID=END", value_parser = ends::end_of)]
    pub ends: Vec<EndOf>,
    /// Load it even if the guest's time stamp counter runs at another rate here
    #[arg(long)]
    pub new_tsc_rate: bool,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
pub struct Inspect {
    /// What `v3 save` wrote
    pub file: PathBuf,
    #[command(flatten)]
    pub format: Format,
}

/// What shall be other than an image or a guest.toml says.
#[derive(Args, Default)]
#[command(next_help_heading = "Changes to the guest")]
pub struct Changes {
    /// A Linux bzImage, a Multiboot kernel or an ELF file with a PVH note, in place of the one in FILE
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// One more initial file system; several are joined. A kernel that is no bzImage gets them as its last module
    #[arg(long, value_name = "FILE")]
    pub initrd: Vec<PathBuf>,
    /// One more file for a kernel that is no bzImage, with its command line
    #[arg(long, value_name = "FILE[=CMDLINE]", value_hint = ValueHint::FilePath, value_parser = values::module)]
    pub module: Vec<ModuleFile>,
    /// Text to add to the kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// The kernel's command line, in place of the one in FILE
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Memory, such as 512M or 1GiB; a number alone counts MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub mem: Option<u64>,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// For each of the first virtual CPUs the CPU of the host on which it stays, or `any`
    #[arg(long, value_name = "CPU,…", value_delimiter = ',', value_parser = values::cpu)]
    pub pins: Vec<Cpu>,
    /// Features of the host's processor to take away from the guest's, besides those that FILE takes
    #[arg(long, value_name = "-FEATURE,…", value_delimiter = ',', allow_hyphen_values = true,
          value_parser = v3_ctl::feature_taken_away, add = ArgValueCandidates::new(complete::features))]
    pub cpu: Vec<Feature>,
    /// What a triple fault does to the machine
    #[arg(long, value_name = "WHAT", value_parser = values::on_triple_fault())]
    pub on_triple_fault: Option<OnTripleFault>,
    /// Give the machine the device of test kernels, which know it as pc-testdev
    #[arg(long)]
    pub test_device: bool,
}

#[derive(Args)]
#[command(group(ArgGroup::new("guest").args(["image", "kernel", "check"]).required(true).multiple(true)))]
pub struct Run {
    /// FILE is a guest.toml: build the image first
    #[arg(short, long, requires = "image")]
    pub build: bool,
    /// The guest.img
    #[arg(value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// A disk: its file or block device, and how it is to be, as of `v3 attach`. Any number of them
    #[arg(long = "disk", value_name = "FILE[,OPTION…]", value_hint = ValueHint::FilePath, value_parser = disk::disk)]
    pub disks: Vec<DiskFile>,
    /// Name of the VM [default: that of the image or kernel, with the number of this process]
    #[arg(long)]
    pub name: Option<String>,
    /// Stop the VM after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
    /// Stop the VM when its console has been silent for so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub silence: Option<Duration>,
    /// Exit with 0 if the guest ended with the test exit N, and with 1 if not
    #[arg(long, value_name = "N", value_parser = values::expected)]
    pub expect: Option<u32>,
    /// Print one line of JSON at the end; the guest's output goes to standard error
    #[arg(long)]
    pub json: bool,
    /// Only check the options, the image and the files; needs no host, and without an image and a kernel checks the rest
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub key: EscapeKey,
    #[command(flatten)]
    pub changes: Changes,
}

#[derive(Args)]
pub struct Relocate {
    #[command(flatten)]
    pub target: OneVm,
    /// First guest-physical address, a multiple of 4096, such as 0x100000
    #[arg(value_parser = parse_length)]
    pub gpa: u64,
    /// Length, a multiple of 4096, such as 2M; a number alone counts bytes
    #[arg(value_parser = parse_length)]
    pub len: u64,
}

#[derive(Args)]
pub struct CoreMove {
    #[command(flatten)]
    pub target: OneVm,
    /// Number of the virtual CPU, from 0
    pub vcpu: u32,
    /// Number of the host's CPU, where it then stays; or `any`
    #[arg(value_parser = values::cpu)]
    pub cpu: Cpu,
}

#[derive(Args)]
pub struct Links {
    /// The folder for the links; without it they are listed
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    pub format: Format,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_finds_no_contradiction() {
        Cli::command().debug_assert();
    }

    fn run(line: &str) -> Result<Run, String> {
        let parsed = Cli::try_parse_from(line.split(' ')).map_err(|e| e.to_string())?;
        match parsed.command {
            Command::Run(run) => Ok(run),
            _ => panic!("{line}"),
        }
    }

    #[test]
    fn run_takes_an_image_a_kernel_or_both() {
        let options =
            "--initrd a --initrd b --module m=x=1 --append -v --mem 64 --cpus 3 --pins 1,any --cpu -la57,-pcid --on-triple-fault reset --test-device";
        for guest in ["g.img", "--kernel k", "g.img --kernel k", "-b g.toml"] {
            let run = run(&format!("v3 run {guest} {options}")).unwrap();
            let changes = run.changes;
            let pins = vec![Cpu(Some(1)), Cpu(None)];
            assert_eq!((changes.cpus, changes.pins), (Some(3), pins));
            assert_eq!(changes.cpu, [Feature::La57, Feature::Pcid]);
            assert_eq!(changes.on_triple_fault, Some(OnTripleFault::Reset));
            assert!(changes.test_device);
            assert_eq!(
                (changes.initrd.len(), changes.append.as_deref(), changes.mem),
                (2, Some("-v"), Some(64 << 20))
            );
            assert_eq!(changes.module[0].cmdline, "x=1");
            assert_eq!(run.key.escape, 0x1d);
        }
        for good in [
            "v3 run guest.img --timeout 1.5 --silence 60 --json --expect 1",
            "v3 run --check --cpus 2",
        ] {
            assert!(run(good).is_ok(), "{good}");
        }
        for bad in [
            "v3 run",
            "v3 run a b",
            "v3 run -b --kernel k",
            "v3 run --mem 64",
            "v3 run a --mem 1Q",
            "v3 run a --cpus x",
            "v3 run --kernel k --pins 1,,2",
            "v3 run a --escape 5",
            "v3 run a --timeout x",
            "v3 run a --cpu -lm57",
            "v3 run a --cpu la57",
            "v3 run a --cpu -vmx",
            "v3 run a --expect 2",
            "v3 run a --on-triple-fault explode",
        ] {
            assert!(run(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_far_end_is_chosen_once() {
        let attach = |line: &str| {
            let parsed = Cli::try_parse_from(line.split(' ')).map_err(|e| e.to_string())?;
            match parsed.command {
                Command::Attach(attach) => Ok(attach),
                _ => Err(line.to_string()),
            }
        };
        let given = attach("v3 attach debian serial --id x --port 0x3e8 --pipe /tmp/p").unwrap();
        assert_eq!(
            (given.target.vm.as_str(), given.kind.as_str()),
            ("debian", "serial")
        );
        assert_eq!((given.id.as_deref(), given.port), (Some("x"), Some(0x3e8)));
        assert!(given.ends.pipe.is_some() && !given.ends.is_none());
        assert!(attach("v3 attach debian test-dma").unwrap().ends.is_none());
        for end in ["--pty", "--file f", "--socket s", "--stdio"] {
            assert!(!attach(&format!("v3 attach 0 serial {end}"))
                .unwrap()
                .ends
                .is_none());
        }
        for bad in [
            "v3 attach debian",
            "v3 attach debian serial --pty --stdio",
            "v3 attach debian serial --pipe",
            "v3 attach debian serial --pty --port 0x10000",
            "v3 attach debian serial --pty --port 0",
        ] {
            assert!(attach(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn run_alone_shows_the_image_and_the_kernel() {
        let error = run("v3 run").err().unwrap();
        assert!(error.contains("FILE|--kernel <FILE>"), "{error}");
    }
}
