// SPDX-License-Identifier: MIT OR Apache-2.0
//! A backend on the test host's processors, for tests of the core.
//!
//! It keeps the backend contract and no more, and notes every [`Violation`] of it: entries without `load`, windows closed
//! without `unload`, translations that outlive a revocation, events that get lost. `TestHost::run` panics if there is one.

use crate::processor::bus::Bus;
use crate::processor::execute::Guest;
use crate::processor::tlb::{Space, Tag};
use crate::processor::{Core, Violation, NO_ROOT};
use crate::{heap, TestHost};
use palacios_core::addr::Hpa;
use palacios_core::backend::{
    Backend, BackendVcpu, Event, Exit, Features, HostProcessor, Intercepts, Unsupported,
};
use palacios_core::features::GuestFeatures;
use palacios_core::host::{CpuId, Host, NoMemory};
use palacios_core::memory::nested::Format;
use palacios_core::state::{
    rflags, Control, CpuState, DescriptorTable, Gprs, Seg, Segment, TableRegister,
};
use palacios_core::xsave::{XsaveArea, XsaveLayout, SMALLEST_AREA};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// How often a vCPU may be entered in one window while an interrupt waits.
const PATIENCE: u32 = 1000;
/// The registers it holds for guests: STAR to SFMASK, FS_BASE to KERNEL_GS_BASE, SYSENTER, PAT.
pub const MSRS: [u32; 11] = [
    0x174,
    0x175,
    0x176,
    0x277,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
];

/// Virtualization on the test host's processors.
pub struct AdversarialBackend {
    host: TestHost,
    next_vcpu: AtomicU64,
}

impl HostProcessor for AdversarialBackend {
    fn features(&self) -> Features {
        let config = &self.host.processors().config;
        Features {
            backend: "adversarial",
            address_space_tags: config.tags,
            next_rip: config.next_rip,
            decode_assists: false,
            physical_bits: 48,
            xcr0: 0,
            cr4: u64::MAX,
        }
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match leaf {
            0 => [0xd, 0x7473_6554, 0x7473_6f48, 0x7473_6554],
            0x8000_0000 => [0x8000_0008, 0, 0, 0],
            0x8000_0008 => [48 | 48 << 8, 0, 0, 0],
            _ => [0, leaf, subleaf, u32::MAX],
        }
    }

    fn tsc(&self) -> u64 {
        self.host.now_ns()
    }
}

impl Backend<TestHost> for AdversarialBackend {
    type Vcpu = AdversarialVcpu;

    fn probe(host: &TestHost) -> Result<Self, Unsupported> {
        Ok(Self {
            host: host.clone(),
            next_vcpu: AtomicU64::new(1),
        })
    }
    fn enable_cpu(&self, cpu: CpuId) -> Result<(), Unsupported> {
        assert_eq!(self.host.current_cpu(), cpu, "enable_cpu of another CPU");
        heap::exempt(|| {
            let mut core = self.host.processors().cpu(cpu);
            core.enabled = true;
            core.restart_tags();
        });
        Ok(())
    }
    fn disable_cpu(&self, cpu: CpuId) {
        assert_eq!(self.host.current_cpu(), cpu, "disable_cpu of another CPU");
        self.host.processors().cpu(cpu).enabled = false;
    }
    fn table_format(&self) -> Format {
        self.host.processors().config.format
    }
    fn vcpu(&self, host: &TestHost, _: &GuestFeatures) -> Result<AdversarialVcpu, NoMemory> {
        // A real one has a page for the processor to work with.
        let page = host.alloc_pages(palacios_core::host::PageRequest::ONE)?;
        Ok(heap::exempt(|| AdversarialVcpu {
            host: host.clone(),
            id: self.next_vcpu.fetch_add(1, SeqCst),
            page,
            guest: Guest::default(),
            root: NO_ROOT,
            tag: None,
            place: None,
            tsc_offset: 0,
            fpu: [0; SMALLEST_AREA as usize],
            msrs: MSRS.into_iter().map(|index| (index, 0)).collect(),
        }))
    }
}

/// A vCPU on the test host's processors.
pub struct AdversarialVcpu {
    host: TestHost,
    id: u64,
    page: Hpa,
    guest: Guest,
    root: Hpa,
    /// Its tag: on which CPU, of which generation.
    tag: Option<(CpuId, u64, Tag)>,
    /// Where it is loaded.
    place: Option<CpuId>,
    tsc_offset: u64,
    /// Its guests have no floating-point unit; what the emulator does to one is kept.
    fpu: [u8; SMALLEST_AREA as usize],
    msrs: BTreeMap<u32, u64>,
}

