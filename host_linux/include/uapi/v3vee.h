/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT OR Apache-2.0 */
/*
 * The interface between v3vee.ko and user space. This header is the only
 * definition of it: the Rust crate v3_abi is generated from it by bindgen.
 *
 *   /dev/v3vee    the control node: version, create, list and free VMs
 *   /dev/v3-vmN   one node a VM: run it, watch it, talk to its streams
 *
 * A VM lives in the kernel: the program that created or launched it may exit.
 * Who may open a node may use it; the module creates the nodes for root alone,
 * and an administrator may open them to a group.
 *
 * Rules for every call
 *   - Sizes are part of the ioctl number, so a struct of another size is
 *     another, unknown call: ENOTTY.
 *   - Layouts are the same for 32-bit and 64-bit callers. Pointers are __u64.
 *   - Fields named "pad" and unused bits of "flags" must be zero: EINVAL.
 *     The module writes zero to padding, and to strings behind their NUL.
 *   - Strings are NUL-terminated inside their array.
 *   - A call that fails writes nothing, except the message of V3_CREATE and
 *     V3_VM_ATTACH.
 *   - A call that waits can be killed, but not interrupted otherwise; reads
 *     and writes of a stream can be interrupted (EINTR).
 *
 * Errors that any call may return
 *   EFAULT   a pointer does not lead to memory of the caller
 *   EINVAL   padding or flags are not zero, or as said at the call
 *   ENODEV   the VM behind this descriptor was freed
 *   ENOMEM   the host has no memory left for this
 *   ENOTTY   this node has no such call
 * Further errors stand at each call.
 */
#ifndef _UAPI_V3VEE_H
#define _UAPI_V3VEE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * Raised when an existing call changes its meaning. A program compares it with
 * v3_version.abi and gives up if they differ. A new call does not raise it.
 */
#define V3_ABI			1

/* Type letter of every ioctl here. */
#define V3_IOCTL_TYPE		'V'

#define V3_NAME_LEN		64	/* a VM's name, with its NUL */
#define V3_STREAM_NAME_LEN	32	/* a stream's name, with its NUL */
#define V3_STAT_NAME_LEN	44	/* a counter's name, with its NUL */
#define V3_MESSAGE_LEN		256	/* a stop message, with its NUL */
#define V3_FEATURE_NAME_LEN	40	/* a processor feature's name, with its NUL */
#define V3_FEATURE_WHY_LEN	96	/* why a guest lacks a feature, with its NUL */
#define V3_DEVICE_ID_LEN	32	/* what a device is known by, with its NUL */
#define V3_DEVICE_KIND_LEN	32	/* a kind of devices, with its NUL */
#define V3_DEVICE_REGIONS	8	/* regions of a device that are listed */
#define V3_MAX_DESCRIPTORS	16	/* descriptors that one V3_VM_ATTACH takes */
#define V3_MAX_LOAD_RAM		(1U << 20)	/* bytes of RAM that one V3_VM_LOAD_RAM takes */
#define V3_MAX_STATE_LEN	(16U << 20)	/* the longest state of a machine, without its RAM */
#define V3_LOW_RAM_PAGES	0xc0000U	/* pages of RAM below 4 GiB */
#define V3_MAX_OPTIONS_LEN	4096	/* the longest options that one takes */

/* v3_version.features: what this module can do on this processor. */
#define V3_FEATURE_NESTED_PAGING (1ULL << 0)	/* guests run on nested page tables */
#define V3_FEATURE_XSAVE	(1ULL << 1)	/* guests may use AVX and its like */
#define V3_FEATURE_RELOCATE	(1ULL << 2)	/* V3_VM_RELOCATE works */
#define V3_FEATURE_TLB_TAGS	(1ULL << 3)	/* translations of guests are told apart: ASIDs, VPIDs */
#define V3_FEATURE_NEXT_RIP	(1ULL << 4)	/* the processor says where an instruction ends */
#define V3_FEATURE_DECODE_ASSISTS (1ULL << 5)	/* the processor gives the bytes of an instruction that faults */

/**
 * struct v3_version - the answer to V3_VERSION.
 * @abi: V3_ABI of the module. Always the first field.
 * @vms: VMs that exist now.
 * @max_vms: VMs that can exist at a time; numbers are below it.
 * @max_vcpus: Virtual CPUs that one VM may have.
 * @features: V3_FEATURE_ bits.
 * @module: Version of the module, for people.
 * @backend: The processor extension in use: "svm" or "vmx".
 */
struct v3_version {
	__u32 abi;
	__u32 vms;
	__u32 max_vms;
	__u32 max_vcpus;
	__u64 features;
	char module[64];
	char backend[16];
};

/**
 * struct v3_create - the argument of V3_CREATE.
 * @image: Address of a guest.img, whole, in the caller's memory. It is copied.
 * @image_len: Its length in bytes.
 * @message: Address of a buffer for an explanation of a failure, or 0.
 * @message_len: Length of that buffer in bytes; 0 asks for no explanation. When
 *	the call fails the module writes one line, cut to fit, with its NUL.
 * @flags: Zero.
 * @vm: Out: the number N of the new /dev/v3-vmN.
 * @pad: Zero.
 * @name: Name of the VM: 1 to 63 of the characters A-Z a-z 0-9 . _ - of which at
 *	least one is not a digit, because digits alone name a VM by its number.
 */
struct v3_create {
	__u64 image;
	__u64 image_len;
	__u64 message;
	__u32 message_len;
	__u32 flags;
	__u32 vm;
	__u32 pad;
	char name[V3_NAME_LEN];
};

/* v3_info.state: where a VM is in its life. */
#define V3_STATE_CREATED	1	/* made, not yet launched */
#define V3_STATE_RUNNING	2	/* its CPUs run, or wait for interrupts */
#define V3_STATE_PAUSED		3	/* its CPUs and its clock stand still */
#define V3_STATE_STOPPED	4	/* it has stopped for good; the reason says why */

