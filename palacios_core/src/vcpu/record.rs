// SPDX-License-Identifier: MIT OR Apache-2.0
//! All of a vCPU that its guest can observe, in no backend's layout: for saving it, for looking into it, and for going on with it elsewhere.
#![forbid(unsafe_code)]

use super::owned::Activity;
use super::pvclock::PvClock;
use crate::alloc_ext::TryPush;
use crate::backend::Event;
use crate::interrupts::lapic::LocalApic;
use crate::state::{Control, CpuState, Exception, Gprs, Segment, SegmentAttributes, TableRegister};
use crate::state_io::{StateError, StateReader, StateWriter};
use crate::xsave::FpuRecord;
use alloc::vec::Vec;

const VERSION: u32 = 1;
/// The most registers of a record; there are fewer by far.
const MOST_MSRS: u32 = 256;

/// A vCPU, written down.
#[derive(Debug)]
pub struct CpuRecord {
    /// Its registers, but for those below.
    pub state: CpuState,
    /// What it does when nobody stops it.
    pub activity: Activity,
    /// What is to be delivered, and what keeps it from being delivered.
    pub events: EventRecord,
    /// Model-specific registers, by their numbers.
    pub msrs: Vec<(u32, u64)>,
    /// Floating-point and vector registers.
    pub fpu: FpuRecord,
    /// The local APIC with its timer, whose times are on the VM's clock.
    pub apic: LocalApic,
    /// What its time stamp counter is ahead of the VM's: IA32_TSC_ADJUST.
    pub tsc_ahead: u64,
    pub(super) pvclock: PvClock,
}

/// Events under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventRecord {
    /// An exception to deliver next.
    pub fault: Option<Exception>,
    /// An event that was cut short, to deliver again next.
    pub interrupted: Option<Event>,
    /// An interrupt or NMI that an exception cut short, to deliver once the guest takes it.
    pub held: Option<Event>,
    /// NMIs to deliver, at most two.
    pub waiting_nmis: u8,
    /// An NMI is being handled.
    pub nmi_blocked: bool,
    /// The instruction before was `STI` or `MOV SS`.
    pub interrupt_shadow: bool,
    /// The PIC pair may have an interrupt for it.
    pub pic_waits: bool,
}

impl CpuRecord {
    /// Writes it down.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(VERSION)?;
        save_state(&self.state, to)?;
        to.u8(match self.activity {
            Activity::Active => 0,
            Activity::Halted => 1,
            Activity::WaitForStartup => 2,
        })?;
        self.events.save(to)?;
        to.u32(self.msrs.len() as u32)?;
        for (index, value) in &self.msrs {
            to.u32(*index)?;
            to.u64(*value)?;
        }
        self.fpu.save(to)?;
        self.apic.save(to)?;
        to.u64(self.tsc_ahead)?;
        self.pvclock.save(to)
    }

    /// Reads what [`CpuRecord::save`] wrote, of a vCPU whose local APIC is `apic` after a reset.
    pub fn read(from: &mut StateReader<'_>, mut apic: LocalApic) -> Result<Self, StateError> {
        from.version(VERSION)?;
        let state = read_state(from)?;
        let activity = match from.u8()? {
            0 => Activity::Active,
            1 => Activity::Halted,
            2 => Activity::WaitForStartup,
            _ => return Err(StateError::Value("cpu.activity")),
        };
        let events = EventRecord::read(from)?;
        let count = from.u32()?;
        if count > MOST_MSRS {
            return Err(StateError::Value("cpu.msrs"));
        }
        let mut msrs = Vec::new();
        for _ in 0..count {
            msrs.try_push((from.u32()?, from.u64()?))?;
        }
        let fpu = FpuRecord::read(from)?;
        apic.restore(from)?;
        let record = Self {
            state,
            activity,
            events,
            msrs,
            fpu,
            apic,
            tsc_ahead: from.u64()?,
            pvclock: PvClock::restored(from)?,
        };
        from.end("cpu.end")?;
        Ok(record)
    }
}

