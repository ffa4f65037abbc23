// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest never does alone (APM 2: 15.9–15.14).

use super::caps::Caps;
use super::vmcb::{Control, Exceptions, Intercepts3, Intercepts4};
use crate::features::{Feature, GuestFeatures};

/// PAUSEs in a row, closer together than the threshold in cycles, before the guest is taken to be spinning.
const PAUSE_COUNT: u16 = 3000;
const PAUSE_THRESHOLD: u16 = 128;
/// Control registers of which guests have something of the host's: CR4. CR0 and CR3 are their own under nested paging.
pub(super) const CR4: u16 = 1 << 4;
/// Exceptions that exit: #DB and #AC, whose delivery can raise them again without end, and #MC.
pub(super) const EXCEPTIONS: Exceptions =
    Exceptions::DB.union(Exceptions::AC).union(Exceptions::MC);

/// Sets the intercepts that are never taken away, for a guest with these features.
pub(super) fn always_intercept(control: &mut Control, caps: &Caps, features: &GuestFeatures) {
    control.cr_writes = CR4;
    control.exceptions = EXCEPTIONS;
    control.intercepts3 = Intercepts3::INTR
        | Intercepts3::NMI
        | Intercepts3::SMI
        | Intercepts3::INIT
        | Intercepts3::RDPMC
        | Intercepts3::CPUID
        | Intercepts3::RSM
        | Intercepts3::INVD
        | Intercepts3::HLT
        | Intercepts3::INVLPGA
        | Intercepts3::IOIO_PROT
        | Intercepts3::MSR_PROT
        | Intercepts3::TASK_SWITCH
        | Intercepts3::FERR_FREEZE
        | Intercepts3::SHUTDOWN;
    control.intercepts4 = Intercepts4::VMRUN
        | Intercepts4::VMMCALL
        | Intercepts4::VMLOAD
        | Intercepts4::VMSAVE
        | Intercepts4::STGI
        | Intercepts4::CLGI
        | Intercepts4::SKINIT
        // The #DB that it gives passes by the intercept of #DB on some processors.
        | Intercepts4::ICEBP
        | Intercepts4::WBINVD
        | Intercepts4::MONITOR
        | Intercepts4::MWAIT
        | Intercepts4::XSETBV
        | Intercepts4::RDPRU;
    // Without it RDTSCP is a #UD; RDPID cannot be intercepted.
    control
        .intercepts4
        .set(Intercepts4::RDTSCP, !features.has(Feature::Rdtscp));
    // Without the filter each single PAUSE would exit (APM 2: 15.14.4).
    control
        .intercepts3
        .set(Intercepts3::PAUSE, caps.pause_filter);
    control.pause_count = PAUSE_COUNT;
    control.pause_threshold = if caps.pause_threshold {
        PAUSE_THRESHOLD
    } else {
        0
    };
}