/* v3_info.reason, v3_wait.reason: why a VM stopped. */
#define V3_REASON_NONE		0	/* it did not */
/* The guest, or the user, wanted it. */
#define V3_REASON_POWER_OFF	1	/* the guest powered itself off */
#define V3_REASON_TEST_EXIT	2	/* the guest wrote the test-exit port, see exit_status */
#define V3_REASON_REQUEST	3	/* V3_VM_STOP */
/* The guest is broken. */
#define V3_REASON_TRIPLE_FAULT	16	/* a fault while a double fault was delivered */
#define V3_REASON_UNKNOWN_EXIT	17	/* the processor gave an exit that nothing handles */
#define V3_REASON_EMULATION	18	/* an instruction that cannot be emulated */
#define V3_REASON_BAD_STATE	19	/* the processor refused the guest's state */
#define V3_REASON_GUEST_ERROR	20	/* anything else the guest did; the message says what */
/* The host is in trouble. */
#define V3_REASON_HOST_MEMORY	32	/* no memory for a page of the guest */
#define V3_REASON_HOST_ERROR	33	/* anything else; the message says what */

/*
 * v3_info.flags. Dead: nothing can wake the guest any more, as all its CPUs are
 * halted with interrupts off, or were never started. It stays running, and can
 * be stopped.
 */
#define V3_INFO_DEAD		(1U << 0)

/**
 * struct v3_info - one VM: the answer to V3_VM_INFO, an entry of V3_LIST.
 * @vm: Number N of its /dev/v3-vmN.
 * @state: V3_STATE_.
 * @reason: V3_REASON_; V3_REASON_NONE unless stopped.
 * @exit_status: For V3_REASON_TEST_EXIT: (value written) * 2 + 1, modulo 2^32;
 *	else zero.
 * @vcpus: Its virtual CPUs.
 * @flags: V3_INFO_ bits; a program ignores those that it does not know.
 * @memory_bytes: Its RAM.
 * @name: Its name.
 * @message: Why it stopped, or is dead, for people; else empty.
 */
struct v3_info {
	__u32 vm;
	__u32 state;
	__u32 reason;
	__u32 exit_status;
	__u32 vcpus;
	__u32 flags;
	__u64 memory_bytes;
	char name[V3_NAME_LEN];
	char message[V3_MESSAGE_LEN];
};

/**
 * struct v3_list - the argument of V3_LIST.
 * @entries: Address of an array of struct v3_info; may be 0 if @count is 0.
 * @count: In: entries that fit. Out: VMs that exist. If that is more, only the
 *	first ones were written, by ascending number: ask again with more room.
 * @pad: Zero.
 */
struct v3_list {
	__u64 entries;
	__u32 count;
	__u32 pad;
};

/**
 * struct v3_free - the argument of V3_FREE.
 * @vm: Number of the VM.
 * @pad: Zero.
 */
struct v3_free {
	__u32 vm;
	__u32 pad;
};

/**
 * struct v3_wait - the argument of V3_VM_WAIT.
 * @timeout_ns: In: how long to wait at most; 0 only looks, a negative number
 *	waits as long as it takes.
 * @state: Out: V3_STATE_STOPPED.
 * @reason: Out: V3_REASON_.
 * @exit_status: Out: as in struct v3_info.
 * @pad: Zero.
 */
struct v3_wait {
	__s64 timeout_ns;
	__u32 state;
	__u32 reason;
	__u32 exit_status;
	__u32 pad;
};

/* v3_stat.vcpu: the counter belongs to the whole VM. */
#define V3_STAT_VM		(-1)

/**
 * struct v3_stat - one counter, an entry of V3_VM_STATS.
 * @vcpu: Number of the virtual CPU it belongs to, or V3_STAT_VM.
 * @name: Its name: lower case, words joined by "_", unit last ("exit_cpuid",
 *	"stream_com1_lost_bytes").
 * @value: Its value. Counters of events never decrease.
 */
struct v3_stat {
	__s32 vcpu;
	char name[V3_STAT_NAME_LEN];
	__u64 value;
};

/**
 * struct v3_stats - the argument of V3_VM_STATS.
 * @entries: Address of an array of struct v3_stat; may be 0 if @count is 0.
 * @count: In: entries that fit. Out: counters that exist, as in struct v3_list.
 * @pad: Zero.
 */
struct v3_stats {
	__u64 entries;
	__u32 count;
	__u32 pad;
};

/**
 * struct v3_stream - the argument of V3_VM_STREAM.
 * @name: Name of the stream, as the image gives it ("com1"); empty for the one
 *	that the image makes the console.
 */
struct v3_stream {
	char name[V3_STREAM_NAME_LEN];
};

/**
 * struct v3_streams - the argument of V3_VM_STREAMS.
 * @entries: Address of an array of struct v3_stream; may be 0 if @count is 0.
 * @count: In: entries that fit. Out: streams that exist, as in struct v3_list.
 * @pad: Zero.
 */
struct v3_streams {
	__u64 entries;
	__u32 count;
	__u32 pad;
};

/* v3_feature.guest: whether guests have the feature. */
#define V3_GUEST_LACKS		0	/* they do not; the reason says why */
#define V3_GUEST_HAS		1	/* they do */
#define V3_GUEST_VARIES		2	/* the reason says with what */

/**
 * struct v3_feature - one feature of the processor, an entry of V3_FEATURES.
 * @leaf: EAX with which CPUID tells of it.
 * @subleaf: ECX with which it does.
 * @reg: The register that tells: 0 to 3 for EAX, EBX, ECX and EDX.
 * @bit: The bit there.
 * @host: The host's processor has it: 1, or 0.
 * @guest: V3_GUEST_.
 * @name: Its name.
 * @why: Why guests lack it, or with what that varies, for people; else empty.
 */
struct v3_feature {
	__u32 leaf;
	__u32 subleaf;
	__u32 reg;
	__u32 bit;
	__u32 host;
	__u32 guest;
	char name[V3_FEATURE_NAME_LEN];
	char why[V3_FEATURE_WHY_LEN];
};

/**
 * struct v3_features - the argument of V3_FEATURES and V3_VM_FEATURES.
 * @entries: Address of an array of struct v3_feature; may be 0 if @count is 0.
 * @count: In: entries that fit. Out: features that are known, as in struct
 *	v3_list.
 * @pad: Zero.
 */
struct v3_features {
	__u64 entries;
	__u32 count;
	__u32 pad;
};

/**
 * struct v3_relocate - the argument of V3_VM_RELOCATE.
 * @gpa: First guest-physical address; a multiple of 4096.
 * @len: Bytes; a multiple of 4096, not zero.
 */
