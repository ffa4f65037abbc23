// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: `v3 COMMAND …`, and Palacios' names `v3_COMMAND …`.

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;
use std::time::Duration;
use v3_ctl::{parse_seconds, ModuleFile};

const VM_HELP: &str = "\
A VM is given by its name, its number N, or /dev/v3-vmN.

Exit status:
  0    done
  125  the command line is wrong, the module is missing, or a call failed
  126  the image or the VM was refused
`v3 run` and `v3 wait` have more: see their --help.

Files:
  /dev/v3vee     the module's control node
  /dev/v3-vmN    the node of VM number N";

const RUN_HELP: &str = "\
In a terminal, Ctrl-] q stops the VM and leaves; Ctrl-] ? shows more keys. Without one,
standard input goes to the guest, and its end changes nothing. SIGINT, SIGTERM, SIGHUP and the
timeout stop the VM. Whatever happens, the VM is freed and the terminal restored.

Exit status:
  0    the guest powered itself off
  N    the guest wrote V to the test-exit port 0xf4: (V * 2 + 1) modulo 256, always odd
  124  the timeout passed
  125  the command line is wrong, the module is missing, a call or the host failed
  126  the image or the VM was refused
  127  the guest died: triple fault, unknown exit, failed emulation, endless resets
  129, 130, 143  stopped by SIGHUP, by SIGINT, the escape or `v3 stop`, by SIGTERM
A test exit can collide with the others; --json tells which it was.