impl Drop for AdversarialVcpu {
    fn drop(&mut self) {
        heap::exempt(|| self.host.record(self.id, &self.guest));
        // SAFETY: allocated with the vCPU, and used by nobody else.
        unsafe {
            self.host
                .free_pages(self.page, palacios_core::host::PageRequest::ONE)
        };
    }
}

impl AdversarialVcpu {
    /// Notes that something was done at the wrong place, and says so.
    fn out_of_place(&self, what: &'static str) -> bool {
        let violation = match (self.host.window_cpu(), self.place) {
            (None, _) => Violation::OutsideWindow(what),
            (Some(here), place) if place != Some(here) => Violation::NotLoaded(what),
            _ => return false,
        };
        self.host.processors().note(violation);
        true
    }

    /// A tag that is good on this CPU: its own, or one that nobody has used since the TLB was last flushed.
    fn take_tag(&mut self, cpu: CpuId, core: &mut Core) -> Tag {
        if let Some((at, generation, tag)) = self.tag {
            if at == cpu && generation == core.generation {
                return tag;
            }
        }
        if core.next_tag > self.host.processors().config.tags {
            core.restart_tags();
        }
        let tag = core.next_tag;
        core.next_tag += 1;
        self.tag = Some((cpu, core.generation, tag));
        tag
    }

    /// What the entry is about to do wrong, if anything.
    fn check_entry(&self) -> Option<Violation> {
        let guest = &self.guest;
        if self.root == NO_ROOT {
            return Some(Violation::NoTables);
        }
        if let Some(event) = guest.interrupted {
            return Some(Violation::EventLost(event));
        }
        match guest.injected? {
            event @ Event::Interrupt(_) if !guest.interruptible() => {
                Some(Violation::NotTaken(event))
            }
            event @ Event::Nmi if guest.nmi_blocked => Some(Violation::NotTaken(event)),
            _ => None,
        }
    }

    fn run(&mut self, cpu: CpuId) -> Exit {
        let host = self.host.clone();
        let processors = host.processors();
        let mut core = processors.cpu(cpu);
        if host.interrupted() {
            core.starved += 1;
            if core.starved == PATIENCE {
                processors.note(Violation::HostStarved(cpu));
            }
            let cut = processors.config.cut_short_one_in;
            if self.guest.injected.is_some() && cut > 0 && host.random() % cut == 0 {
                self.guest.interrupted = self.guest.injected.take();
                return Exit::HostInterrupt;
            }
        }
        let tag = self.take_tag(cpu, &mut core);
        self.guest.tsc = host.now_ns().wrapping_add(self.tsc_offset);
        let mut bus = Bus {
            host: &host,
            processors,
            tlb: &mut core.tlb,
            space: Space {
                root: self.root,
                format: processors.config.format,
                tag,
                owner: Default::default(),
            },
        };
        self.guest.run(&mut bus, || host.interrupted())
    }
}

impl BackendVcpu<TestHost, AdversarialBackend> for AdversarialVcpu {
    fn load(&mut self, host: &TestHost, _: &AdversarialBackend, cpu: CpuId) {
        let processors = host.processors();
        if host.window_cpu() != Some(cpu) {
            return processors.note(Violation::OutsideWindow("load"));
        }
        let mut core = processors.cpu(cpu);
        if !core.enabled {
            processors.note(Violation::NotEnabled(cpu));
        }
        if core.loaded.replace(self.id).is_some() || self.place.is_some() {
            processors.note(Violation::LoadedTwice(cpu));
        }
        self.place = Some(cpu);
    }

    fn enter(&mut self, host: &TestHost) -> Exit {
        if self.out_of_place("enter") {
            return Exit::BadState("it is not loaded here");
        }
        let Some(cpu) = self.place else {
            return Exit::Gone;
        };
        if let Some(violation) = self.check_entry() {
            host.processors().note(violation);
            return Exit::BadState("see the violations");
        }
        host.guest_enter();
        let exit = heap::exempt(|| self.run(cpu));
        host.guest_exit();
        exit
    }

    fn unload(&mut self, host: &TestHost, _: &AdversarialBackend) {
        if !self.out_of_place("unload") {
            if let Some(cpu) = self.place.take() {
                host.processors().cpu(cpu).loaded = None;
            }
        }
    }