struct v3_relocate {
	__u64 gpa;
	__u64 len;
};

/* v3_vcpu.cpu: the virtual CPU may run on any. */
#define V3_CPU_ANY		0xffffffffU

/**
 * struct v3_vcpu - the argument of V3_VM_MOVE and V3_VM_VCPU.
 * @vcpu: Number of the virtual CPU.
 * @cpu: Number of the host's CPU on which alone it runs, or V3_CPU_ANY.
 */
struct v3_vcpu {
	__u32 vcpu;
	__u32 cpu;
};

#define V3_EXIT_NAME_LEN	24	/* the name of a kind of exit, with its NUL */
#define V3_LAST_EXITS		16	/* exits that a virtual CPU remembers */
#define V3_SHOWN_BYTES		64	/* bytes of code and of stack that are shown */

/**
 * struct v3_exit - an exit that is past, an entry of struct v3_vcpu_report.
 * @rip: RIP when the guest was left.
 * @kind: Its kind, by the name of the counter of such exits, "exit_cpuid".
 */
struct v3_exit {
	__u64 rip;
	char kind[V3_EXIT_NAME_LEN];
};

/**
 * struct v3_segment - a segment register, an entry of struct v3_vcpu_report.
 * @base: Linear address of its first byte.
 * @limit: Offset of its last byte.
 * @selector: The visible part.
 * @attributes: Type in bits 0-3, S 4, DPL 5-6, P 7, AVL 8, L 9, D/B 10, G 11.
 */
struct v3_segment {
	__u64 base;
	__u32 limit;
	__u16 selector;
	__u16 attributes;
};

/* v3_vcpu_report.activity: what it would do if it ran. */
#define V3_ACTIVITY_RUNS	1	/* execute instructions */
#define V3_ACTIVITY_HALTED	2	/* wait in HLT for an interrupt */
#define V3_ACTIVITY_UNSTARTED	3	/* wait for another one to start it */

/* v3_vcpu_report.cause: what began the triple fault that ended the guest. */
#define V3_CAUSE_NONE		0	/* no triple fault, or not known */
#define V3_CAUSE_EXCEPTION	1	/* an exception whose handler was not reached */
#define V3_CAUSE_INTERRUPT	2	/* an interrupt whose handler was not reached */

/**
 * struct v3_vcpu_report - the argument of V3_VM_VCPU_REPORT.
 * @vcpu: In: number of the virtual CPU.
 * @activity: Out, as all that follows: V3_ACTIVITY_.
 * @gprs: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
 * @rip: The next instruction, or the one that could not be executed.
 * @rflags: RFLAGS.
 * @cr0: CR0.
 * @cr2: CR2, the address of the last page fault.
 * @cr3: CR3.
 * @cr4: CR4.
 * @cr8: CR8, the task priority.
 * @efer: EFER.
 * @xcr0: XCR0.
 * @dr: DR0 to DR3.
 * @dr6: DR6.
 * @dr7: DR7.
 * @segments: ES, CS, SS, DS, FS, GS, LDTR, TR.
 * @gdt_base: Linear address of the GDT.
 * @idt_base: Linear address of the IDT.
 * @gdt_limit: Offset of the GDT's last byte.
 * @idt_limit: Offset of the IDT's last byte.
 * @cpl: The privilege level, 0 to 3.
 * @code_bits: 16, 32 or 64: how its instructions are to be read.
 * @cause: V3_CAUSE_.
 * @cause_vector: The vector of that exception or interrupt.
 * @cause_has_error_code: 1 if that exception has an error code, else 0.
 * @cause_error_code: That error code.
 * @code_at: Linear address of RIP.
 * @stack_at: Linear address of the top of the stack.
 * @code_len: Bytes of @code that could be read.
 * @stack_len: Bytes of @stack that could be read.
 * @code: What lies there.
 * @stack: What lies there.
 * @exit_count: Entries of @exits.
 * @pad: Zero.
 * @exits: The last exits, the oldest first.
 */
struct v3_vcpu_report {
	__u32 vcpu;
	__u32 activity;
	__u64 gprs[16];
	__u64 rip;
	__u64 rflags;
	__u64 cr0;
	__u64 cr2;
	__u64 cr3;
	__u64 cr4;
	__u64 cr8;
	__u64 efer;
	__u64 xcr0;
	__u64 dr[4];
	__u64 dr6;
	__u64 dr7;
	struct v3_segment segments[8];
	__u64 gdt_base;
	__u64 idt_base;
	__u32 gdt_limit;
	__u32 idt_limit;
	__u32 cpl;
	__u32 code_bits;
	__u32 cause;
	__u32 cause_vector;
	__u32 cause_has_error_code;
	__u32 cause_error_code;
	__u64 code_at;
	__u64 stack_at;
	__u32 code_len;
	__u32 stack_len;
	__u8 code[V3_SHOWN_BYTES];
	__u8 stack[V3_SHOWN_BYTES];
	__u32 exit_count;
	__u32 pad;
	struct v3_exit exits[V3_LAST_EXITS];
};

/* v3_descriptor.role: what the descriptor is for the device. */
#define V3_ROLE_INPUT		1	/* the device's input is read from it */
#define V3_ROLE_OUTPUT		2	/* the device's output is written to it */
#define V3_ROLE_BOTH		3	/* both */

/* v3_descriptor.kind: what goes through it. */
#define V3_DESCRIPTOR_STREAM	0	/* bytes */
#define V3_DESCRIPTOR_DISK	1	/* blocks: the device is a disk */

/**
 * struct v3_descriptor - a descriptor of the caller, an entry of V3_VM_ATTACH.
 * @fd: For a stream a regular file, a pipe, a socket or a terminal; all but a
 *	regular file must have O_NONBLOCK, and keep it. For a disk a regular file or
 *	a block device. The VM holds the open file itself: the caller may close its
 *	descriptor.
 * @role: V3_ROLE_. A disk has V3_ROLE_BOTH, or V3_ROLE_INPUT if its guest may not
 *	write to the file.
 * @kind: V3_DESCRIPTOR_.
 * @pad: Zero.
 */
struct v3_descriptor {
	__s32 fd;
	__u32 role;
	__u32 kind;
	__u32 pad;
};

