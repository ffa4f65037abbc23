// SPDX-License-Identifier: GPL-2.0
//! What a virtual CPU looks like inside, in the words of `v3vee.h`. It is out of the guest: one that runs was called out for it.

use crate::user::Text;
use palacios_core::backend::Event;
use palacios_core::state::Segment;
use palacios_core::vcpu::report::{ShownBytes, VcpuReport};
use palacios_core::vcpu::Activity;
use v3_abi::{self as abi, Abi};

/// A virtual CPU.
#[inline(never)]
pub(crate) fn of(vcpu: u32, report: &VcpuReport) -> abi::v3_vcpu_report {
    let state = &report.state;
    let (code_len, code) = shown(&report.code);
    let (stack_len, stack) = shown(&report.stack);
    let (cause, cause_vector, cause_error) = cause(report.cause);
    let mut to = abi::v3_vcpu_report {
        vcpu,
        activity: match report.activity {
            Activity::Active => abi::V3_ACTIVITY_RUNS,
            Activity::Halted => abi::V3_ACTIVITY_HALTED,
            Activity::WaitForStartup => abi::V3_ACTIVITY_UNSTARTED,
        },
        gprs: state.gprs.0,
        rip: state.rip,
        rflags: state.rflags,
        cr0: state.control.cr0,
        cr2: state.control.cr2,
        cr3: state.control.cr3,
        cr4: state.control.cr4,
        cr8: report.cr8.into(),
        efer: state.control.efer,
        xcr0: state.xcr0,
        dr: state.dr,
        dr6: state.dr6,
        dr7: state.dr7,
        segments: state.segments.map(segment),
        gdt_base: state.gdtr.base,
        idt_base: state.idtr.base,
        gdt_limit: state.gdtr.limit.into(),
        idt_limit: state.idtr.limit.into(),
        cpl: report.cpl.into(),
        code_bits: report.code_bits.into(),
        cause,
        cause_vector,
        cause_has_error_code: cause_error.is_some().into(),
        cause_error_code: cause_error.unwrap_or(0),
        code_at: report.code.at,
        stack_at: report.stack.at,
        code_len,
        stack_len,
        code,
        stack,
        ..abi::v3_vcpu_report::zeroed()
    };
    for (to, exit) in to.exits.iter_mut().zip(report.exits()) {
        to.rip = exit.rip;
        to.kind = Text::of(format_args!("{}", exit.kind.label())).field;
    }
    to.exit_count = report.exits().len() as u32;
    to
}

fn segment(from: Segment) -> abi::v3_segment {
    abi::v3_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        attributes: from.attributes.0,
    }
}

/// How many bytes there are, and these.
fn shown(from: &ShownBytes) -> (u32, [u8; abi::V3_SHOWN_BYTES as usize]) {
    let mut bytes = [0; abi::V3_SHOWN_BYTES as usize];
    for (to, byte) in bytes.iter_mut().zip(from.bytes()) {
        *to = *byte;
    }
    (from.bytes().len() as u32, bytes)
}

/// The kind of a cause, its vector and its error code.
fn cause(event: Option<Event>) -> (u32, u32, Option<u32>) {
    match event {
        None => (abi::V3_CAUSE_NONE, 0, None),
        Some(Event::Exception(e)) => (abi::V3_CAUSE_EXCEPTION, e.vector.into(), e.error_code),
        Some(Event::Nmi) => (abi::V3_CAUSE_INTERRUPT, 2, None),
        Some(Event::Interrupt(vector) | Event::Software { vector, .. }) => {
            (abi::V3_CAUSE_INTERRUPT, vector.into(), None)
        }
    }
}
