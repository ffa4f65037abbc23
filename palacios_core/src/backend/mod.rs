// SPDX-License-Identifier: MIT OR Apache-2.0
//! The backend contract: what a processor vendor's virtualization gives the core. Vendor numbers never leave this folder.
//!
//! A backend translates; it decides nothing. It has three parts: [`Backend`] stands for the machine's CPUs,
//! [`BackendVcpu`] for one virtual CPU, and [`Exit`] says why a guest stopped. Between `load` and `unload` a vCPU is on one
//! CPU, inside a [`Host::window`]; what happens there is the fast path.

#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
pub mod any;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
mod cpu;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
mod debug;
#[cfg(all(test, feature = "hardware", target_arch = "x86_64"))]
mod fake_host;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
mod fpu;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
mod msr;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
mod pages;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
mod paging;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
pub mod svm;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
mod switched;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
mod tags;
pub mod vendor_msrs;
#[cfg(all(feature = "hardware", target_arch = "x86_64"))]
pub mod vmx;

use crate::addr::{Gpa, Hpa};
use crate::devices::IoAddress;
use crate::features::{Feature, GuestFeatures};
use crate::host::{CpuId, Host, NoMemory};
use crate::memory::nested::Format;
use crate::state::{
    Control, CpuState, DescriptorTable, Exception, Gprs, Seg, Segment, TableRegister,
};
use crate::xsave::XsaveArea;
use bitflags::bitflags;
use core::fmt;
use vendor_msrs::VendorMsrs;

/// What a backend says of the host's processors, to whoever need not know which backend it is.
pub trait HostProcessor: Send + Sync {
    /// The backend's name and what it found, for people: `svm`, …
    fn features(&self) -> Features;
    /// What the CPU this runs on answers to `CPUID` with these EAX and ECX: EAX, EBX, ECX, EDX.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
    /// The time stamp counter of the CPU this runs on.
    fn tsc(&self) -> u64;
    /// Why guests cannot have a feature of the host's here; `None` if nothing is in the way but CR4 and XCR0, of which
    /// [`HostProcessor::features`] tells.
    fn lacks(&self, _feature: Feature) -> Option<&'static str> {
        None
    }
}

/// A vendor's virtualization on all CPUs of a host.
pub trait Backend<H: Host>: HostProcessor + Sized + 'static {
    /// A virtual CPU.
    type Vcpu: BackendVcpu<H, Self>;
    /// Kernels look for this vendor's cores and caches in the extended leaves of CPUID, 0x8000_0008 and 0x8000_001d and its
    /// neighbour, and not in leaf 4.
    const EXTENDED_TOPOLOGY: bool = false;
    /// The model-specific registers that this vendor's processors have without asking CPUID.
    const VENDOR_MSRS: &'static [VendorMsrs] = &[];

    /// Looks at the CPU this runs on, and takes what memory the whole host needs. Enables nothing.
    ///
    /// # Errors
    /// What this CPU lacks, or who has taken it; `NoCpu` if it is not this vendor's.
    fn probe(host: &H) -> Result<Self, Unsupported>;
    /// Turns virtualization on for the CPU this runs on, in atomic context.
    ///
    /// # Errors
    /// If this CPU is not like the one that was probed, or somebody else has taken its virtualization.
    fn enable_cpu(&self, cpu: CpuId) -> Result<(), Unsupported>;
    /// Turns it off again, in atomic context; harmless where it is off.
    fn disable_cpu(&self, cpu: CpuId);
    /// The entry format and the number of levels of nested tables.
    fn table_format(&self) -> Format;
    /// A virtual CPU in the state after power-on. Its guest has `features` and no others, as far as the processor lets the
    /// backend see to that.
    fn vcpu(&self, host: &H, features: &GuestFeatures) -> Result<Self::Vcpu, NoMemory>;
}

/// One virtual CPU of a backend.
///
/// Registers may be read and written whenever the guest is not running; the backend keeps track of what it must load
/// anew.
pub trait BackendVcpu<H: Host, B>: Send {
    /// Puts the vCPU on `cpu`, in a window: guest FPU and MSRs in, address-space tag valid, the host's own put away.
    fn load(&mut self, host: &H, backend: &B, cpu: CpuId);
    /// Enters the guest and comes back with the reason, still in the window.
    fn enter(&mut self, host: &H) -> Exit;
    /// Takes the vCPU off its CPU, in the same window.
    fn unload(&mut self, host: &H, backend: &B);