/* v3_serial_options.version: the newest version that this header knows. */
#define V3_SERIAL_VERSION	1

/**
 * struct v3_serial_options - the options of a device of the kind "serial".
 * @size: The size of the struct as the caller knows it.
 * @version: V3_SERIAL_VERSION as the caller knows it.
 * @port: The first of its eight ports: 0x3f8, 0x2f8, 0x3e8 or 0x2e8; or 0 for
 *	the first of these that is free.
 * @pad: Zero.
 */
struct v3_serial_options {
	__u32 size;
	__u32 version;
	__u32 port;
	__u32 pad;
};

/* v3_pci_options.version: the newest version that this header knows. */
#define V3_PCI_VERSION	1

/**
 * struct v3_pci_options - the options of a device that is a PCI device.
 * @size: The size of the struct as the caller knows it.
 * @version: V3_PCI_VERSION as the caller knows it.
 * @slot: The number of the device on PCI bus 0: 2 to 31; or 0 for the first
 *	that is free.
 * @pad: Zero.
 */
struct v3_pci_options {
	__u32 size;
	__u32 version;
	__u32 slot;
	__u32 pad;
};

/* v3_disk_options.version: the newest version that this header knows. */
#define V3_DISK_VERSION		1

/* v3_disk_options.flags */
#define V3_DISK_SHARED		(1U << 0)	/* others of whom the same is said may have the same file */
#define V3_DISK_SNAPSHOT	(1U << 1)	/* what the guest writes stays in memory, and goes with the disk */

/**
 * struct v3_disk_options - the options of a device of the kind "disk".
 * @size: The size of the struct as the caller knows it.
 * @version: V3_DISK_VERSION as the caller knows it.
 * @slot: As in struct v3_pci_options.
 * @flags: V3_DISK_.
 * @queues: How many queues it has, at most 16; or 0 for one a virtual CPU, as far
 *	as there are so many.
 * @pad: Zero.
 */
struct v3_disk_options {
	__u32 size;
	__u32 version;
	__u32 slot;
	__u32 flags;
	__u32 queues;
	__u32 pad;
};

/**
 * struct v3_attach - the argument of V3_VM_ATTACH.
 * @options: Address of the options of the device's kind; or 0, with length 0,
 *	for a device as it usually is.
 * @descriptors: Address of an array of struct v3_descriptor; may be 0 if
 *	@descriptor_count is 0.
 * @message: Address of a buffer for an explanation of a failure, or 0.
 * @options_len: Length of the options in bytes, the same as their size field.
 * @descriptor_count: Descriptors there, at most V3_MAX_DESCRIPTORS.
 * @message_len: Length of the buffer in bytes, as in struct v3_create.
 * @flags: Zero.
 * @kind: The kind of the device: "serial", "disk", "rng", "example-rng".
 * @id: In: what the device is to be known by: 1 to 31 of the characters A-Z a-z
 *	0-9 . _ -; or empty, and the VM chooses. Out: what it is known by.
 */
struct v3_attach {
	__u64 options;
	__u64 descriptors;
	__u64 message;
	__u32 options_len;
	__u32 descriptor_count;
	__u32 message_len;
	__u32 flags;
	char kind[V3_DEVICE_KIND_LEN];
	char id[V3_DEVICE_ID_LEN];
};

/**
 * struct v3_detach - the argument of V3_VM_DETACH and V3_VM_EJECT.
 * @id: What the device is known by.
 */
struct v3_detach {
	char id[V3_DEVICE_ID_LEN];
};

/* v3_resize.flags */
#define V3_RESIZE_SHRINK	(1U << 0)	/* the disk may become smaller, and lose what is behind its new end */
#define V3_RESIZE_FOLLOW	(1U << 1)	/* it has the size that its file or block device has now */

/**
 * struct v3_resize - the argument of V3_VM_RESIZE.
 * @bytes: In: how large the disk is to be; zero with V3_RESIZE_FOLLOW. Out: how
 *	large it is.
 * @message: Address of a buffer for an explanation of a failure, or 0.
 * @message_len: Length of the buffer in bytes, as in struct v3_create.
 * @flags: V3_RESIZE_.
 * @id: What the disk is known by.
 */
struct v3_resize {
	__u64 bytes;
	__u64 message;
	__u32 message_len;
	__u32 flags;
	char id[V3_DEVICE_ID_LEN];
};

/* v3_device_region.space: what the addresses are those of. */
#define V3_SPACE_PORTS		1	/* ports */
#define V3_SPACE_MEMORY		2	/* memory */
#define V3_SPACE_PCI		3	/* configuration space of PCI, as in the
					 * ECAM window */

/* v3_device_region.flags */
#define V3_REGION_ON		(1U << 0)	/* the device answers there now */

/**
 * struct v3_device_region - where a device answers, in struct v3_device.
 * @at: The first port, guest-physical address, or address in configuration
 *	space: device number from bit 15 on, function number from bit 12 on.
 * @bytes: How many.
 * @space: V3_SPACE_.
 * @flags: V3_REGION_ bits; a program ignores those that it does not know.
 */
struct v3_device_region {
	__u64 at;
	__u64 bytes;
	__u32 space;
	__u32 flags;
};

/* v3_device.flags */
#define V3_DEVICE_REMOVABLE	(1U << 0)	/* V3_VM_DETACH may take it away */

/**
 * struct v3_device - a device of a VM, an entry of V3_VM_DEVICES.
 * @id: What it is known by.
 * @kind: What it is.
 * @flags: V3_DEVICE_ bits; a program ignores those that it does not know.
 * @region_count: Its regions. If that is more than V3_DEVICE_REGIONS, only the
 *	first ones are in @regions.
 * @regions: Where it answers.
 */
struct v3_device {
	char id[V3_DEVICE_ID_LEN];
	char kind[V3_DEVICE_KIND_LEN];
	__u32 flags;
	__u32 region_count;
	struct v3_device_region regions[V3_DEVICE_REGIONS];
};

/**
 * struct v3_devices - the argument of V3_VM_DEVICES.
 * @entries: Address of an array of struct v3_device; may be 0 if @count is 0.
 * @count: In: entries that fit. Out: devices that exist, as in struct v3_list.
 * @pad: Zero.
 */