With --json the guest's output goes to standard error, and standard output has one line at the
end, also when a call failed (not for a wrong command line):
  {\"exit\": 85, \"reason\": \"test-exit\", \"exit_status\": 85, \"message\": \"…\", \"name\": \"…\",
   \"counters\": {\"vm\": {\"NAME\": VALUE, …}, \"vcpus\": [{\"NAME\": VALUE, …}, …]}}
\"exit\" is the exit status of v3; \"exit_status\" is null unless \"reason\" is test-exit. Reasons:
power-off, test-exit, request, reset, triple-fault, unknown-exit, emulation, bad-state,
guest-error, host-memory, host-error; and, of v3 itself, timeout, signal, escape, output-closed,
refused, tool-error. After the last two, \"name\" and \"counters\" are missing.";

const WAIT_HELP: &str = "\
Exit status: as of `v3 run`, where 124 means that the VM did not stop in time.";

const BUILD_HELP: &str = "\
A guest.toml:
  name = \"debian\"               # optional: name of the VM
  memory = \"512M\"               # with a unit: K, M, G, T
  vcpus = 2                     # optional: 1
  pins = [0, 1]                 # optional: host CPUs of the first virtual CPUs
  kernel = \"vmlinuz\"            # Linux bzImage or Multiboot 1 kernel
  boot = \"auto\"                 # optional: or \"linux\", \"multiboot\"
  cmdline = \"console=ttyS0\"     # optional
  initrd = [\"a.img\", \"b.img\"]   # optional: one or a list, for Linux
  console = \"com1\"              # optional: the stream that is the console

  [[module]]                    # optional: files for a Multiboot kernel
  file = \"program\"
  cmdline = \"program -v\"        # optional

  [[serial]]                    # optional: com1 alone if there is none
  port = \"com1\"                 # com1 to com4
  stream = \"com1\"               # optional: name of its stream
Paths are relative to the folder of the file.";

/// Builds guest images, and runs and watches virtual machines of v3vee.ko
#[derive(Parser)]
#[command(name = "v3", version, arg_required_else_help = true, after_help = VM_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// Palacios' names of commands, as links to this program.
#[derive(Parser)]
#[command(multicall = true)]
pub struct Links {
    #[command(subcommand)]
    pub link: Link,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make a guest.img of a guest.toml
    #[command(after_help = BUILD_HELP)]
    Build(Build),
    /// Make a VM of a guest.img
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
    #[command(after_help = WAIT_HELP)]
    Wait(Wait),
    /// Create, launch, attach the console, wait and free in one
    #[command(after_help = RUN_HELP)]
    Run(Run),
    /// List all VMs
    List(Format),
    /// Describe a VM
    Info(Info),
    /// Print a VM's counters
    Stats(Stats),
    /// Attach to a VM's console
    Console(Console),
    /// Attach to a byte stream of a VM, such as a serial port
    Stream(Stream),
    /// Give a VM other host memory for some of its pages
    Relocate(Relocate),
    /// Move a virtual CPU to a CPU of the host, running or not
    CoreMove(CoreMove),
    /// Print the versions of this program and of the module
    Version(Format),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write all pages
    Man {
        /// The folder for all pages
        dir: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum Link {
    /// Make a VM of a guest.img
    #[command(name = "v3_create")]
    Create(Create),
    /// Start a VM
    #[command(name = "v3_launch")]
    Launch(OneVm),
    /// Stop a VM for good
    #[command(name = "v3_stop")]
    Stop(OneVm),
    /// Halt a VM's CPUs and its clock
    #[command(name = "v3_pause")]
    Pause(OneVm),
    /// Let a paused VM go on
    #[command(name = "v3_continue")]
    Continue(OneVm),
    /// Free a VM that does not run
    #[command(name = "v3_free")]
    Free(Free),
    /// Attach to a VM's console
    #[command(name = "v3_cons")]
    Console(Console),
    /// Attach to a byte stream of a VM, such as a serial port
    #[command(name = "v3_stream")]
    Stream(Stream),
    /// Print a VM's counters
    #[command(name = "v3_stats")]
    Stats(Stats),
    /// Move a virtual CPU to a CPU of the host, running or not
    #[command(name = "v3_core_move")]
    CoreMove(CoreMove),
}

impl From<Link> for Command {
    fn from(link: Link) -> Self {
        match link {
            Link::Create(args) => Self::Create(args),
            Link::Launch(args) => Self::Launch(args),
            Link::Stop(args) => Self::Stop(args),
            Link::Pause(args) => Self::Pause(args),
            Link::Continue(args) => Self::Continue(args),
            Link::Free(args) => Self::Free(args),
            Link::Console(args) => Self::Console(args),
            Link::Stream(args) => Self::Stream(args),
            Link::Stats(args) => Self::Stats(args),
            Link::CoreMove(args) => Self::CoreMove(args),
        }
    }
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
}

#[derive(Args)]
pub struct OneVm {
    /// Name, number, or /dev/v3-vmN
    pub vm: String,
}

#[derive(Args)]
pub struct Free {
    /// Stop the VM first if it runs
    #[arg(short, long)]
    pub force: bool,
    /// Name, number, or /dev/v3-vmN
    pub vm: String,
}

#[derive(Args)]
pub struct Wait {
    /// Name, number, or /dev/v3-vmN
    pub vm: String,
    /// How long to wait at most
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
}

#[derive(Args)]
pub struct Format {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Info {
    /// Name, number, or /dev/v3-vmN; without it, the module and the processor
    pub vm: Option<String>,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
pub struct Stats {
    /// Name, number, or /dev/v3-vmN
    pub vm: String,
    /// Print counters that are zero, too (JSON always has them)
    #[arg(short, long)]
    pub all: bool,
    #[command(flatten)]
    pub format: Format,
}

#[derive(Args)]
pub struct EscapeKey {
    /// The key that, with Ctrl, begins an escape
    #[arg(long, value_name = "KEY", default_value = "]", value_parser = parse_escape)]
    pub escape: u8,
}

#[derive(Args)]
pub struct Console {
    /// Name, number, or /dev/v3-vmN
    pub vm: String,
    #[command(flatten)]
    pub key: EscapeKey,
}

#[derive(Args)]
pub struct Stream {
    /// Pass each key on at once, as for a console; else line by line
    #[arg(short, long)]
    pub interactive: bool,
    /// Name, number, or /dev/v3-vmN
    pub vm: String,
    /// Name of the stream, such as com1
    pub stream: String,
    #[command(flatten)]
    pub key: EscapeKey,
}

#[derive(Args)]
pub struct Run {
    /// FILE is a guest.toml: build the image first
    #[arg(short, long, requires = "image")]
    pub build: bool,
    /// The guest.img
    #[arg(value_name = "FILE", required_unless_present = "kernel")]
    pub image: Option<PathBuf>,
    /// Run this kernel instead of an image
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    pub kernel: Option<PathBuf>,
    /// An initial file system for Linux; several are joined
    #[arg(
        long,
        value_name = "FILE",
        requires = "kernel",
        conflicts_with = "image"
    )]
    pub initrd: Vec<PathBuf>,
    /// A file for a Multiboot kernel, with its command line
    #[arg(long, value_name = "FILE[=CMDLINE]", requires = "kernel", conflicts_with = "image", value_parser = parse_module)]
    pub module: Vec<ModuleFile>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "CMDLINE",
        requires = "kernel",
        conflicts_with = "image",
        allow_hyphen_values = true
    )]
    pub append: Option<String>,
    /// Memory in MiB [default: 512]
    #[arg(
        long,
        value_name = "MIB",
        requires = "kernel",
        conflicts_with = "image"
    )]
    pub mem: Option<u32>,
    /// Number of virtual CPUs [default: 1]
    #[arg(long, value_name = "N", requires = "kernel", conflicts_with = "image")]
    pub cpus: Option<u32>,
    /// CPUs of the host on which the first virtual CPUs stay [default: any]
    #[arg(
        long,
        value_name = "CPU,…",
        value_delimiter = ',',
        requires = "kernel",
        conflicts_with = "image"
    )]
    pub pins: Vec<u32>,
    /// Name of the VM [default: that of the image or kernel, with the number of this process]
    #[arg(long)]
    pub name: Option<String>,
    /// Stop the VM after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
    /// Print one line of JSON at the end; the guest's output goes to standard error
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub key: EscapeKey,
}

