// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's registers in the VMCB's state save area.

use super::permission::msr;
use super::vmcb::{Save, Vmcb};
use crate::state::{cr0, efer, rflags, CpuState, Seg, Segment};

/// A segment register.
pub(super) fn segment(save: &Save, seg: Seg) -> Segment {
    match seg {
        Seg::Es => save.es,
        Seg::Cs => save.cs,
        Seg::Ss => save.ss,
        Seg::Ds => save.ds,
        Seg::Fs => save.fs,
        Seg::Gs => save.gs,
        Seg::Ldtr => save.ldtr,
        Seg::Tr => save.tr,
    }
    .into()
}

/// Sets a segment register; with SS the privilege level.
pub(super) fn set_segment(save: &mut Save, seg: Seg, value: Segment) {
    let register = match seg {
        Seg::Es => &mut save.es,
        Seg::Cs => &mut save.cs,
        Seg::Ss => &mut save.ss,
        Seg::Ds => &mut save.ds,
        Seg::Fs => &mut save.fs,
        Seg::Gs => &mut save.gs,
        Seg::Ldtr => &mut save.ldtr,
        Seg::Tr => &mut save.tr,
    };
    *register = value.into();
    if seg == Seg::Ss {
        save.cpl = privilege_level(save, value);
    }
}

/// The processor forces 0 and 3 in real and virtual-8086 mode (APM 2: 15.5.1); what is read back should say so.
fn privilege_level(save: &Save, ss: Segment) -> u8 {
    match (save.cr0 & cr0::PE, save.rflags & rflags::VM) {
        (0, _) => 0,
        (_, 0) => ss.attributes.dpl(),
        _ => 3,
    }
}

macro_rules! msr {
    ($(#[$doc:meta])* $name:ident, $($borrow:tt)+) => {
        $(#[$doc])*
        pub(super) fn $name(save: $($borrow)+ Save, index: u32) -> Option<$($borrow)+ u64> {
            Some(match index {
                msr::STAR => $($borrow)+ save.star,
                msr::LSTAR => $($borrow)+ save.lstar,
                msr::CSTAR => $($borrow)+ save.cstar,
                msr::SFMASK => $($borrow)+ save.sfmask,
                msr::FS_BASE => $($borrow)+ save.fs.base,
                msr::GS_BASE => $($borrow)+ save.gs.base,
                msr::KERNEL_GS_BASE => $($borrow)+ save.kernel_gs_base,
                msr::SYSENTER_CS => $($borrow)+ save.sysenter_cs,
                msr::SYSENTER_ESP => $($borrow)+ save.sysenter_esp,
                msr::SYSENTER_EIP => $($borrow)+ save.sysenter_eip,
                msr::PAT => $($borrow)+ save.g_pat,
                msr::SPEC_CTRL => $($borrow)+ save.spec_ctrl,
                _ => return None,
            })
        }
    };
}
msr!(
    /// A model-specific register that the save area holds.
    msr, &
);
msr!(
    /// The same, to be changed. Of PAT the processor may keep a copy.
    msr_mut, &mut
);

/// Writes all of a state that the VMCB holds, but for CR4.
pub(super) fn fill(vmcb: &mut Vmcb, state: &CpuState) {
    let save = &mut vmcb.save;
    save.rip = state.rip;
    save.rflags = state.rflags | rflags::FIXED;
    save.cr0 = state.control.cr0;
    save.cr2 = state.control.cr2;
    save.cr3 = state.control.cr3;
    save.efer = state.control.efer | efer::SVME;
    let [es, cs, ss, ds, fs, gs, ldtr, tr] = state.segments;
    save.es = es.into();
    save.cs = cs.into();
    save.ss = ss.into();
    save.ds = ds.into();
    save.fs = fs.into();
    save.gs = gs.into();
    save.ldtr = ldtr.into();
    save.tr = tr.into();
    save.gdtr = state.gdtr.into();
    save.idtr = state.idtr.into();
    save.dr6 = state.dr6;
    save.dr7 = state.dr7;
    save.cpl = privilege_level(save, ss);
    vmcb.control.interrupt_shadow = 0;
}