struct v3_devices {
	__u64 entries;
	__u32 count;
	__u32 pad;
};

/* v3_memory_read.place, v3_walk.place: what is at a guest-physical address. */
#define V3_PLACE_MEMORY		1	/* memory: RAM, or a ROM */
#define V3_PLACE_UNTOUCHED	2	/* memory without a page of the host: never touched, then it reads as zeroes, or taken back */
#define V3_PLACE_NONE		3	/* no memory: a device's address, or nobody's */

/**
 * struct v3_memory_read - the argument of V3_VM_MEMORY_READ.
 * @gpa: The first guest-physical address.
 * @buffer: Address of a buffer for what is there.
 * @len: In: length of the buffer in bytes. Out: bytes from @gpa on that are of
 *	the kind @place; they end with their page of 4 KiB at the latest. Only
 *	those of V3_PLACE_MEMORY are in the buffer, of which nothing else is
 *	written.
 * @place: Out: V3_PLACE_.
 */
struct v3_memory_read {
	__u64 gpa;
	__u64 buffer;
	__u32 len;
	__u32 place;
};

#define V3_WALK_LEVELS		5	/* the most levels that page tables have */

/* v3_walk.flags */
#define V3_WALK_PHYSICAL	(1U << 0)	/* the address is guest-physical: only nested tables are walked */

/* v3_walk.mode: how the guest translates. */
#define V3_PAGING_OFF		0	/* a linear address is a guest-physical one */
#define V3_PAGING_32BIT		1	/* two levels of 4-byte entries */
#define V3_PAGING_PAE		2	/* three levels of 8-byte entries */
#define V3_PAGING_4LEVEL	3	/* four levels */
#define V3_PAGING_5LEVEL	4	/* five levels */

/* v3_walk.end: where the walk through the guest's tables ends. */
#define V3_WALK_MAPPED		1	/* at a page */
#define V3_WALK_NOT_PRESENT	2	/* at the last entry, which is not present */
#define V3_WALK_RESERVED	3	/* at the last entry, which has bits set that must be zero */
#define V3_WALK_NON_CANONICAL	4	/* it does not begin: the address is not canonical */
#define V3_WALK_NO_TABLE	5	/* no memory is where the next entry would be */

/*
 * v3_walk_entry.flags, v3_walk.rights, v3_walk.nested_rights: what entries say.
 * Without the first one an entry says nothing else.
 */
#define V3_ENTRY_PRESENT	(1U << 0)	/* it is present */
#define V3_ENTRY_WRITE		(1U << 1)	/* it allows writes */
#define V3_ENTRY_USER		(1U << 2)	/* it allows privilege level 3 */
#define V3_ENTRY_EXECUTE	(1U << 3)	/* it does not forbid execution */
#define V3_ENTRY_ACCESSED	(1U << 4)	/* the processor has used it */
#define V3_ENTRY_DIRTY		(1U << 5)	/* the processor has written to the page */
#define V3_ENTRY_LEAF		(1U << 6)	/* it maps a page itself */
#define V3_ENTRY_RESERVED	(1U << 7)	/* bits are set that must be zero */
#define V3_ENTRY_UNTOUCHED	(1U << 8)	/* its table is at V3_PLACE_UNTOUCHED, so it reads as zero */

/**
 * struct v3_walk_entry - an entry of a page table, in struct v3_walk.
 * @at: Where it is: guest-physical for one of the guest's, host-physical for a
 *	nested one.
 * @value: What it holds.
 * @level: The level of its table. At level 1 entries map pages of 4 KiB.
 * @flags: V3_ENTRY_ bits; a program ignores those that it does not know.
 */
struct v3_walk_entry {
	__u64 at;
	__u64 value;
	__u32 level;
	__u32 flags;
};

/**
 * struct v3_walk - the argument of V3_VM_WALK.
 * @address: In: a linear address.
 * @vcpu: In: number of the virtual CPU whose tables are walked.
 * @flags: In: V3_WALK_ bits.
 * @mode: Out, as all that follows: V3_PAGING_.
 * @end: V3_WALK_.
 * @count: Entries of @entries.
 * @nested_count: Entries of @nested. Zero unless @end is V3_WALK_MAPPED.
 * @gpa: The guest-physical address for V3_WALK_MAPPED. For V3_WALK_NO_TABLE, that
 *	of the entry. Else zero.
 * @page_bytes: The size of the guest's page; 2^32 without paging. Zero unless
 *	@end is V3_WALK_MAPPED, as in those that follow.
 * @rights: What all of the guest's entries allow, of V3_ENTRY_WRITE, USER and
 *	EXECUTE.
 * @place: V3_PLACE_ of @gpa.
 * @hpa: The host-physical address; zero unless nested tables map it.
 * @nested_page_bytes: The size of the page there; zero unless they map it.
 * @nested_rights: What nested tables allow, of V3_ENTRY_WRITE and EXECUTE. Where
 *	they allow less than the guest's, the module decides at the access.
 * @pad: Zero.
 * @entries: The guest's entries, from the root down.
 * @nested: The nested tables' entries, from the root down. Host-physical
 *	addresses, and what holds them, are zero unless the caller has
 *	CAP_SYS_ADMIN.
 */
struct v3_walk {
	__u64 address;
	__u32 vcpu;
	__u32 flags;
	__u32 mode;
	__u32 end;
	__u32 count;
	__u32 nested_count;
	__u64 gpa;
	__u64 page_bytes;
	__u32 rights;
	__u32 place;
	__u64 hpa;
	__u64 nested_page_bytes;
	__u32 nested_rights;
	__u32 pad;
	struct v3_walk_entry entries[V3_WALK_LEVELS];
	struct v3_walk_entry nested[V3_WALK_LEVELS];
};

/**
 * struct v3_local_apic - a local APIC's registers as its guest reads them, in
 *	struct v3_interrupts.
 * @base: IA32_APIC_BASE.
 * @icr: The interrupt command.
 * @tsc_deadline: IA32_TSC_DEADLINE.
 * @id: The id, in bits 31:24 unless it is in x2APIC mode.
 * @version: The version.
 * @tpr: The task priority.
 * @ppr: The processor priority.
 * @ldr: The logical destination.
 * @dfr: The destination format; zero in x2APIC mode.
 * @spurious: The spurious-interrupt vector register.
 * @errors: The error status.
 * @lvt: Timer, thermal sensor, performance counters, LINT0, LINT1, error.
 * @initial_count: The timer's initial count.
 * @current_count: The timer's current count.
 * @divide: The timer's divide configuration.
 * @pad: Zero.
 * @in_service: ISR; bit n % 32 of word n / 32 is vector n.
 * @level: TMR, those that are level-triggered.
 * @requests: IRR.
 */