    /// The general registers.
    fn gprs(&self) -> &Gprs;
    /// The general registers, to be changed.
    fn gprs_mut(&mut self) -> &mut Gprs;
    /// RIP.
    fn rip(&self) -> u64;
    /// Sets RIP, and ends the interrupt shadow: an instruction was completed.
    fn set_rip(&mut self, rip: u64);
    /// Where the instruction that exited ends, if the hardware said so.
    fn next_rip(&self) -> Option<u64>;
    /// The bytes at RIP, if the hardware fetched them (decode assists).
    fn fetched(&self) -> &[u8] {
        &[]
    }
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, rflags: u64);
    /// The control registers and EFER.
    fn control(&self) -> Control;
    /// Sets the control registers and EFER; what changed of the paging mode is flushed.
    fn set_control(&mut self, control: Control);
    /// The four entries of PAE paging that a processor keeps in registers, after the core has set control registers so that
    /// the guest pages so. Of no use to a backend whose processor looks them up itself.
    fn set_page_directories(&mut self, _: [u64; 4]) {}
    /// A segment register.
    fn segment(&self, seg: Seg) -> Segment;
    /// Sets a segment register. With SS comes the privilege level, its DPL, but in real mode.
    fn set_segment(&mut self, seg: Seg, segment: Segment);
    /// Sets GDTR or IDTR.
    fn set_table(&mut self, table: DescriptorTable, value: TableRegister);
    /// The current privilege level.
    fn cpl(&self) -> u8;
    /// Puts what [`BackendVcpu::set_state`] leaves alone, as an INIT does (SDM 3A: table 9-1), back as it was after power-on:
    /// floating-point state, and model-specific registers.
    fn power_on(&mut self);
    /// All state that a guest can observe and the backend holds.
    fn state(&self) -> CpuState;
    /// Replaces all of it.
    fn set_state(&mut self, state: &CpuState);
    /// A model-specific register that the backend holds (`FS_BASE`, `LSTAR`, …); `None` for one it does not know.
    fn msr(&self, index: u32) -> Option<u64>;
    /// Sets such a register; `false` for one it does not know.
    fn set_msr(&mut self, index: u32, value: u64) -> bool;
    /// A debug register, 0–3, 6 or 7.
    fn debug_register(&self, n: u8) -> u64;
    /// Sets a debug register.
    fn set_debug_register(&mut self, n: u8, value: u64);
    /// XCR0.
    fn xcr0(&self) -> u64;
    /// Sets XCR0, already checked against [`GuestFeatures::xcr0`].
    fn set_xcr0(&mut self, value: u64);
    /// Floating-point and vector registers; not in a window.
    fn fpu(&mut self) -> XsaveArea<'_>;
    /// PKRU, of a guest with protection keys.
    fn pkru(&self) -> u32 {
        0
    }

    /// The event that the next entry delivers; replaces one not yet delivered.
    fn inject(&mut self, event: Event);
    /// The event whose delivery the last exit cut short, if any; the core decides whether it is injected again.
    fn take_interrupted(&mut self) -> Option<Event>;
    /// The guest would take an external interrupt now: RFLAGS.IF set, no shadow, nothing injected.
    fn interruptible(&self) -> bool;
    /// The guest would take an NMI now.
    fn nmi_allowed(&self) -> bool;
    /// NMIs are held back until the guest's next `IRET`.
    fn nmi_blocked(&self) -> bool;
    /// Holds NMIs back until the guest's next `IRET`, or no more: the core has delivered one, or executed an `IRET`.
    fn set_nmi_blocked(&mut self, blocked: bool);
    /// The event that the next entry delivers, if any.
    fn pending_event(&self) -> Option<Event>;
    /// The guest is in the shadow that `STI` or `MOV SS` leave for one instruction.
    fn interrupt_shadow(&self) -> bool;
    /// Sets the shadow that `STI` or `MOV SS` leave for one instruction.
    fn set_interrupt_shadow(&mut self, on: bool);
    /// Asks for [`Exit::InterruptWindow`], once, as soon as the guest would take an interrupt of `priority` (vector >> 4;
    /// above 15 it ignores the task priority, like those of the PIC). Until then a write of CR8 exits too. `None` withdraws.
    fn request_interrupt_window(&mut self, priority: Option<u8>);
    /// Asks for [`Exit::NmiWindow`], once, as soon as the guest would take an NMI; it may take one earlier, after any exit.
    fn request_nmi_window(&mut self, on: bool);
    /// Has more exit than what the backend always intercepts. May be changed whenever the guest is not running; at first it is nothing.
    fn set_intercepts(&mut self, more: Intercepts);
    /// The task priority, CR8, as the guest last left it (0–15).
    fn cr8(&self) -> u8;
    /// Sets CR8.
    fn set_cr8(&mut self, cr8: u8);

    /// The root of the nested tables.
    fn set_table_root(&mut self, root: Hpa);
    /// Forgets all cached translations of this vCPU before the next entry.
    fn flush_tlb(&mut self);
    /// What the guest's TSC is ahead of the host's.
    fn set_tsc_offset(&mut self, offset: u64);
}

