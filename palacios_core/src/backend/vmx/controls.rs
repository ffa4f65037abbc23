// SPDX-License-Identifier: MIT OR Apache-2.0
//! The controls of a VMCS (SDM 3C: 24.6 to 24.8): what a guest never does alone, and what an entry and an exit switch.
//!
//! Each list names what this VMM cannot do without, in words for people; the rest is taken where the processor has it.

/// A control, and what it is called where it is missing.
type Named = (u32, &'static str);

/// Pin-based controls.
pub(super) mod pin {
    use super::Named;
    pub const EXTERNAL_INTERRUPTS: Named = (1 << 0, "exits by external interrupts");
    pub const NMIS: Named = (1 << 3, "exits by NMIs");
    pub const VIRTUAL_NMIS: Named = (1 << 5, "virtual NMIs");
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
    pub const NEEDED: &[Named] = &[EXTERNAL_INTERRUPTS, NMIS, VIRTUAL_NMIS];
    pub const WANTED: u32 = PREEMPTION_TIMER;
}

/// Primary processor-based controls. Two of them come and go: the windows.
pub(super) mod primary {
    use super::Named;
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub const TSC_OFFSET: Named = (1 << 3, "TSC offsetting");
    pub const HLT: Named = (1 << 7, "exits by HLT");
    pub const MWAIT: Named = (1 << 10, "exits by MWAIT");
    pub const RDPMC: Named = (1 << 11, "exits by RDPMC");
    pub const TPR_SHADOW: Named = (1 << 21, "the TPR shadow");
    pub const NMI_WINDOW: u32 = 1 << 22;
    pub const DEBUG_REGISTERS: Named = (1 << 23, "exits by debug registers");
    pub const PORTS: Named = (1 << 24, "exits by port accesses");
    pub const MSR_MAPS: Named = (1 << 28, "MSR bitmaps");
    pub const MONITOR: Named = (1 << 29, "exits by MONITOR");
    pub const SECONDARY: Named = (1 << 31, "nested paging (EPT)");
    pub const NEEDED: &[Named] = &[
        SECONDARY,
        TSC_OFFSET,
        HLT,
        MWAIT,
        RDPMC,
        TPR_SHADOW,
        DEBUG_REGISTERS,
        PORTS,
        MSR_MAPS,
        MONITOR,
    ];
}

/// Secondary processor-based controls. An instruction that is not switched on here is a #UD.
pub(super) mod secondary {
    use super::Named;
    pub const EPT: Named = (1 << 1, "nested paging (EPT)");
    pub const RDTSCP: u32 = 1 << 3;
    pub const VPID: Named = (1 << 5, "address-space tags (VPID)");
    pub const WBINVD: Named = (1 << 6, "exits by WBINVD");
    pub const UNRESTRICTED: Named = (
        1 << 7,
        "unrestricted guests, without which none starts in real mode",
    );
    pub const SPIN_EXITS: u32 = 1 << 10;
    pub const INVPCID: u32 = 1 << 12;
    pub const XSAVES: u32 = 1 << 20;
    pub const NEEDED: &[Named] = &[EPT, VPID, UNRESTRICTED, WBINVD];
    pub const WANTED: u32 = RDTSCP | SPIN_EXITS | INVPCID | XSAVES;
}

/// Exit controls.
pub(super) mod exit {
    use super::Named;
    pub const SAVE_DEBUG: Named = (1 << 2, "debug controls saved by exits");
    pub const HOST_64: Named = (1 << 9, "a 64-bit host");
    pub const SAVE_PAT: Named = (1 << 18, "PAT saved by exits");
    pub const LOAD_PAT: Named = (1 << 19, "PAT loaded by exits");
    pub const SAVE_EFER: Named = (1 << 20, "EFER saved by exits");
    pub const LOAD_EFER: Named = (1 << 21, "EFER loaded by exits");
    pub const NEEDED: &[Named] = &[
        SAVE_DEBUG, HOST_64, SAVE_PAT, LOAD_PAT, SAVE_EFER, LOAD_EFER,
    ];
}

/// Entry controls.
pub(super) mod entry {
    use super::Named;
    pub const LOAD_DEBUG: Named = (1 << 2, "debug controls loaded by entries");
    /// The guest's EFER.LMA; comes and goes with it.
    pub const LONG_MODE: u32 = 1 << 9;
    pub const LOAD_PAT: Named = (1 << 14, "PAT loaded by entries");
    pub const LOAD_EFER: Named = (1 << 15, "EFER loaded by entries");
    pub const NEEDED: &[Named] = &[LOAD_DEBUG, LOAD_PAT, LOAD_EFER];
}

/// Exceptions that exit: #DB and #AC, whose delivery can raise them again without end, and #MC.
pub(super) const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// PAUSEs closer together than the gap, for longer than the window, in ticks: the guest is taken to be spinning.
pub(super) const SPIN_GAP: u32 = 128;
pub(super) const SPIN_WINDOW: u32 = 4096;

/// Events delivered by an entry, or cut short by an exit (SDM 3C: 24.8.3, 24.9.3).
pub(super) mod event {
    pub const INTERRUPT: u32 = 0 << 8;
    pub const NMI: u32 = 2 << 8;
    pub const EXCEPTION: u32 = 3 << 8;
    pub const SOFTWARE_INTERRUPT: u32 = 4 << 8;
    /// INT1.
    pub const PRIVILEGED_SOFTWARE: u32 = 5 << 8;
    /// INT3 and INTO.
    pub const SOFTWARE_EXCEPTION: u32 = 6 << 8;
    pub const TYPE: u32 = 7 << 8;
    pub const ERROR_CODE_VALID: u32 = 1 << 11;
    /// An IRET that faulted had unblocked NMIs (SDM 3C: 27.2.2).
    pub const NMI_UNBLOCKED: u32 = 1 << 12;
    pub const VALID: u32 = 1 << 31;
}

/// Interruptibility (SDM 3C: table 24-3).
pub(super) mod blocking {
    pub const STI: u32 = 1 << 0;
    pub const MOV_SS: u32 = 1 << 1;
    pub const NMI: u32 = 1 << 3;
    /// The shadows that end with the next instruction.
    pub const SHADOW: u32 = STI | MOV_SS;
}
