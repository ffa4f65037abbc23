// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `--help` and the manual pages say beyond the options.

use palacios_core::devices;

/// For `v3` itself.
pub const V3: &str = "\
A VM is given by its name, its number N, or /dev/v3-vmN.

Exit status, of every command:
  0    done
  124  the time given by --timeout or --silence passed (run, wait)
  125  the command line is wrong; a file or a node cannot be opened, read or written; the module
       is missing; no VM has this name, or its state does not allow it; a call or the host failed
  126  the guest was refused: its guest.toml, image or kernel is wrong, no machine is such as the
       options ask for, or the module cannot make a VM of it
  127  the guest died (run, wait)
  129, 130, 131, 143  SIGHUP, SIGINT, SIGQUIT, SIGTERM came (run, console, stream,
       attach)
`v3 run` and `v3 wait` also end as the guest did: see `v3 run --help`.

An error is one line on standard error that begins with `v3: `, and then a line `hint: ` if there
is something to do about it. What happens to a VM meanwhile is told in [brackets].

Sizes: 512M, 2GiB, 4096K. A number without a unit counts MiB where it is the memory of a machine,
and bytes where it is an address or the length of a range. 0x begins a hexadecimal number.

Files:
  /dev/v3vee     the module's control node
  /dev/v3-vmN    the node of VM number N
Palacios' names (v3_create, v3_cons, ...) are links to this program: `v3 links DIR` makes them.";

/// For `create` and `run`.
macro_rules! changes {
    () => {
        "\
The options say what shall be other than FILE says; FILE itself stays as it is. --append adds to
its command line, --cmdline replaces it; --initrd and --module add files behind its own; --cpu
takes more features away; --pins replaces all its pins. The result is checked as by `v3 build`."
    };
}

/// For `create`.
pub const CREATE: &str = changes!();

/// For `run`.
pub const RUN: &str = concat!(
    changes!(),
    "
Without FILE, --kernel starts from a machine with 512 MiB, 1 CPU, no command line and com1.

In a terminal, Ctrl-] q stops the VM and leaves; Ctrl-] ? shows more keys. Without one,
standard input goes to the guest, and its end changes nothing. SIGINT, SIGTERM, SIGHUP, SIGQUIT
--timeout and --silence stop the VM. Whatever happens, the VM is freed and the terminal restored.

Exit status:
  0    the guest powered itself off
  N    the guest wrote V to the test-exit port 0xf4: (V * 2 + 1) modulo 256, always odd
  124  the time of --timeout or --silence passed
  125  the command line is wrong; a file or a node cannot be opened, read or written; the module
       is missing; a call or the host failed
  126  the guest was refused: its guest.toml, image or kernel is wrong, no machine is such as the
       options ask for, or the module cannot make a VM of it
  127  the guest died: triple fault, unknown exit, failed emulation, or another fault of its own
  129, 130, 131, 143  stopped by SIGHUP; by SIGINT, the escape or `v3 stop`; by SIGQUIT; by SIGTERM
A test exit can collide with the others; --json tells which it was.

With --expect N the status is 0 if the guest ended with the test exit N, which is V * 2 + 1, and
1 if it ended in another way. --expect 0 stands for a power-off. 125 and 126 are as above: they
say nothing about the guest's own end.

With --json the guest's output goes to standard error, and standard output has one line at the
end, also when a call failed (not for a wrong command line):
  {\"exit\": 85, \"reason\": \"test-exit\", \"exit_status\": 85, \"message\": \"…\", \"name\": \"…\",
   \"counters\": {\"vm\": {\"NAME\": VALUE, …}, \"vcpus\": [{\"NAME\": VALUE, …}, …]}}
\"exit\" is the exit status of v3, the others tell the guest's real end also with --expect;
\"exit_status\" is null unless \"reason\" is test-exit. Reasons: power-off, test-exit, request,
triple-fault, unknown-exit, emulation, bad-state, guest-error, host-memory, host-error; and, of v3
itself, timeout, signal, escape, output-closed, refused, tool-error. After the last two, \"name\"
and \"counters\" are missing."
);

/// For `wait`.
pub const WAIT: &str = "\
A VM that was never launched is an error at once, unless --for-launch is given: it would wait for
ever if nobody launched it.

Exit status, --expect and --json: as of `v3 run`, where 124 means that the VM did not stop in time.";

/// For `save`.
pub const SAVE: &str = "\
The VM stands still meanwhile. FILE has its image, its state and its memory without pages of
zeroes; what is in disks and at the other ends of its streams is not in it. If FILE exists, it is
replaced when all is written. Whoever lets both go on, the VM and what is loaded from FILE, has
two guests that take each other's place: --pause keeps the first from it.";

/// For `load`.
pub const LOAD: &str = "\
All of FILE is checked before a VM is made of it. The VM has the devices that the saved one had:
those of its image by themselves, those that were attached with the far ends that --end gives them.
It needs a host that gives guests the same processor.

Exit status 126: FILE is damaged, or the module cannot make a VM of its image.";

/// For `console` and `stream`.
pub const CONSOLE: &str = "\
Where keys are passed on (always by `v3 console`, by `v3 stream` with -i), Ctrl-] q leaves and the
VM goes on; Ctrl-] ? shows more keys. --escape takes another key than Ctrl-].";