/// What a backend found.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// The backend's name.
    pub backend: &'static str,
    /// How many address-space tags a CPU has; 0 is none.
    pub address_space_tags: u32,
    /// The hardware says where an exiting instruction ends.
    pub next_rip: bool,
    /// The hardware gives the bytes of a faulting instruction.
    pub decode_assists: bool,
    /// The width of a physical address in bits.
    pub physical_bits: u8,
    /// The state components a guest may enable in XCR0; 0 without XSAVE.
    pub xcr0: u64,
    /// The bits of CR4 that a guest may set.
    pub cr4: u64,
}

bitflags! {
    /// What exits for a while beside what always does.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Intercepts: u32 {
        /// Every exception. The core looks so for the one that ended a guest.
        const EXCEPTIONS = 1 << 0;
    }
}

/// Something delivered to the guest on entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt.
    Interrupt(u8),
    /// An NMI.
    Nmi,
    /// An exception.
    Exception(Exception),
    /// `INT n`, `INT3` or `INTO`, cut short: delivered from the instruction that ends at `next_rip`.
    Software {
        /// The vector.
        vector: u8,
        /// The instruction's end, to which RIP is set first.
        next_rip: u64,
    },
}

/// Why the guest stopped, in the words of no vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was not entered: something is pending.
    Pending,
    /// A host interrupt or NMI; the host takes it when the window closes.
    HostInterrupt,
    /// The guest would take an interrupt now.
    InterruptWindow,
    /// The guest would take an NMI now.
    NmiWindow,
    /// `CPUID`.
    Cpuid,
    /// `RDMSR`.
    ReadMsr,
    /// `WRMSR`.
    WriteMsr,
    /// `HLT`.
    Halt,
    /// `PAUSE`, often in a row.
    Pause,
    /// `VMMCALL` or `VMCALL`.
    Hypercall,
    /// `IN`, `OUT` and their string forms.
    Port(PortAccess),
    /// An access to a guest-physical address that the nested tables do not allow.
    NestedFault(NestedFault),
    /// An instruction for the emulator: a move to or from a control or debug register, `INVLPG`, …
    Emulate,
    /// `INVD` or `WBINVD`.
    CacheControl,
    /// `XSETBV`.
    SetXcr,
    /// `ICEBP`, also called `INT1`: a #DB behind it.
    Icebp,
    /// `MONITOR` or `MWAIT`; no guest is offered them.
    Monitor,
    /// `RDPMC`; no guest is offered it.
    ReadPmc,
    /// An exception that was intercepted, not delivered yet: the core injects it. #DB, #AC or #MF, unless
    /// [`BackendVcpu::set_intercepts`] asked for more.
    Exception(Exception),
    /// An instruction that no guest has: it faults with #UD.
    Undefined,
    /// A hardware task switch.
    TaskSwitch,
    /// A triple fault.
    TripleFault,
    /// An INIT or SMI of the host; it is pending for the host, the guest goes on.
    HostInit,
    /// A machine check that the guest does not outlive.
    MachineCheck,
    /// The processor refused the guest's state; says what is wrong with it.
    BadState(&'static str),
    /// Virtualization was switched off under us: the host goes down.
    Gone,
    /// Somebody else on this host has taken the processor's virtualization since.
    Busy,
    /// One that this backend does not know, with the vendor's numbers for the report.
    Unknown {
        /// The vendor's exit code.
        code: u64,
        /// What came with it.
        info: [u64; 2],
    },
}

/// A port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// The port.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub size: u8,
    /// `OUT`.
    pub write: bool,
    /// `INS` or `OUTS`, for the emulator.
    pub string: bool,
}

impl PortAccess {
    /// Which ports it is to.
    pub const fn address(&self) -> IoAddress {
        IoAddress::port(self.port, self.size)
    }
}

/// A nested page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// The address.
    pub gpa: Gpa,
    /// A write, or any step of a table walk on a processor that cannot tell.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// It happened while the processor walked the guest's own page tables.
    pub table_walk: bool,
}

/// Why this CPU, or this host, cannot run guests here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// The CPU has no virtualization of this vendor.
    NoCpu,
    /// The firmware switched it off.
    Firmware,
    /// Somebody else holds it.
    Busy,
    /// A feature is missing that this VMM needs.
    Missing(&'static str),
    /// No memory.
    NoMemory,
}

impl From<NoMemory> for Unsupported {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCpu => f.write_str("this CPU has neither AMD SVM nor Intel VT-x"),
            Self::Firmware => f.write_str(
                "virtualization is switched off in the firmware setup: enable SVM or VT-x there",
            ),
            Self::Busy => f.write_str(
                "virtualization is in use: unload the other hypervisor first (rmmod kvm_amd or kvm_intel)",
            ),
            Self::Missing(what) => write!(f, "this CPU lacks {what}"),
            Self::NoMemory => f.write_str("out of memory"),
        }
    }
}