struct v3_local_apic {
	__u64 base;
	__u64 icr;
	__u64 tsc_deadline;
	__u32 id;
	__u32 version;
	__u32 tpr;
	__u32 ppr;
	__u32 ldr;
	__u32 dfr;
	__u32 spurious;
	__u32 errors;
	__u32 lvt[6];
	__u32 initial_count;
	__u32 current_count;
	__u32 divide;
	__u32 pad;
	__u32 in_service[8];
	__u32 level[8];
	__u32 requests[8];
};

/* v3_event.kind */
#define V3_EVENT_NONE		0	/* there is none */
#define V3_EVENT_EXCEPTION	1	/* an exception */
#define V3_EVENT_INTERRUPT	2	/* an interrupt of a controller */
#define V3_EVENT_NMI		3	/* a non-maskable interrupt */
#define V3_EVENT_SOFTWARE	4	/* an interrupt by an instruction */

/**
 * struct v3_event - an event on its way to the guest, in struct v3_interrupts.
 * @kind: V3_EVENT_.
 * @vector: Its vector.
 * @has_error_code: 1 if it has an error code, else 0.
 * @error_code: That error code.
 */
struct v3_event {
	__u32 kind;
	__u32 vector;
	__u32 has_error_code;
	__u32 error_code;
};

/* v3_interrupts.flags */
#define V3_TAKES_INTERRUPTS	(1U << 0)	/* RFLAGS.IF is set, and no shadow of an instruction holds them back */
#define V3_TAKES_NMIS		(1U << 1)	/* the guest handles no NMI */
#define V3_PIC_WAITS		(1U << 2)	/* the PIC pair has said that it has an interrupt for it */

/* v3_interrupts.next_vector: the local APIC has none that goes first now. */
#define V3_NO_VECTOR		0xffffffffU

/**
 * struct v3_interrupts - the argument of V3_VM_INTERRUPTS.
 * @vcpu: In: number of the virtual CPU.
 * @flags: In: zero. Out, as all that follows: V3_TAKES_ and V3_PIC_ bits; a
 *	program ignores those that it does not know.
 * @apic: Its local APIC.
 * @waiting_nmis: NMIs that were taken in, and not delivered yet.
 * @next_vector: What the local APIC would have the processor take now, or
 *	V3_NO_VECTOR.
 * @raised: An exception of the module's for the next entry.
 * @cut_short: An event whose delivery an exit cut short.
 * @held: An event that waits behind an exception.
 */
struct v3_interrupts {
	__u32 vcpu;
	__u32 flags;
	struct v3_local_apic apic;
	__u32 waiting_nmis;
	__u32 next_vector;
	struct v3_event raised;
	struct v3_event cut_short;
	struct v3_event held;
};

/**
 * struct v3_load_ram - the argument of V3_VM_LOAD_RAM.
 * @page: Number of the first page of 4 KiB: from 0, and without a hole. Pages
 *	from V3_LOW_RAM_PAGES on are shown to the guest from 4 GiB on.
 * @buffer: What they are to hold.
 * @len: Length of @buffer, a multiple of 4096, at most V3_MAX_LOAD_RAM.
 */
struct v3_load_ram {
	__u64 page;
	__u64 buffer;
	__u64 len;
};

/* v3_load.flags */
#define V3_LOAD_NEW_TSC_RATE	(1U << 0)	/* the guest bears a time stamp counter that runs at another rate */

/**
 * struct v3_load - the argument of V3_VM_LOAD.
 * @state: All sections of a saved machine that are neither image nor RAM nor its
 *	end, as they stand there.
 * @state_len: Length of @state, at most V3_MAX_STATE_LEN.
 * @message: Where to explain a failure, in words; may be zero.
 * @message_len: Length of @message; V3_MESSAGE_LEN is enough.
 * @flags: V3_LOAD_.
 */
struct v3_load {
	__u64 state;
	__u64 state_len;
	__u64 message;
	__u32 message_len;
	__u32 flags;
};

/* v3_pic.flags */
#define V3_PIC_INITIALISED	(1U << 0)	/* it was initialised; else it asserts nothing */
#define V3_PIC_AUTO_EOI		(1U << 1)	/* its interrupts end when they are acknowledged */

/**
 * struct v3_pic - an 8259A, in struct v3_chipset; bit n is input n.
 * @lines: Levels of its inputs.
 * @requests: IRR.
 * @in_service: ISR.
 * @mask: IMR.
 * @level_triggered: ELCR.
 * @vector_base: The vector of input 0.
 * @lowest: The input of lowest priority.
 * @flags: V3_PIC_ bits; a program ignores those that it does not know.
 */
struct v3_pic {
	__u8 lines;
	__u8 requests;
	__u8 in_service;
	__u8 mask;
	__u8 level_triggered;
	__u8 vector_base;
	__u8 lowest;
	__u8 flags;
};

#define V3_IOAPIC_INPUTS	24	/* inputs of the I/O APIC */

/* v3_chipset.flags */
#define V3_CHIPSET_LEGACY	(1U << 0)	/* the HPET has the lines of the 8254 and the real-time clock */

/**
 * struct v3_chipset - the answer to V3_VM_CHIPSET.
 * @ioapic_id: The I/O APIC's id.
 * @ioapic_lines: Its inputs that are asserted; bit n is input n.
 * @ioapic: Its redirection entries.
 * @pics: The primary 8259A, and the secondary.
 * @flags: V3_CHIPSET_ bits; a program ignores those that it does not know.
 * @pad: Zero.
 */
struct v3_chipset {
	__u32 ioapic_id;
	__u32 ioapic_lines;
	__u64 ioapic[V3_IOAPIC_INPUTS];
	struct v3_pic pics[2];
	__u32 flags;
	__u32 pad;
};