#[derive(Args)]
pub struct Relocate {
    /// Name, number, or /dev/v3-vmN
    pub vm: String,
    /// First guest-physical address, a multiple of 4096; 0x… is hexadecimal
    #[arg(value_parser = parse_number)]
    pub gpa: u64,
    /// Bytes, a multiple of 4096; 0x… is hexadecimal
    #[arg(value_parser = parse_number)]
    pub len: u64,
}

#[derive(Args)]
pub struct CoreMove {
    /// Name, number, or /dev/v3-vmN
    pub vm: String,
    /// Number of the virtual CPU, from 0
    pub vcpu: u32,
    /// Number of the host's CPU, where it then stays; or `any`
    #[arg(value_parser = parse_cpu)]
    pub cpu: Cpu,
}

/// A CPU of the host, or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu(pub Option<u32>);

fn parse_cpu(text: &str) -> Result<Cpu, String> {
    match text {
        "any" => Ok(Cpu(None)),
        number => match number.parse() {
            Ok(cpu) if cpu != v3_abi::V3_CPU_ANY => Ok(Cpu(Some(cpu))),
            _ => Err("give the number of a CPU of the host, or `any`".into()),
        },
    }
}

/// The control character of a key: `]` is 0x1d, `a` is 0x01.
fn parse_escape(key: &str) -> Result<u8, String> {
    match key.as_bytes() {
        [key @ (b'a'..=b'z' | b'[' | b'\\' | b']' | b'^' | b'_')] => Ok(key & 0x1f),
        _ => Err("give one of a to z, [, \\, ], ^, _".into()),
    }
}

fn parse_module(text: &str) -> Result<ModuleFile, String> {
    let (file, cmdline) = text.split_once('=').unwrap_or((text, ""));
    if file.is_empty() {
        return Err("no file before the `=`".into());
    }
    Ok(ModuleFile {
        file: file.into(),
        cmdline: cmdline.into(),
    })
}

fn parse_number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_finds_no_contradiction() {
        Cli::command().debug_assert();
        Links::command().debug_assert();
    }

    #[test]
    fn palacios_forms() {
        let link = |line: &str| {
            let parsed = Links::try_parse_from(line.split(' ')).map_err(|e| e.to_string());
            Command::from(parsed.unwrap().link)
        };
        match link("/usr/bin/v3_create -b guest.toml first") {
            Command::Create(Create {
                build: true,
                image,
                name,
            }) => {
                assert_eq!(
                    (image.to_str(), name.as_deref()),
                    (Some("guest.toml"), Some("first"))
                );
            }
            _ => panic!(),
        }
        match link("v3_stream -i /dev/v3-vm0 com1") {
            Command::Stream(Stream {
                interactive: true,
                vm,
                stream,
                ..
            }) => {
                assert_eq!((vm.as_str(), stream.as_str()), ("/dev/v3-vm0", "com1"));
            }
            _ => panic!(),
        }
        assert!(matches!(
            link("v3_free 0"),
            Command::Free(Free { force: false, .. })
        ));
        assert!(matches!(link("v3_cons /dev/v3-vm0"), Command::Console(_)));
        match link("v3_core_move /dev/v3-vm0 2 1") {
            Command::CoreMove(CoreMove { vm, vcpu, cpu }) => {
                assert_eq!((vm.as_str(), vcpu, cpu), ("/dev/v3-vm0", 2, Cpu(Some(1))));
            }
            _ => panic!(),
        }
    }

    #[test]
    fn run_takes_an_image_or_a_kernel() {
        let parse = |line: &str| match Cli::try_parse_from(line.split(' ')).ok()?.command {
            Command::Run(run) => Some(run),
            _ => None,
        };
        let run = parse("v3 run --kernel k --initrd a --initrd b --module m=x=1 --append -v --mem 64 --cpus 3 --pins 1,0")
            .unwrap();
        assert_eq!((run.cpus, run.pins), (Some(3), vec![1, 0]));
        assert_eq!(
            (run.initrd.len(), run.append.as_deref(), run.mem),
            (2, Some("-v"), Some(64))
        );
        assert_eq!(
            (run.module[0].cmdline.as_str(), run.key.escape),
            ("x=1", 0x1d)
        );
        assert!(parse("v3 run guest.img --timeout 1.5 --json").is_some());
        for bad in [
            "v3 run",
            "v3 run a --kernel b",
            "v3 run a --mem 5",
            "v3 run a --pins 1",
            "v3 run --kernel k --pins 1,,2",
            "v3 run a --escape 5",
            "v3 run a --timeout x",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn numbers_and_keys() {
        assert_eq!(parse_number("0x1000"), Ok(4096));
        assert_eq!(parse_number("4096"), Ok(4096));
        assert!(parse_number("1000h").is_err());
        assert_eq!(parse_cpu("7"), Ok(Cpu(Some(7))));
        assert_eq!(parse_cpu("any"), Ok(Cpu(None)));
        assert!(["-1", "4294967295", "none", ""]
            .map(parse_cpu)
            .iter()
            .all(Result::is_err));
        assert_eq!((parse_escape("]"), parse_escape("a")), (Ok(0x1d), Ok(1)));
        assert!(parse_escape("]]").is_err());
    }
}