    fn gprs(&self) -> &Gprs {
        &self.guest.state.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.guest.state.gprs
    }
    fn rip(&self) -> u64 {
        self.guest.state.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.guest.state.rip = rip;
        self.guest.shadow = false;
    }
    fn next_rip(&self) -> Option<u64> {
        let offered = self.host.processors().config.next_rip;
        self.guest.next_rip.filter(|_| offered)
    }
    fn rflags(&self) -> u64 {
        self.guest.state.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.guest.state.rflags = rflags | rflags::FIXED;
    }
    fn control(&self) -> Control {
        self.guest.state.control
    }
    fn set_control(&mut self, control: Control) {
        self.guest.state.control = control;
    }
    fn segment(&self, seg: Seg) -> Segment {
        self.guest.state.segments[seg as usize]
    }
    fn set_segment(&mut self, seg: Seg, segment: Segment) {
        self.guest.state.segments[seg as usize] = segment;
    }
    fn set_table(&mut self, table: DescriptorTable, value: TableRegister) {
        match table {
            DescriptorTable::Global => self.guest.state.gdtr = value,
            DescriptorTable::Interrupt => self.guest.state.idtr = value,
        }
    }
    fn cpl(&self) -> u8 {
        0
    }
    fn power_on(&mut self) {
        self.fpu().clear();
        self.msrs.values_mut().for_each(|value| *value = 0);
    }
    fn state(&self) -> CpuState {
        self.guest.state
    }
    fn set_state(&mut self, state: &CpuState) {
        self.guest.state = *state;
        self.guest.injected = None;
        self.guest.interrupted = None;
        self.flush_tlb();
    }
    fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.get(&index).copied()
    }
    fn set_msr(&mut self, index: u32, value: u64) -> bool {
        let slot = self.msrs.get_mut(&index);
        slot.map(|slot| *slot = value).is_some()
    }
    fn debug_register(&self, n: u8) -> u64 {
        match n {
            6 => self.guest.state.dr6,
            7 => self.guest.state.dr7,
            n => self.guest.state.dr[usize::from(n & 3)],
        }
    }
    fn set_debug_register(&mut self, n: u8, value: u64) {
        match n {
            6 => self.guest.state.dr6 = value,
            7 => self.guest.state.dr7 = value,
            n => self.guest.state.dr[usize::from(n & 3)] = value,
        }
    }
    fn xcr0(&self) -> u64 {
        self.guest.state.xcr0
    }
    fn set_xcr0(&mut self, value: u64) {
        self.guest.state.xcr0 = value;
    }
    fn fpu(&mut self) -> XsaveArea<'_> {
        XsaveArea::new(&mut self.fpu, XsaveLayout::default())
    }

    fn inject(&mut self, event: Event) {
        self.guest.injected = Some(event);
    }
    fn take_interrupted(&mut self) -> Option<Event> {
        self.guest.interrupted.take()
    }
    fn interruptible(&self) -> bool {
        self.guest.interruptible() && self.guest.injected.is_none()
    }
    fn nmi_allowed(&self) -> bool {
        !self.guest.nmi_blocked && !self.guest.shadow && self.guest.injected.is_none()
    }
    fn nmi_blocked(&self) -> bool {
        self.guest.nmi_blocked
    }
    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.guest.nmi_blocked = blocked;
    }
    fn pending_event(&self) -> Option<Event> {
        self.guest.injected
    }
    fn interrupt_shadow(&self) -> bool {
        self.guest.shadow
    }
    fn set_interrupt_shadow(&mut self, on: bool) {
        self.guest.shadow = on;
    }
    fn request_interrupt_window(&mut self, priority: Option<u8>) {
        self.guest.interrupt_window = priority;
    }
    fn set_intercepts(&mut self, more: Intercepts) {
        self.guest.policy.exceptions = match more.contains(Intercepts::EXCEPTIONS) {
            true => u32::MAX,
            false => 0,
        };
    }
    fn request_nmi_window(&mut self, on: bool) {
        self.guest.nmi_window = on;
    }
    fn cr8(&self) -> u8 {
        self.guest.cr8
    }
    fn set_cr8(&mut self, cr8: u8) {
        self.guest.cr8 = cr8 & 15;
    }

    fn set_table_root(&mut self, root: Hpa) {
        self.root = root;
        self.flush_tlb();
    }
    fn flush_tlb(&mut self) {
        // A fresh tag knows nothing. What the old one knows stays, for whoever uses it by mistake.
        self.tag = None;
        self.guest.flushes += 1;
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
}