/*
 * Calls of /dev/v3vee. They are enumerators, not macros, so that bindgen sees
 * their values.
 */
__extension__ enum v3_control_ioctl {
	/* What is this module, and what can it do? No further errors. */
	V3_VERSION = _IOR(V3_IOCTL_TYPE, 0x00, struct v3_version),

	/*
	 * Makes a VM from a guest.img; it is then V3_STATE_CREATED, with all of
	 * its RAM accounted to the caller.
	 *   EINVAL      the name is malformed
	 *   EEXIST      a VM of that name exists
	 *   ENOEXEC     the image is damaged, truncated, of a newer version, or
	 *               holds no kernel that can be started
	 *   EOPNOTSUPP  the image is sound but asks for more than this module or
	 *               this processor offers
	 *   E2BIG       the image is longer than the module accepts
	 *   ENOSPC      max_vms VMs exist
	 */
	V3_CREATE = _IOWR(V3_IOCTL_TYPE, 0x01, struct v3_create),

	/* Lists the VMs. */
	V3_LIST = _IOWR(V3_IOCTL_TYPE, 0x02, struct v3_list),

	/*
	 * Ends a VM that is created or stopped, and gives back all it held.
	 * Descriptors of it may be open: from then on they answer ENODEV.
	 *   ENOENT  there is no such VM
	 *   EBUSY   it is running or paused: stop it first
	 */
	V3_FREE = _IOW(V3_IOCTL_TYPE, 0x03, struct v3_free),

	/*
	 * Lists the features of processors, and which of them a guest has from
	 * which its image takes none away.
	 */
	V3_FEATURES = _IOWR(V3_IOCTL_TYPE, 0x04, struct v3_features),
};

