// SPDX-License-Identifier: MIT OR Apache-2.0
// Generated from v3vee.h by rust/v3_abi/regenerate. Do not edit.
/// Raised when an existing call changes its meaning. A program compares it with
/// v3_version.abi and gives up if they differ. A new call does not raise it.
pub const V3_ABI: u32 = 1;
/// Type letter of every ioctl here.
pub const V3_IOCTL_TYPE: u8 = 86u8;
/// A VM's name, with its NUL
pub const V3_NAME_LEN: u32 = 64;
/// A stream's name, with its NUL
pub const V3_STREAM_NAME_LEN: u32 = 32;
/// A counter's name, with its NUL
pub const V3_STAT_NAME_LEN: u32 = 44;
/// A stop message, with its NUL
pub const V3_MESSAGE_LEN: u32 = 256;
/// A processor feature's name, with its NUL
pub const V3_FEATURE_NAME_LEN: u32 = 40;
/// Why a guest lacks a feature, with its NUL
pub const V3_FEATURE_WHY_LEN: u32 = 96;
/// What a device is known by, with its NUL
pub const V3_DEVICE_ID_LEN: u32 = 32;
/// A kind of devices, with its NUL
pub const V3_DEVICE_KIND_LEN: u32 = 32;
/// Regions of a device that are listed
pub const V3_DEVICE_REGIONS: u32 = 8;
/// Descriptors that one V3_VM_ATTACH takes
pub const V3_MAX_DESCRIPTORS: u32 = 16;
/// Bytes of RAM that one V3_VM_LOAD_RAM takes
pub const V3_MAX_LOAD_RAM: u32 = 1048576;
/// The longest state of a machine, without its RAM
pub const V3_MAX_STATE_LEN: u32 = 16777216;
/// Pages of RAM below 4 GiB
pub const V3_LOW_RAM_PAGES: u32 = 786432;
/// The longest options that one takes
pub const V3_MAX_OPTIONS_LEN: u32 = 4096;
/// Guests run on nested page tables
pub const V3_FEATURE_NESTED_PAGING: u32 = 1;
/// Guests may use AVX and its like
pub const V3_FEATURE_XSAVE: u32 = 2;
/// V3_VM_RELOCATE works
pub const V3_FEATURE_RELOCATE: u32 = 4;
/// Translations of guests are told apart: ASIDs, VPIDs
pub const V3_FEATURE_TLB_TAGS: u32 = 8;
/// The processor says where an instruction ends
pub const V3_FEATURE_NEXT_RIP: u32 = 16;
/// The processor gives the bytes of an instruction that faults
pub const V3_FEATURE_DECODE_ASSISTS: u32 = 32;
/// Made, not yet launched
pub const V3_STATE_CREATED: u32 = 1;
/// Its CPUs run, or wait for interrupts
pub const V3_STATE_RUNNING: u32 = 2;
/// Its CPUs and its clock stand still
pub const V3_STATE_PAUSED: u32 = 3;
/// It has stopped for good; the reason says why
pub const V3_STATE_STOPPED: u32 = 4;
/// It did not
pub const V3_REASON_NONE: u32 = 0;
/// The guest powered itself off
pub const V3_REASON_POWER_OFF: u32 = 1;
/// The guest wrote the test-exit port, see exit_status
pub const V3_REASON_TEST_EXIT: u32 = 2;
/// V3_VM_STOP
pub const V3_REASON_REQUEST: u32 = 3;
/// A fault while a double fault was delivered
pub const V3_REASON_TRIPLE_FAULT: u32 = 16;
/// The processor gave an exit that nothing handles
pub const V3_REASON_UNKNOWN_EXIT: u32 = 17;
/// An instruction that cannot be emulated
pub const V3_REASON_EMULATION: u32 = 18;
/// The processor refused the guest's state
pub const V3_REASON_BAD_STATE: u32 = 19;
/// Anything else the guest did; the message says what
pub const V3_REASON_GUEST_ERROR: u32 = 20;
/// No memory for a page of the guest
pub const V3_REASON_HOST_MEMORY: u32 = 32;
/// Anything else; the message says what
pub const V3_REASON_HOST_ERROR: u32 = 33;
/// v3_info.flags. Dead: nothing can wake the guest any more, as all its CPUs are
/// halted with interrupts off, or were never started. It stays running, and can
/// be stopped.
pub const V3_INFO_DEAD: u32 = 1;
/// v3_stat.vcpu: the counter belongs to the whole VM.
pub const V3_STAT_VM: i32 = -1;
/// They do not; the reason says why
pub const V3_GUEST_LACKS: u32 = 0;
/// They do
pub const V3_GUEST_HAS: u32 = 1;
/// The reason says with what
pub const V3_GUEST_VARIES: u32 = 2;
/// v3_vcpu.cpu: the virtual CPU may run on any.
pub const V3_CPU_ANY: u32 = 4294967295;
/// The name of a kind of exit, with its NUL
pub const V3_EXIT_NAME_LEN: u32 = 24;
/// Exits that a virtual CPU remembers
pub const V3_LAST_EXITS: u32 = 16;
/// Bytes of code and of stack that are shown
pub const V3_SHOWN_BYTES: u32 = 64;
/// Execute instructions
pub const V3_ACTIVITY_RUNS: u32 = 1;
/// Wait in HLT for an interrupt
pub const V3_ACTIVITY_HALTED: u32 = 2;
/// Wait for another one to start it
pub const V3_ACTIVITY_UNSTARTED: u32 = 3;
/// No triple fault, or not known
pub const V3_CAUSE_NONE: u32 = 0;
/// An exception whose handler was not reached
pub const V3_CAUSE_EXCEPTION: u32 = 1;
/// An interrupt whose handler was not reached
pub const V3_CAUSE_INTERRUPT: u32 = 2;
/// The device's input is read from it
pub const V3_ROLE_INPUT: u32 = 1;
/// The device's output is written to it
pub const V3_ROLE_OUTPUT: u32 = 2;
/// Both
pub const V3_ROLE_BOTH: u32 = 3;
/// Bytes
pub const V3_DESCRIPTOR_STREAM: u32 = 0;
/// blocks: the device is a disk
pub const V3_DESCRIPTOR_DISK: u32 = 1;
/// v3_serial_options.version: the newest version that this header knows.
pub const V3_SERIAL_VERSION: u32 = 1;
/// v3_pci_options.version: the newest version that this header knows.
pub const V3_PCI_VERSION: u32 = 1;
/// v3_disk_options.version: the newest version that this header knows.
pub const V3_DISK_VERSION: u32 = 1;
/// Others of whom the same is said may have the same file
pub const V3_DISK_SHARED: u32 = 1;
/// What the guest writes stays in memory, and goes with the disk
pub const V3_DISK_SNAPSHOT: u32 = 2;
/// The disk may become smaller, and lose what is behind its new end
pub const V3_RESIZE_SHRINK: u32 = 1;
/// It has the size that its file or block device has now
pub const V3_RESIZE_FOLLOW: u32 = 2;
/// Ports
pub const V3_SPACE_PORTS: u32 = 1;
/// Memory
pub const V3_SPACE_MEMORY: u32 = 2;
/// Configuration space of PCI, as in the
/// ECAM window
pub const V3_SPACE_PCI: u32 = 3;
/// The device answers there now
pub const V3_REGION_ON: u32 = 1;
/// V3_VM_DETACH may take it away
pub const V3_DEVICE_REMOVABLE: u32 = 1;
/// memory: RAM, or a ROM
pub const V3_PLACE_MEMORY: u32 = 1;
/// Memory without a page of the host: never touched, then it reads as zeroes, or taken back
pub const V3_PLACE_UNTOUCHED: u32 = 2;
/// No memory: a device's address, or nobody's
pub const V3_PLACE_NONE: u32 = 3;
/// The most levels that page tables have
pub const V3_WALK_LEVELS: u32 = 5;
/// The address is guest-physical: only nested tables are walked
pub const V3_WALK_PHYSICAL: u32 = 1;
/// A linear address is a guest-physical one
pub const V3_PAGING_OFF: u32 = 0;
/// Two levels of 4-byte entries
pub const V3_PAGING_32BIT: u32 = 1;
/// Three levels of 8-byte entries
pub const V3_PAGING_PAE: u32 = 2;
/// Four levels
pub const V3_PAGING_4LEVEL: u32 = 3;
/// Five levels
pub const V3_PAGING_5LEVEL: u32 = 4;
/// At a page
pub const V3_WALK_MAPPED: u32 = 1;
/// At the last entry, which is not present
pub const V3_WALK_NOT_PRESENT: u32 = 2;
/// At the last entry, which has bits set that must be zero
pub const V3_WALK_RESERVED: u32 = 3;
/// It does not begin: the address is not canonical
pub const V3_WALK_NON_CANONICAL: u32 = 4;
/// No memory is where the next entry would be
pub const V3_WALK_NO_TABLE: u32 = 5;
/// It is present
pub const V3_ENTRY_PRESENT: u32 = 1;
/// It allows writes
pub const V3_ENTRY_WRITE: u32 = 2;
/// It allows privilege level 3
pub const V3_ENTRY_USER: u32 = 4;
/// It does not forbid execution
pub const V3_ENTRY_EXECUTE: u32 = 8;
/// The processor has used it
pub const V3_ENTRY_ACCESSED: u32 = 16;
/// The processor has written to the page
pub const V3_ENTRY_DIRTY: u32 = 32;
/// It maps a page itself
pub const V3_ENTRY_LEAF: u32 = 64;
/// Bits are set that must be zero
pub const V3_ENTRY_RESERVED: u32 = 128;
/// Its table is at V3_PLACE_UNTOUCHED, so it reads as zero
pub const V3_ENTRY_UNTOUCHED: u32 = 256;
/// There is none
pub const V3_EVENT_NONE: u32 = 0;
/// An exception
pub const V3_EVENT_EXCEPTION: u32 = 1;
/// An interrupt of a controller
pub const V3_EVENT_INTERRUPT: u32 = 2;
/// A non-maskable interrupt
pub const V3_EVENT_NMI: u32 = 3;
/// An interrupt by an instruction
pub const V3_EVENT_SOFTWARE: u32 = 4;
/// RFLAGS.IF is set, and no shadow of an instruction holds them back
pub const V3_TAKES_INTERRUPTS: u32 = 1;
/// The guest handles no NMI
pub const V3_TAKES_NMIS: u32 = 2;
/// The PIC pair has said that it has an interrupt for it
pub const V3_PIC_WAITS: u32 = 4;
/// v3_interrupts.next_vector: the local APIC has none that goes first now.
pub const V3_NO_VECTOR: u32 = 4294967295;
/// The guest bears a time stamp counter that runs at another rate
pub const V3_LOAD_NEW_TSC_RATE: u32 = 1;
/// It was initialised; else it asserts nothing
pub const V3_PIC_INITIALISED: u32 = 1;
/// Its interrupts end when they are acknowledged
pub const V3_PIC_AUTO_EOI: u32 = 2;
/// Inputs of the I/O APIC
pub const V3_IOAPIC_INPUTS: u32 = 24;
/// The HPET has the lines of the 8254 and the real-time clock
pub const V3_CHIPSET_LEGACY: u32 = 1;
/// The type `__u8` of C.
pub type __u8 = crate::ctypes::c_uchar;
/// The type `__u16` of C.
pub type __u16 = crate::ctypes::c_ushort;
/// The type `__s32` of C.
pub type __s32 = crate::ctypes::c_int;
/// The type `__u32` of C.
pub type __u32 = crate::ctypes::c_uint;
/// The type `__s64` of C.
pub type __s64 = crate::ctypes::c_longlong;
/// The type `__u64` of C.
pub type __u64 = crate::ctypes::c_ulonglong;
/// The answer to V3_VERSION.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_version {
    /// V3_ABI of the module. Always the first field.
    pub abi: __u32,
    /// VMs that exist now.
    pub vms: __u32,
    /// VMs that can exist at a time; numbers are below it.
    pub max_vms: __u32,
    /// Virtual CPUs that one VM may have.
    pub max_vcpus: __u32,
    /// V3_FEATURE_ bits.
    pub features: __u64,
    /// Version of the module, for people.
    pub module: [crate::ctypes::c_char; 64usize],
    /// The processor extension in use: "svm" or "vmx".
    pub backend: [crate::ctypes::c_char; 16usize],
}
/// The argument of V3_CREATE.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_create {
    /// Address of a guest.img, whole, in the caller's memory. It is copied.
    pub image: __u64,
    /// Its length in bytes.
    pub image_len: __u64,
    /// Address of a buffer for an explanation of a failure, or 0.
    pub message: __u64,
    /// Length of that buffer in bytes; 0 asks for no explanation. When
    /// the call fails the module writes one line, cut to fit, with its NUL.
    pub message_len: __u32,
    /// Zero.
    pub flags: __u32,
    /// Out: the number N of the new /dev/v3-vmN.
    pub vm: __u32,
    /// Zero.
    pub pad: __u32,
    /// Name of the VM: 1 to 63 of the characters A-Z a-z 0-9 . _ - of which at
    /// least one is not a digit, because digits alone name a VM by its number.
    pub name: [crate::ctypes::c_char; 64usize],
}
/// One VM: the answer to V3_VM_INFO, an entry of V3_LIST.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_info {
    /// Number N of its /dev/v3-vmN.
    pub vm: __u32,
    /// V3_STATE_.
    pub state: __u32,
    /// V3_REASON_; V3_REASON_NONE unless stopped.
    pub reason: __u32,
    /// For V3_REASON_TEST_EXIT: (value written) * 2 + 1, modulo 2^32;
    /// else zero.
    pub exit_status: __u32,
    /// Its virtual CPUs.
    pub vcpus: __u32,
    /// V3_INFO_ bits; a program ignores those that it does not know.
    pub flags: __u32,
    /// Its RAM.
    pub memory_bytes: __u64,
    /// Its name.
    pub name: [crate::ctypes::c_char; 64usize],
    /// Why it stopped, or is dead, for people; else empty.
    pub message: [crate::ctypes::c_char; 256usize],
}
/// The argument of V3_LIST.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_list {
    /// Address of an array of [`v3_info`]; may be 0 if `count` is 0.
    pub entries: __u64,
    /// In: entries that fit. Out: VMs that exist. If that is more, only the
    /// first ones were written, by ascending number: ask again with more room.
    pub count: __u32,
    /// Zero.
    pub pad: __u32,
}
/// The argument of V3_FREE.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_free {
    /// Number of the VM.
    pub vm: __u32,
    /// Zero.
    pub pad: __u32,
}
/// The argument of V3_VM_WAIT.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_wait {
    /// In: how long to wait at most; 0 only looks, a negative number
    /// waits as long as it takes.
    pub timeout_ns: __s64,
    /// Out: V3_STATE_STOPPED.
    pub state: __u32,
    /// Out: V3_REASON_.
    pub reason: __u32,
    /// Out: as in [`v3_info`].
    pub exit_status: __u32,
    /// Zero.
    pub pad: __u32,
}
/// One counter, an entry of V3_VM_STATS.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_stat {
    /// Number of the virtual CPU it belongs to, or V3_STAT_VM.
    pub vcpu: __s32,
    /// Its name: lower case, words joined by "_", unit last ("exit_cpuid",
    /// "stream_com1_lost_bytes").
    pub name: [crate::ctypes::c_char; 44usize],
    /// Its value. Counters of events never decrease.
    pub value: __u64,
}
/// The argument of V3_VM_STATS.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_stats {
    /// Address of an array of [`v3_stat`]; may be 0 if `count` is 0.
    pub entries: __u64,
    /// In: entries that fit. Out: counters that exist, as in [`v3_list`].
    pub count: __u32,
    /// Zero.
    pub pad: __u32,
}
/// The argument of V3_VM_STREAM.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_stream {
    /// Name of the stream, as the image gives it ("com1"); empty for the one
    /// that the image makes the console.
    pub name: [crate::ctypes::c_char; 32usize],
}
/// The argument of V3_VM_STREAMS.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_streams {
    /// Address of an array of [`v3_stream`]; may be 0 if `count` is 0.
    pub entries: __u64,
    /// In: entries that fit. Out: streams that exist, as in [`v3_list`].
    pub count: __u32,
    /// Zero.
    pub pad: __u32,
}
/// One feature of the processor, an entry of V3_FEATURES.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_feature {
    /// EAX with which CPUID tells of it.
    pub leaf: __u32,
    /// ECX with which it does.
    pub subleaf: __u32,
    /// The register that tells: 0 to 3 for EAX, EBX, ECX and EDX.
    pub reg: __u32,
    /// The bit there.
    pub bit: __u32,
    /// The host's processor has it: 1, or 0.
    pub host: __u32,
    /// V3_GUEST_.
    pub guest: __u32,
    /// Its name.
    pub name: [crate::ctypes::c_char; 40usize],
    /// Why guests lack it, or with what that varies, for people; else empty.
    pub why: [crate::ctypes::c_char; 96usize],
}
/// The argument of V3_FEATURES and V3_VM_FEATURES.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_features {
    /// Address of an array of [`v3_feature`]; may be 0 if `count` is 0.
    pub entries: __u64,
    /// In: entries that fit. Out: features that are known, as in struct
    /// v3_list.
    pub count: __u32,
    /// Zero.
    pub pad: __u32,
}
/// The argument of V3_VM_RELOCATE.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_relocate {
    /// First guest-physical address; a multiple of 4096.
    pub gpa: __u64,
    /// Bytes; a multiple of 4096, not zero.
    pub len: __u64,
}
/// The argument of V3_VM_MOVE and V3_VM_VCPU.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_vcpu {
    /// Number of the virtual CPU.
    pub vcpu: __u32,
    /// Number of the host's CPU on which alone it runs, or V3_CPU_ANY.
    pub cpu: __u32,
}
/// An exit that is past, an entry of [`v3_vcpu_report`].
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_exit {
    /// RIP when the guest was left.
    pub rip: __u64,
    /// Its kind, by the name of the counter of such exits, "exit_cpuid".
    pub kind: [crate::ctypes::c_char; 24usize],
}
/// A segment register, an entry of [`v3_vcpu_report`].
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_segment {
    /// Linear address of its first byte.
    pub base: __u64,
    /// Offset of its last byte.
    pub limit: __u32,
    /// The visible part.
    pub selector: __u16,
    /// Type in bits 0-3, S 4, DPL 5-6, P 7, AVL 8, L 9, D/B 10, G 11.
    pub attributes: __u16,
}
/// The argument of V3_VM_VCPU_REPORT.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_vcpu_report {
    /// In: number of the virtual CPU.
    pub vcpu: __u32,
    /// Out, as all that follows: V3_ACTIVITY_.
    pub activity: __u32,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gprs: [__u64; 16usize],
    /// The next instruction, or the one that could not be executed.
    pub rip: __u64,
    /// RFLAGS.
    pub rflags: __u64,
    /// CR0.
    pub cr0: __u64,
    /// CR2, the address of the last page fault.
    pub cr2: __u64,
    /// CR3.
    pub cr3: __u64,
    /// CR4.
    pub cr4: __u64,
    /// CR8, the task priority.
    pub cr8: __u64,
    /// EFER.
    pub efer: __u64,
    /// XCR0.
    pub xcr0: __u64,
    /// DR0 to DR3.
    pub dr: [__u64; 4usize],
    /// DR6.
    pub dr6: __u64,
    /// DR7.
    pub dr7: __u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub segments: [v3_segment; 8usize],
    /// Linear address of the GDT.
    pub gdt_base: __u64,
    /// Linear address of the IDT.
    pub idt_base: __u64,
    /// Offset of the GDT's last byte.
    pub gdt_limit: __u32,
    /// Offset of the IDT's last byte.
    pub idt_limit: __u32,
    /// The privilege level, 0 to 3.
    pub cpl: __u32,
    /// 16, 32 or 64: how its instructions are to be read.
    pub code_bits: __u32,
    /// V3_CAUSE_.
    pub cause: __u32,
    /// The vector of that exception or interrupt.
    pub cause_vector: __u32,
    /// 1 if that exception has an error code, else 0.
    pub cause_has_error_code: __u32,
    /// That error code.
    pub cause_error_code: __u32,
    /// Linear address of RIP.
    pub code_at: __u64,
    /// Linear address of the top of the stack.
    pub stack_at: __u64,
    /// Bytes of `code` that could be read.
    pub code_len: __u32,
    /// Bytes of `stack` that could be read.
    pub stack_len: __u32,
    /// What lies there.
    pub code: [__u8; 64usize],
    /// What lies there.
    pub stack: [__u8; 64usize],
    /// Entries of `exits`.
    pub exit_count: __u32,
    /// Zero.
    pub pad: __u32,
    /// The last exits, the oldest first.
    pub exits: [v3_exit; 16usize],
}
/// A descriptor of the caller, an entry of V3_VM_ATTACH.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_descriptor {
    /// For a stream a regular file, a pipe, a socket or a terminal; all but a
    /// regular file must have O_NONBLOCK, and keep it. For a disk a regular file or
    /// a block device. The VM holds the open file itself: the caller may close its
    /// descriptor.
    pub fd: __s32,
    /// V3_ROLE_. A disk has V3_ROLE_BOTH, or V3_ROLE_INPUT if its guest may not
    /// write to the file.
    pub role: __u32,
    /// V3_DESCRIPTOR_.
    pub kind: __u32,
    /// Zero.
    pub pad: __u32,
}
/// The options of a device of the kind "serial".
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_serial_options {
    /// The size of the struct as the caller knows it.
    pub size: __u32,
    /// V3_SERIAL_VERSION as the caller knows it.
    pub version: __u32,
    /// The first of its eight ports: 0x3f8, 0x2f8, 0x3e8 or 0x2e8; or 0 for
    /// the first of these that is free.
    pub port: __u32,
    /// Zero.
    pub pad: __u32,
}
/// The options of a device that is a PCI device.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_pci_options {
    /// The size of the struct as the caller knows it.
    pub size: __u32,
    /// V3_PCI_VERSION as the caller knows it.
    pub version: __u32,
    /// The number of the device on PCI bus 0: 2 to 31; or 0 for the first
    /// that is free.
    pub slot: __u32,
    /// Zero.
    pub pad: __u32,
}
/// The options of a device of the kind "disk".
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_disk_options {
    /// The size of the struct as the caller knows it.
    pub size: __u32,
    /// V3_DISK_VERSION as the caller knows it.
    pub version: __u32,
    /// As in [`v3_pci_options`].
    pub slot: __u32,
    /// V3_DISK_.
    pub flags: __u32,
    /// How many queues it has, at most 16; or 0 for one a virtual CPU, as far
    /// as there are so many.
    pub queues: __u32,
    /// Zero.
    pub pad: __u32,
}
/// The argument of V3_VM_ATTACH.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_attach {
    /// Address of the options of the device's kind; or 0, with length 0,
    /// for a device as it usually is.
    pub options: __u64,
    /// Address of an array of [`v3_descriptor`]; may be 0 if
    /// `descriptor_count` is 0.
    pub descriptors: __u64,
    /// Address of a buffer for an explanation of a failure, or 0.
    pub message: __u64,
    /// Length of the options in bytes, the same as their size field.
    pub options_len: __u32,
    /// Descriptors there, at most V3_MAX_DESCRIPTORS.
    pub descriptor_count: __u32,
    /// Length of the buffer in bytes, as in [`v3_create`].
    pub message_len: __u32,
    /// Zero.
    pub flags: __u32,
    /// The kind of the device: "serial", "disk", "rng", "example-rng".
    pub kind: [crate::ctypes::c_char; 32usize],
    /// In: what the device is to be known by: 1 to 31 of the characters A-Z a-z
    /// 0-9 . _ -; or empty, and the VM chooses. Out: what it is known by.
    pub id: [crate::ctypes::c_char; 32usize],
}
/// The argument of V3_VM_DETACH and V3_VM_EJECT.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_detach {
    /// What the device is known by.
    pub id: [crate::ctypes::c_char; 32usize],
}
/// The argument of V3_VM_RESIZE.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_resize {
    /// In: how large the disk is to be; zero with V3_RESIZE_FOLLOW. Out: how
    /// large it is.
    pub bytes: __u64,
    /// Address of a buffer for an explanation of a failure, or 0.
    pub message: __u64,
    /// Length of the buffer in bytes, as in [`v3_create`].
    pub message_len: __u32,
    /// V3_RESIZE_.
    pub flags: __u32,
    /// What the disk is known by.
    pub id: [crate::ctypes::c_char; 32usize],
}
/// Where a device answers, in [`v3_device`].
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_device_region {
    /// The first port, guest-physical address, or address in configuration
    /// space: device number from bit 15 on, function number from bit 12 on.
    pub at: __u64,
    /// How many.
    pub bytes: __u64,
    /// V3_SPACE_.
    pub space: __u32,
    /// V3_REGION_ bits; a program ignores those that it does not know.
    pub flags: __u32,
}
/// A device of a VM, an entry of V3_VM_DEVICES.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_device {
    /// What it is known by.
    pub id: [crate::ctypes::c_char; 32usize],
    /// What it is.
    pub kind: [crate::ctypes::c_char; 32usize],
    /// V3_DEVICE_ bits; a program ignores those that it does not know.
    pub flags: __u32,
    /// Its regions. If that is more than V3_DEVICE_REGIONS, only the
    /// first ones are in `regions`.
    pub region_count: __u32,
    /// Where it answers.
    pub regions: [v3_device_region; 8usize],
}
/// The argument of V3_VM_DEVICES.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_devices {
    /// Address of an array of [`v3_device`]; may be 0 if `count` is 0.
    pub entries: __u64,
    /// In: entries that fit. Out: devices that exist, as in [`v3_list`].
    pub count: __u32,
    /// Zero.
    pub pad: __u32,
}
/// The argument of V3_VM_MEMORY_READ.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_memory_read {
    /// The first guest-physical address.
    pub gpa: __u64,
    /// Address of a buffer for what is there.
    pub buffer: __u64,
    /// In: length of the buffer in bytes. Out: bytes from `gpa` on that are of
    /// the kind `place`; they end with their page of 4 KiB at the latest. Only
    /// those of V3_PLACE_MEMORY are in the buffer, of which nothing else is
    /// written.
    pub len: __u32,
    /// Out: V3_PLACE_.
    pub place: __u32,
}
/// An entry of a page table, in [`v3_walk`].
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_walk_entry {
    /// Where it is: guest-physical for one of the guest's, host-physical for a
    /// nested one.
    pub at: __u64,
    /// What it holds.
    pub value: __u64,
    /// The level of its table. At level 1 entries map pages of 4 KiB.
    pub level: __u32,
    /// V3_ENTRY_ bits; a program ignores those that it does not know.
    pub flags: __u32,
}
/// The argument of V3_VM_WALK.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_walk {
    /// In: a linear address.
    pub address: __u64,
    /// In: number of the virtual CPU whose tables are walked.
    pub vcpu: __u32,
    /// In: V3_WALK_ bits.
    pub flags: __u32,
    /// Out, as all that follows: V3_PAGING_.
    pub mode: __u32,
    /// V3_WALK_.
    pub end: __u32,
    /// Entries of `entries`.
    pub count: __u32,
    /// Entries of `nested`. Zero unless `end` is V3_WALK_MAPPED.
    pub nested_count: __u32,
    /// The guest-physical address for V3_WALK_MAPPED. For V3_WALK_NO_TABLE, that
    /// of the entry. Else zero.
    pub gpa: __u64,
    /// The size of the guest's page; 2^32 without paging. Zero unless
    /// `end` is V3_WALK_MAPPED, as in those that follow.
    pub page_bytes: __u64,
    /// What all of the guest's entries allow, of V3_ENTRY_WRITE, USER and
    /// EXECUTE.
    pub rights: __u32,
    /// V3_PLACE_ of `gpa`.
    pub place: __u32,
    /// The host-physical address; zero unless nested tables map it.
    pub hpa: __u64,
    /// The size of the page there; zero unless they map it.
    pub nested_page_bytes: __u64,
    /// What nested tables allow, of V3_ENTRY_WRITE and EXECUTE. Where
    /// they allow less than the guest's, the module decides at the access.
    pub nested_rights: __u32,
    /// Zero.
    pub pad: __u32,
    /// The guest's entries, from the root down.
    pub entries: [v3_walk_entry; 5usize],
    /// The nested tables' entries, from the root down. Host-physical
    /// addresses, and what holds them, are zero unless the caller has
    /// CAP_SYS_ADMIN.
    pub nested: [v3_walk_entry; 5usize],
}
/// A local APIC's registers as its guest reads them, in
/// [`v3_interrupts`].
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_local_apic {
    /// IA32_APIC_BASE.
    pub base: __u64,
    /// The interrupt command.
    pub icr: __u64,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: __u64,
    /// The id, in bits 31:24 unless it is in x2APIC mode.
    pub id: __u32,
    /// The version.
    pub version: __u32,
    /// The task priority.
    pub tpr: __u32,
    /// The processor priority.
    pub ppr: __u32,
    /// The logical destination.
    pub ldr: __u32,
    /// The destination format; zero in x2APIC mode.
    pub dfr: __u32,
    /// The spurious-interrupt vector register.
    pub spurious: __u32,
    /// The error status.
    pub errors: __u32,
    /// Timer, thermal sensor, performance counters, LINT0, LINT1, error.
    pub lvt: [__u32; 6usize],
    /// The timer's initial count.
    pub initial_count: __u32,
    /// The timer's current count.
    pub current_count: __u32,
    /// The timer's divide configuration.
    pub divide: __u32,
    /// Zero.
    pub pad: __u32,
    /// ISR; bit n % 32 of word n / 32 is vector n.
    pub in_service: [__u32; 8usize],
    /// TMR, those that are level-triggered.
    pub level: [__u32; 8usize],
    /// IRR.
    pub requests: [__u32; 8usize],
}
/// An event on its way to the guest, in [`v3_interrupts`].
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_event {
    /// V3_EVENT_.
    pub kind: __u32,
    /// Its vector.
    pub vector: __u32,
    /// 1 if it has an error code, else 0.
    pub has_error_code: __u32,
    /// That error code.
    pub error_code: __u32,
}
/// The argument of V3_VM_INTERRUPTS.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_interrupts {
    /// In: number of the virtual CPU.
    pub vcpu: __u32,
    /// In: zero. Out, as all that follows: V3_TAKES_ and V3_PIC_ bits; a
    /// program ignores those that it does not know.
    pub flags: __u32,
    /// Its local APIC.
    pub apic: v3_local_apic,
    /// NMIs that were taken in, and not delivered yet.
    pub waiting_nmis: __u32,
    /// What the local APIC would have the processor take now, or
    /// V3_NO_VECTOR.
    pub next_vector: __u32,
    /// An exception of the module's for the next entry.
    pub raised: v3_event,
    /// An event whose delivery an exit cut short.
    pub cut_short: v3_event,
    /// An event that waits behind an exception.
    pub held: v3_event,
}
/// The argument of V3_VM_LOAD_RAM.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_load_ram {
    /// Number of the first page of 4 KiB: from 0, and without a hole. Pages
    /// from V3_LOW_RAM_PAGES on are shown to the guest from 4 GiB on.
    pub page: __u64,
    /// What they are to hold.
    pub buffer: __u64,
    /// Length of `buffer`, a multiple of 4096, at most V3_MAX_LOAD_RAM.
    pub len: __u64,
}
/// The argument of V3_VM_LOAD.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_load {
    /// All sections of a saved machine that are neither image nor RAM nor its
    /// end, as they stand there.
    pub state: __u64,
    /// Length of `state`, at most V3_MAX_STATE_LEN.
    pub state_len: __u64,
    /// Where to explain a failure, in words; may be zero.
    pub message: __u64,
    /// Length of `message`; V3_MESSAGE_LEN is enough.
    pub message_len: __u32,
    /// V3_LOAD_.
    pub flags: __u32,
}
/// An 8259A, in [`v3_chipset`]; bit n is input n.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_pic {
    /// Levels of its inputs.
    pub lines: __u8,
    /// IRR.
    pub requests: __u8,
    /// ISR.
    pub in_service: __u8,
    /// IMR.
    pub mask: __u8,
    /// ELCR.
    pub level_triggered: __u8,
    /// The vector of input 0.
    pub vector_base: __u8,
    /// The input of lowest priority.
    pub lowest: __u8,
    /// V3_PIC_ bits; a program ignores those that it does not know.
    pub flags: __u8,
}
/// The answer to V3_VM_CHIPSET.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_chipset {
    /// The I/O APIC's id.
    pub ioapic_id: __u32,
    /// Its inputs that are asserted; bit n is input n.
    pub ioapic_lines: __u32,
    /// Its redirection entries.
    pub ioapic: [__u64; 24usize],
    /// The primary 8259A, and the secondary.
    pub pics: [v3_pic; 2usize],
    /// V3_CHIPSET_ bits; a program ignores those that it does not know.
    pub flags: __u32,
    /// Zero.
    pub pad: __u32,
}
/// What is this module, and what can it do? No further errors.
pub const V3_VERSION: v3_control_ioctl = 2154321408;
/// Makes a VM from a guest.img; it is then V3_STATE_CREATED, with all of
/// its RAM accounted to the caller.
/// - `EINVAL`: the name is malformed
/// - `EEXIST`: a VM of that name exists
/// - `ENOEXEC`: the image is damaged, truncated, of a newer version, or
///   holds no kernel that can be started
/// - `EOPNOTSUPP`: the image is sound but asks for more than this module or
///   this processor offers
/// - `E2BIG`: the image is longer than the module accepts
/// - `ENOSPC`: max_vms VMs exist
pub const V3_CREATE: v3_control_ioctl = 3228063233;
/// Lists the VMs.
pub const V3_LIST: v3_control_ioctl = 3222296066;
/// Ends a VM that is created or stopped, and gives back all it held.
/// Descriptors of it may be open: from then on they answer ENODEV.
/// - `ENOENT`: there is no such VM
/// - `EBUSY`: it is running or paused: stop it first
pub const V3_FREE: v3_control_ioctl = 1074288131;
/// Lists the features of processors, and which of them a guest has from
/// which its image takes none away.
pub const V3_FEATURES: v3_control_ioctl = 3222296068;
/// Calls of /dev/v3vee. They are enumerators, not macros, so that bindgen sees
/// their values.
pub type v3_control_ioctl = crate::ctypes::c_uint;
/// Created -> running.
/// - `EBADFD`: it was launched before
pub const V3_VM_LAUNCH: v3_vm_ioctl = 22048;
/// Any state -> stopped; returns when no virtual CPU runs any more. A VM
/// that has stopped already keeps its reason. No further errors.
pub const V3_VM_STOP: v3_vm_ioctl = 22049;
/// Running -> paused; returns when every virtual CPU stands still. A
/// paused VM stays so.
/// - `EBADFD`: it is not running
pub const V3_VM_PAUSE: v3_vm_ioctl = 22050;
/// Paused -> running. A running VM stays so.
/// - `EBADFD`: it is not paused
pub const V3_VM_CONTINUE: v3_vm_ioctl = 22051;
/// Waits until the VM is stopped.
/// - `ETIMEDOUT`: it is not stopped yet
pub const V3_VM_WAIT: v3_vm_ioctl = 3222820388;
/// Describes the VM. No further errors.
pub const V3_VM_INFO: v3_vm_ioctl = 2170574373;
/// Reads all counters of the VM; it need not be paused for that.
pub const V3_VM_STATS: v3_vm_ioctl = 3222296102;
/// Turns this open descriptor into a byte stream of the guest: read() gives
/// what the guest sends, write() is what it receives, poll() tells when
/// either can go on, O_NONBLOCK is honoured (EAGAIN). The descriptor takes
/// no more ioctls (ENOTTY). Closing it detaches.
///
/// The module keeps what the guest sent last, whether anyone is attached
/// or not; when its buffer is full the oldest bytes go and a counter says
/// how many. When the VM is stopped and all was read, read() returns 0,
/// poll() says POLLHUP and write() fails with EPIPE.
/// - `ENOENT`: the VM has no stream of that name, or no console
/// - `EBUSY`: another descriptor is attached to it
pub const V3_VM_STREAM: v3_vm_ioctl = 1075861031;
/// Takes the host memory behind these guest pages away and gives other
/// pages with the same contents. The guest, running or not, sees nothing
/// of it. Pages that the guest never touched are skipped.
/// - `EINVAL`: not aligned, or empty
/// - `ERANGE`: not all of it is RAM of the guest
/// - `EOPNOTSUPP`: V3_FEATURE_RELOCATE is not offered
/// - `EBADFD`: the VM is stopped
pub const V3_VM_RELOCATE: v3_vm_ioctl = 1074812456;
/// Moves a virtual CPU to a CPU of the host, where it then stays, or lets it
/// run on any. The guest, running or not, sees nothing of it. A virtual CPU
/// that runs has left its old CPU when this returns.
/// - `ENOENT`: the VM has no such virtual CPU
/// - `ENXIO`: the host has no such CPU, or it is offline
/// - `EBADFD`: the VM is stopped
pub const V3_VM_MOVE: v3_vm_ioctl = 1074288169;
/// Says where a virtual CPU may run.
/// - `ENOENT`: the VM has no such virtual CPU
pub const V3_VM_VCPU: v3_vm_ioctl = 3221771818;
/// Lists the names of the VM's streams.
pub const V3_VM_STREAMS: v3_vm_ioctl = 3222296107;
/// Lists the features of processors, and which of them this VM has.
pub const V3_VM_FEATURES: v3_vm_ioctl = 3222296108;
/// Describes a virtual CPU, whatever its VM is at: what a guest that died
/// left behind, or where one that runs is just now.
/// - `ENOENT`: the VM has no such virtual CPU
pub const V3_VM_VCPU_REPORT: v3_vm_ioctl = 3293599277;
/// Attaches a device to the VM, whatever its state. Descriptors are the far
/// ends of the device's stream, or the one that holds a disk's bytes; the VM
/// holds them until the device is detached or the VM freed, and whoever gives
/// one away gives it to the VM as it is: reads and writes of a stream move its
/// position. Output that nobody takes is kept, the last 64 KiB of it.
/// - `EBADF`: a descriptor is not open
/// - `EINVAL`: a descriptor cannot be read or written as its role wants,
///   may block, is a node of this module, or is none of a file,
///   pipe, socket or terminal, or for a disk of a file or block
///   device; two have the same role; the id is malformed; a device
///   of this kind cannot be at that port, has no stream, is no disk
///   or one without a descriptor, or has no such options
/// - `EBUSY`: the file is a disk already, and one of both would write to it
/// - `E2BIG`: more descriptors than V3_MAX_DESCRIPTORS, or options with
///   more in them than the module knows
/// - `EOPNOTSUPP`: the options are of a newer version than the module knows
/// - `ENOENT`: there is no such kind
/// - `EEXIST`: the id is taken, or the place
/// - `ENOSPC`: no place for a device of this kind is left, or the VM has as
///   many devices as it can have
pub const V3_VM_ATTACH: v3_vm_ioctl = 3228063278;
/// Takes a device away from the VM, whatever its state. What it had sent is
/// with its descriptor then, as far as that takes it; and the descriptor is
/// not held any more.
/// - `EINVAL`: the id is malformed
/// - `ENOENT`: the VM has no such device
/// - `EPERM`: the device stays with the machine
pub const V3_VM_DETACH: v3_vm_ioctl = 1075861039;
/// Lists the devices of the VM, in the order in which they came.
pub const V3_VM_DEVICES: v3_vm_ioctl = 3222296112;
/// Reads the guest's memory, whatever its VM is at. It changes nothing: a
/// page that nobody has touched stays so, and no device is asked.
pub const V3_VM_MEMORY_READ: v3_vm_ioctl = 3222820401;
/// Follows a virtual CPU's page tables to an address, and then the nested
/// tables, whatever its VM is at. It changes nothing: entries keep their
/// accessed and dirty bits. A virtual CPU that runs is called out of its
/// guest for the moment, as by the next call.
/// - `ENOENT`: the VM has no such virtual CPU
pub const V3_VM_WALK: v3_vm_ioctl = 3242219058;
/// Describes a virtual CPU's local APIC and what is on its way to it,
/// whatever its VM is at. It takes none of it.
/// - `ENOENT`: the VM has no such virtual CPU
pub const V3_VM_INTERRUPTS: v3_vm_ioctl = 3238024755;
/// Describes the VM's I/O APIC and PIC pair. No further errors.
pub const V3_VM_CHIPSET: v3_vm_ioctl = 2162185780;
/// Has this open file read as the saved machine, once and from its
/// beginning; it takes no other call from then on. The VM stands still
/// until the file is closed, and then goes on, unless somebody else holds
/// it. A read answers EBADFD if the VM was stopped meanwhile; what was read
/// by then is of no use; EOPNOTSUPP if its memory is not where it was when
/// the machine started; EMEDIUMTYPE if a disk keeps in memory what its guest
/// wrote. Input waits while it stands still.
/// - `EBADFD`: the VM neither runs nor is paused
/// - `EBUSY`: too many save it
/// - `ENOTTY`: the file is a stream, or saves already
pub const V3_VM_SAVE: v3_vm_ioctl = 22069;
/// Writes to the RAM of a VM that was never launched. The first call
/// empties it: what is not written is zero.
/// - `EBADFD`: it was
/// - `EINVAL`: `len` is no multiple of 4096
/// - `E2BIG`: `len` is more than V3_MAX_LOAD_RAM
/// - `ERANGE`: the VM has no such RAM; what is before that was written
pub const V3_VM_LOAD_RAM: v3_vm_ioctl = 1075336758;
/// Has a VM that was never launched, and that was made of the image of a
/// saved machine, go on from its state when it is launched. Its RAM was
/// loaded before, and it has the devices that the saved machine had. On
/// failure the VM is as it was made; its RAM is to be loaded again.
/// - `EBADFD`: the VM was launched, or has stopped
/// - `E2BIG`: `state_len` is more than V3_MAX_STATE_LEN
/// - `EINVAL`: the state is damaged, or none that a machine can have
/// - `EOPNOTSUPP`: it is of another machine, or of a version that the module
///   does not know; or the processor does not have what the
///   guest uses
/// - `ERANGE`: its time stamp counter ran at another rate than one does
///   here; V3_LOAD_NEW_TSC_RATE has the guest bear that
pub const V3_VM_LOAD: v3_vm_ioctl = 1075861047;
/// Asks the guest to let go of a PCI device, and does not wait for that.
/// The device is taken away when the guest ejects it.
/// - `EINVAL`: the id is malformed
/// - `ENOENT`: the VM has no such device
/// - `EPERM`: the device stays with the machine
/// - `EOPNOTSUPP`: no guest can be asked for this device: it is no PCI device,
///   or the VM does not run
pub const V3_VM_EJECT: v3_vm_ioctl = 1075861048;
/// Gives a disk another size, with its file, or takes in the size that its
/// file or block device has now; and tells the guest.
/// - `EINVAL`: the id is malformed; `bytes` is no multiple of its blocks
/// - `ENOENT`: the VM has no such device
/// - `EPERM`: the disk would become smaller, without V3_RESIZE_SHRINK
/// - `ENOTBLK`: the device is no disk
/// - `EOPNOTSUPP`: its store has a size of its own: it is a block device, a
///   snapshot, or not to be written to
/// - `ENOSPC`: there is no space for that
/// - `EIO`: its store failed
pub const V3_VM_RESIZE: v3_vm_ioctl = 3224917561;
/// Calls of /dev/v3-vmN.
pub type v3_vm_ioctl = crate::ctypes::c_uint;
