// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why VMRUN refused a VMCB: the processor's own checks (APM 2: 15.5.1, 15.20, 15.25.4), once more in software, since it
//! says no more than "invalid".

use super::caps::Caps;
use super::vmcb::{event, Intercepts4, Vmcb};
use crate::state::{cr0, cr4, efer};

/// Bits of EFER that some processor defines (APM 2: 3.1.7).
const EFER_DEFINED: u64 = efer::SCE
    | efer::LME
    | efer::LMA
    | efer::NXE
    | efer::SVME
    | efer::LMSLE
    | efer::FFXSR
    | 0b1111 << 15
    | 0b11 << 20;

/// Shadow stacks.
const CR4_CET: u64 = 1 << 23;

/// What is wrong with the state.
pub(super) fn fault(vmcb: &Vmcb, caps: &Caps) -> &'static str {
    let (control, save) = (&vmcb.control, &vmcb.save);
    let paged_long = save.efer & efer::LME != 0 && save.cr0 & cr0::PG != 0;
    let too_high = u64::MAX.checked_shl(caps.physical_bits.into()).unwrap_or(0);
    let beyond = |at: u64, bytes: u64| {
        let last = (at & !0xfff & !caps.c_bit).wrapping_add(bytes - 1);
        last & too_high != 0
    };
    let checks = [
        (save.efer & efer::SVME == 0, "EFER.SVME is clear"),
        (
            save.cr0 & (cr0::CD | cr0::NW) == cr0::NW,
            "CR0.NW is set and CR0.CD is not",
        ),
        (save.cr0 >> 32 != 0, "CR0 has upper bits set"),
        (
            save.cr3 & too_high != 0,
            "CR3 has bits set beyond the physical address",
        ),
        (save.cr4 >> 33 != 0, "CR4 has upper bits set"),
        (save.dr6 >> 32 != 0, "DR6 has upper bits set"),
        (save.dr7 >> 32 != 0, "DR7 has upper bits set"),
        (save.efer & !EFER_DEFINED != 0, "EFER has reserved bits set"),
        (
            paged_long && save.cr4 & cr4::PAE == 0,
            "long mode with paging needs CR4.PAE",
        ),
        (
            paged_long && save.cr0 & cr0::PE == 0,
            "long mode with paging needs CR0.PE",
        ),
        (
            paged_long && save.cr4 & cr4::PAE != 0 && save.cs.attributes >> 9 & 3 == 3,
            "CS has both L and D set",
        ),
        (
            save.cr4 & CR4_CET != 0 && save.cr0 & cr0::WP == 0,
            "CR4.CET needs CR0.WP",
        ),
        (
            !control.intercepts4.contains(Intercepts4::VMRUN),
            "VMRUN is not intercepted",
        ),
        (
            beyond(control.iopm, 0x3000),
            "the I/O permission map lies too high",
        ),
        (
            beyond(control.msrpm, 0x2000),
            "the MSR permission map lies too high",
        ),
        (control.asid == 0, "the ASID is 0"),
        (bad_event(vmcb), "no such event can be injected"),
        (bad_pat(save.g_pat), "PAT has a reserved memory type"),
        (control.n_cr3 & 0xfff != 0, "the nested CR3 is not aligned"),
        (control.n_cr3 == 0, "there are no nested tables"),
    ];
    checks
        .iter()
        .find_map(|(wrong, why)| wrong.then_some(*why))
        .unwrap_or("none of the documented checks fails")
}

fn bad_event(vmcb: &Vmcb) -> bool {
    let event = vmcb.control.event_inj;
    let vector = event as u8;
    event & event::VALID != 0
        && match event & event::TYPE {
            event::INTERRUPT | event::NMI | event::SOFTWARE => false,
            // 64-bit code has neither INTO nor BOUND.
            event::EXCEPTION => {
                vector == 2 || vector > 31 || matches!(vector, 4 | 5) && vmcb.in_64_bit_code()
            }
            _ => true,
        }
}

pub(super) fn bad_pat(pat: u64) -> bool {
    pat.to_le_bytes()
        .iter()
        .any(|kind| matches!(kind, 2 | 3 | 8..))
}