/* Calls of /dev/v3-vmN. */
__extension__ enum v3_vm_ioctl {
	/*
	 * created -> running.
	 *   EBADFD  it was launched before
	 */
	V3_VM_LAUNCH = _IO(V3_IOCTL_TYPE, 0x20),

	/*
	 * Any state -> stopped; returns when no virtual CPU runs any more. A VM
	 * that has stopped already keeps its reason. No further errors.
	 */
	V3_VM_STOP = _IO(V3_IOCTL_TYPE, 0x21),

	/*
	 * running -> paused; returns when every virtual CPU stands still. A
	 * paused VM stays so.
	 *   EBADFD  it is not running
	 */
	V3_VM_PAUSE = _IO(V3_IOCTL_TYPE, 0x22),

	/*
	 * paused -> running. A running VM stays so.
	 *   EBADFD  it is not paused
	 */
	V3_VM_CONTINUE = _IO(V3_IOCTL_TYPE, 0x23),

	/*
	 * Waits until the VM is stopped.
	 *   ETIMEDOUT  it is not stopped yet
	 */
	V3_VM_WAIT = _IOWR(V3_IOCTL_TYPE, 0x24, struct v3_wait),

	/* Describes the VM. No further errors. */
	V3_VM_INFO = _IOR(V3_IOCTL_TYPE, 0x25, struct v3_info),

	/* Reads all counters of the VM; it need not be paused for that. */
	V3_VM_STATS = _IOWR(V3_IOCTL_TYPE, 0x26, struct v3_stats),

	/*
	 * Turns this open descriptor into a byte stream of the guest: read() gives
	 * what the guest sends, write() is what it receives, poll() tells when
	 * either can go on, O_NONBLOCK is honoured (EAGAIN). The descriptor takes
	 * no more ioctls (ENOTTY). Closing it detaches.
	 *
	 * The module keeps what the guest sent last, whether anyone is attached
	 * or not; when its buffer is full the oldest bytes go and a counter says
	 * how many. When the VM is stopped and all was read, read() returns 0,
	 * poll() says POLLHUP and write() fails with EPIPE.
	 *   ENOENT  the VM has no stream of that name, or no console
	 *   EBUSY   another descriptor is attached to it
	 */
	V3_VM_STREAM = _IOW(V3_IOCTL_TYPE, 0x27, struct v3_stream),

	/*
	 * Takes the host memory behind these guest pages away and gives other
	 * pages with the same contents. The guest, running or not, sees nothing
	 * of it. Pages that the guest never touched are skipped.
	 *   EINVAL      not aligned, or empty
	 *   ERANGE      not all of it is RAM of the guest
	 *   EOPNOTSUPP  V3_FEATURE_RELOCATE is not offered
	 *   EBADFD      the VM is stopped
	 */
	V3_VM_RELOCATE = _IOW(V3_IOCTL_TYPE, 0x28, struct v3_relocate),

	/*
	 * Moves a virtual CPU to a CPU of the host, where it then stays, or lets it
	 * run on any. The guest, running or not, sees nothing of it. A virtual CPU
	 * that runs has left its old CPU when this returns.
	 *   ENOENT  the VM has no such virtual CPU
	 *   ENXIO   the host has no such CPU, or it is offline
	 *   EBADFD  the VM is stopped
	 */
	V3_VM_MOVE = _IOW(V3_IOCTL_TYPE, 0x29, struct v3_vcpu),

	/*
	 * Says where a virtual CPU may run.
	 *   ENOENT  the VM has no such virtual CPU
	 */
	V3_VM_VCPU = _IOWR(V3_IOCTL_TYPE, 0x2a, struct v3_vcpu),

	/* Lists the names of the VM's streams. */
	V3_VM_STREAMS = _IOWR(V3_IOCTL_TYPE, 0x2b, struct v3_streams),

	/* Lists the features of processors, and which of them this VM has. */
	V3_VM_FEATURES = _IOWR(V3_IOCTL_TYPE, 0x2c, struct v3_features),

	/*
	 * Describes a virtual CPU, whatever its VM is at: what a guest that died
	 * left behind, or where one that runs is just now.
	 *   ENOENT  the VM has no such virtual CPU
	 */
	V3_VM_VCPU_REPORT = _IOWR(V3_IOCTL_TYPE, 0x2d, struct v3_vcpu_report),

	/*
	 * Attaches a device to the VM, whatever its state. Descriptors are the far
	 * ends of the device's stream, or the one that holds a disk's bytes; the VM
	 * holds them until the device is detached or the VM freed, and whoever gives
	 * one away gives it to the VM as it is: reads and writes of a stream move its
	 * position. Output that nobody takes is kept, the last 64 KiB of it.
	 *   EBADF       a descriptor is not open
	 *   EINVAL      a descriptor cannot be read or written as its role wants,
	 *               may block, is a node of this module, or is none of a file,
	 *               pipe, socket or terminal, or for a disk of a file or block
	 *               device; two have the same role; the id is malformed; a device
	 *               of this kind cannot be at that port, has no stream, is no disk
	 *               or one without a descriptor, or has no such options
	 *   EBUSY       the file is a disk already, and one of both would write to it
	 *   E2BIG       more descriptors than V3_MAX_DESCRIPTORS, or options with
	 *               more in them than the module knows
	 *   EOPNOTSUPP  the options are of a newer version than the module knows
	 *   ENOENT      there is no such kind
	 *   EEXIST      the id is taken, or the place
	 *   ENOSPC      no place for a device of this kind is left, or the VM has as
	 *               many devices as it can have
	 */
	V3_VM_ATTACH = _IOWR(V3_IOCTL_TYPE, 0x2e, struct v3_attach),

	/*
	 * Takes a device away from the VM, whatever its state. What it had sent is
	 * with its descriptor then, as far as that takes it; and the descriptor is
	 * not held any more.
	 *   EINVAL  the id is malformed
	 *   ENOENT  the VM has no such device
	 *   EPERM   the device stays with the machine
	 */
	V3_VM_DETACH = _IOW(V3_IOCTL_TYPE, 0x2f, struct v3_detach),

	/* Lists the devices of the VM, in the order in which they came. */
	V3_VM_DEVICES = _IOWR(V3_IOCTL_TYPE, 0x30, struct v3_devices),

	/*
	 * Reads the guest's memory, whatever its VM is at. It changes nothing: a
	 * page that nobody has touched stays so, and no device is asked.
	 */
	V3_VM_MEMORY_READ = _IOWR(V3_IOCTL_TYPE, 0x31, struct v3_memory_read),

	/*
	 * Follows a virtual CPU's page tables to an address, and then the nested
	 * tables, whatever its VM is at. It changes nothing: entries keep their
	 * accessed and dirty bits. A virtual CPU that runs is called out of its
	 * guest for the moment, as by the next call.
	 *   ENOENT  the VM has no such virtual CPU
	 */
	V3_VM_WALK = _IOWR(V3_IOCTL_TYPE, 0x32, struct v3_walk),

	/*
	 * Describes a virtual CPU's local APIC and what is on its way to it,
	 * whatever its VM is at. It takes none of it.
	 *   ENOENT  the VM has no such virtual CPU
	 */
	V3_VM_INTERRUPTS = _IOWR(V3_IOCTL_TYPE, 0x33, struct v3_interrupts),

	/* Describes the VM's I/O APIC and PIC pair. No further errors. */
	V3_VM_CHIPSET = _IOR(V3_IOCTL_TYPE, 0x34, struct v3_chipset),

	/*
	 * Has this open file read as the saved machine, once and from its
	 * beginning; it takes no other call from then on. The VM stands still
	 * until the file is closed, and then goes on, unless somebody else holds
	 * it. A read answers EBADFD if the VM was stopped meanwhile; what was read
	 * by then is of no use; EOPNOTSUPP if its memory is not where it was when
	 * the machine started; EMEDIUMTYPE if a disk keeps in memory what its guest
	 * wrote. Input waits while it stands still.
	 *   EBADFD  the VM neither runs nor is paused
	 *   EBUSY   too many save it
	 *   ENOTTY  the file is a stream, or saves already
	 */
	V3_VM_SAVE = _IO(V3_IOCTL_TYPE, 0x35),

	/*
	 * Writes to the RAM of a VM that was never launched. The first call
	 * empties it: what is not written is zero.
	 *   EBADFD  it was
	 *   EINVAL  @len is no multiple of 4096
	 *   E2BIG   @len is more than V3_MAX_LOAD_RAM
	 *   ERANGE  the VM has no such RAM; what is before that was written
	 */
	V3_VM_LOAD_RAM = _IOW(V3_IOCTL_TYPE, 0x36, struct v3_load_ram),

	/*
	 * Has a VM that was never launched, and that was made of the image of a
	 * saved machine, go on from its state when it is launched. Its RAM was
	 * loaded before, and it has the devices that the saved machine had. On
	 * failure the VM is as it was made; its RAM is to be loaded again.
	 *   EBADFD      the VM was launched, or has stopped
	 *   E2BIG       @state_len is more than V3_MAX_STATE_LEN
	 *   EINVAL      the state is damaged, or none that a machine can have
	 *   EOPNOTSUPP  it is of another machine, or of a version that the module
	 *               does not know; or the processor does not have what the
	 *               guest uses
	 *   ERANGE      its time stamp counter ran at another rate than one does
	 *               here; V3_LOAD_NEW_TSC_RATE has the guest bear that
	 */
	V3_VM_LOAD = _IOW(V3_IOCTL_TYPE, 0x37, struct v3_load),

	/*
	 * Asks the guest to let go of a PCI device, and does not wait for that.
	 * The device is taken away when the guest ejects it.
	 *   EINVAL      the id is malformed
	 *   ENOENT      the VM has no such device
	 *   EPERM       the device stays with the machine
	 *   EOPNOTSUPP  no guest can be asked for this device: it is no PCI device,
	 *               or the VM does not run
	 */
	V3_VM_EJECT = _IOW(V3_IOCTL_TYPE, 0x38, struct v3_detach),

	/*
	 * Gives a disk another size, with its file, or takes in the size that its
	 * file or block device has now; and tells the guest.
	 *   EINVAL      the id is malformed; @bytes is no multiple of its blocks
	 *   ENOENT      the VM has no such device
	 *   EPERM       the disk would become smaller, without V3_RESIZE_SHRINK
	 *   ENOTBLK     the device is no disk
	 *   EOPNOTSUPP  its store has a size of its own: it is a block device, a
	 *               snapshot, or not to be written to
	 *   ENOSPC      there is no space for that
	 *   EIO         its store failed
	 */
	V3_VM_RESIZE = _IOWR(V3_IOCTL_TYPE, 0x39, struct v3_resize),
};

#endif /* _UAPI_V3VEE_H */