impl EventRecord {
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        save_event(self.fault.map(Event::Exception), to)?;
        save_event(self.interrupted, to)?;
        save_event(self.held, to)?;
        to.u8(self.waiting_nmis)?;
        to.bool(self.nmi_blocked)?;
        to.bool(self.interrupt_shadow)?;
        to.bool(self.pic_waits)
    }

    fn read(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let fault = match read_event(from)? {
            None => None,
            Some(Event::Exception(exception)) => Some(exception),
            Some(_) => return Err(StateError::Value("cpu.events.fault")),
        };
        let interrupted = read_event(from)?;
        let held = read_event(from)?;
        if !matches!(held, None | Some(Event::Interrupt(_) | Event::Nmi)) {
            return Err(StateError::Value("cpu.events.held"));
        }
        let waiting_nmis = from.u8()?;
        if waiting_nmis > 2 {
            return Err(StateError::Value("cpu.events.waiting_nmis"));
        }
        Ok(Self {
            fault,
            interrupted,
            held,
            waiting_nmis,
            nmi_blocked: from.bool("cpu.events.nmi_blocked")?,
            interrupt_shadow: from.bool("cpu.events.interrupt_shadow")?,
            pic_waits: from.bool("cpu.events.pic_waits")?,
        })
    }
}

/// An event is a kind, a vector, and a number that says more.
fn save_event(event: Option<Event>, to: &mut StateWriter<'_>) -> Result<(), StateError> {
    let (kind, vector, more) = match event {
        None => (0, 0, 0),
        Some(Event::Interrupt(vector)) => (1, vector, 0),
        Some(Event::Nmi) => (2, 0, 0),
        Some(Event::Exception(e)) => (3, e.vector, e.cr2.unwrap_or(0)),
        Some(Event::Software { vector, next_rip }) => (4, vector, next_rip),
    };
    to.bytes(&[kind, vector])?;
    to.u64(more)?;
    let Some(Event::Exception(exception)) = event else {
        return Ok(());
    };
    to.bool(exception.cr2.is_some())?;
    to.bool(exception.error_code.is_some())?;
    to.u32(exception.error_code.unwrap_or(0))
}

fn read_event(from: &mut StateReader<'_>) -> Result<Option<Event>, StateError> {
    let [kind, vector] = from.bytes()?;
    let more = from.u64()?;
    Ok(match kind {
        0 => None,
        1 => Some(Event::Interrupt(vector)),
        2 => Some(Event::Nmi),
        3 if vector < 32 => {
            let has_cr2 = from.bool("cpu.event.cr2")?;
            let has_code = from.bool("cpu.event.error_code")?;
            let error_code = from.u32()?;
            Some(Event::Exception(Exception {
                vector,
                error_code: has_code.then_some(error_code),
                cr2: has_cr2.then_some(more),
            }))
        }
        4 => Some(Event::Software {
            vector,
            next_rip: more,
        }),
        _ => return Err(StateError::Value("cpu.event")),
    })
}

fn save_state(state: &CpuState, to: &mut StateWriter<'_>) -> Result<(), StateError> {
    let control = &state.control;
    let words = [
        state.rip,
        state.rflags,
        control.cr0,
        control.cr2,
        control.cr3,
    ];
    let more = [control.cr4, control.efer, state.dr6, state.dr7, state.xcr0];
    let all = state.gprs.0.iter().chain(&words).chain(&more);
    for word in all.chain(&state.dr) {
        to.u64(*word)?;
    }
    for segment in &state.segments {
        to.u16(segment.selector)?;
        to.u16(segment.attributes.0)?;
        to.u32(segment.limit)?;
        to.u64(segment.base)?;
    }
    for table in [&state.gdtr, &state.idtr] {
        to.u64(table.base)?;
        to.u16(table.limit)?;
    }
    Ok(())
}

fn read_state(from: &mut StateReader<'_>) -> Result<CpuState, StateError> {
    let mut state = CpuState::reset();
    let mut gprs = Gprs::default();
    for register in &mut gprs.0 {
        *register = from.u64()?;
    }
    state.gprs = gprs;
    (state.rip, state.rflags) = (from.u64()?, from.u64()?);
    let (cr0, cr2, cr3) = (from.u64()?, from.u64()?, from.u64()?);
    state.control = Control {
        cr0,
        cr2,
        cr3,
        cr4: from.u64()?,
        efer: from.u64()?,
    };
    (state.dr6, state.dr7, state.xcr0) = (from.u64()?, from.u64()?, from.u64()?);
    for register in &mut state.dr {
        *register = from.u64()?;
    }
    for segment in &mut state.segments {
        *segment = Segment {
            selector: from.u16()?,
            attributes: SegmentAttributes(from.u16()?),
            limit: from.u32()?,
            base: from.u64()?,
        };
    }
    for table in [&mut state.gdtr, &mut state.idtr] {
        *table = TableRegister {
            base: from.u64()?,
            limit: from.u16()?,
        };
    }
    Ok(state)
}