/// For `attach`.
pub fn attach() -> String {
    let kinds: Vec<_> = devices::attachable_kinds().map(|kind| kind.name).collect();
    let kinds = kinds.join(", ");
    format!(
        "\
Kinds of devices: {kinds}.

A serial port needs a far end. The VM holds it until the device is detached or the VM freed:
  --pty          a new terminal in raw mode; its path, /dev/pts/N, is printed. Programs may open
                 it, close it and open it again
  --pipe PATH    input from the named pipe PATH.in, output to PATH.out, both there already. If
                 neither of them is, output to the named pipe PATH
  --file PATH    output to the end of a file, which is made if it is not there; no input
  --socket PATH  both ways, over a connection to whoever listens at the Unix socket
  --stdio        both ways, by this program: it stays until the device is detached or the VM
                 stops, and detaches the device when it ends. In a terminal Ctrl-] q ends it.
                 The end of its input changes nothing
What the guest sends while nobody takes it is kept, the last 64 KiB of it.

A disk is in a file or on a block device, which the VM holds until it is detached:
  v3 attach VM disk FILE[,OPTION…]
  ro             the guest may not write
  snapshot       what the guest writes stays in memory, and is gone with the disk
  shared         others may have the file, too, if all say so; nobody keeps their writes apart
  queues=N       1 to 16; without it, one for each virtual CPU
A comma in the path is written twice. `truncate -s 1G FILE` makes an empty disk. The guest knows
the disk by its id: in Linux /dev/disk/by-id/virtio-ID.

Without --pty and --stdio the device's id is printed, with --json both id and terminal:
  {{\"id\": \"com3\", \"terminal\": \"/dev/pts/3\"}}
A guest does not look for a port that comes late: it has to be told. In Linux:
  setserial /dev/ttyS2 uart 16550A port 0x3e8 irq 4"
    )
}

/// For `resize`.
pub const RESIZE: &str = "\
The guest is told at once, and sees the disk's new size; what is on it, it has to resize itself:
`resize2fs /dev/vda` in Linux. With SIZE the disk's file becomes so long; a disk on a block device
has the size of that, and `v3 resize VM ID` tells the guest when it has changed.

The size is printed; with --json as {\"id\": \"disk\", \"bytes\": 21474836480}.";

/// For `build`.
pub const BUILD: &str = "\
A guest.toml:
  name = \"debian\"               # optional: name of the VM
  memory = \"512M\"               # with a unit: K, M, G, T; or a number of MiB
  vcpus = 2                     # optional: 1
  pins = [0, 1]                 # optional: host CPUs of the first virtual CPUs
  cpu = [\"-la57\"]               # optional: features of the host's processor to take away
  kernel = \"vmlinuz\"            # Linux bzImage, Multiboot kernel, or ELF file with a PVH note
  boot = \"auto\"                 # optional: or \"linux\", \"multiboot\", \"multiboot2\", \"pvh\"
  cmdline = \"console=ttyS0\"     # optional
  initrd = [\"a.img\", \"b.img\"]   # optional: one or a list
  console = \"com1\"              # optional: the stream that is the console
  on_triple_fault = \"stop\"      # optional: or \"reset\"
  test_device = false           # optional: the device of test kernels

  [[module]]                    # optional: files for a kernel that is no bzImage
  file = \"program\"
  cmdline = \"program -v\"        # optional

  [[serial]]                    # optional: com1 alone if there is none
  port = \"com1\"                 # com1 to com4
  stream = \"com1\"               # optional: name of its stream

  [[disk]]                      # optional: disks in memory, which go with the VM
  file = \"disk.img\"             # what is on it; optional if it has a size
  size = \"64M\"                  # optional: the file's
  read_only = false             # optional
Paths are relative to the folder of the file.";

/// For `info`.
pub const INFO: &str = "\
--cpuid prints a line for each feature of processors: its name, where CPUID tells of it (leaf,
register, bit), whether the host's processor has it, whether guests have it, and if not, why. A
feature that varies follows a register of the guest's. Without VM it is told of guests from whose
processor nothing is taken away; with VM, of that one. `cpu` in a guest.toml, and --cpu of
`v3 create` and `v3 run`, take features away by these names: cpu = [\"-la57\"], --cpu -la57,-pcid.

With --json it is a list:
  [{\"name\": \"la57\", \"leaf\": 7, \"subleaf\": 0, \"register\": \"ecx\", \"bit\": 16, \"host\": true,
    \"guest\": true, \"why\": \"\"}, …]
\"guest\" is null for a feature that varies.";

/// For `debug`.
pub const DEBUG: &str = "\
Without --walk, --walk-physical, --memory and --physical it shows of each virtual CPU the registers,
the instructions at RIP, the stack, the last exits, the local APIC and what is pending; and once the
I/O APIC and the PIC pair.

Nothing in the guest changes: no accessed or dirty bit is set, no page that was never touched gets
memory, no device is asked. A virtual CPU that runs is called out of the guest for a moment; of a
VM that runs, each line is true at its own moment. `v3 pause VM` first makes all of them one.

ADDR is hexadecimal behind 0x, or decimal. LEN is 128 unless given, and may have a unit: 4K. What
cannot be read is said in words; the exit status is 125 if nothing could be shown.";

/// For `links`.
pub const LINKS: &str = "\
The links lead to this program. A link of this name that is there is replaced; a file is not.";

/// For `completions`.
pub const COMPLETIONS: &str = "\
They complete commands, options, files, the names of VMs and of their streams, for v3 and for all
its links. In the start-up file of the shell:
  bash, zsh   source <(v3 completions bash)
  fish        v3 completions fish | source";
