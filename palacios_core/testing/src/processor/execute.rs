// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that executes: its state, the events it takes, and the loop that ends with an exit.
//!
//! Guests run in real or protected mode without paging: enough for programs that test a VMM. An instruction happens whole
//! or not at all.

use super::bus::{Access, Bus};
use crate::host::Usage;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use palacios_core::addr::Gpa;
use palacios_core::backend::{Event, Exit, NestedFault};
use palacios_core::state::{cr0, rflags, CpuState, Exception, Reg, Seg, SegmentAttributes};

/// Why the guest does not go on to its next instruction.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    Exit(Exit),
    Exception(Exception),
}

impl From<NestedFault> for Stop {
    fn from(fault: NestedFault) -> Self {
        Self::Exit(Exit::NestedFault(fault))
    }
}

/// Which of the instructions exit that need not.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Reads and writes of control registers, a bit for each register.
    pub cr_reads: u16,
    pub cr_writes: u16,
    /// Exceptions, a bit for each vector.
    pub exceptions: u32,
    pub iret: bool,
    pub invlpg: bool,
    /// A locked access to two cache lines is an #AC.
    pub split_locks_fault: bool,
    /// Under VT-x, CR0 and CR4 exit bit by bit, and IRET lets NMIs in before it can fault.
    pub masks: Option<Masks>,
}

/// Bits of CR0 and of CR4 that the VMM keeps for itself, and what the guest reads in them (SDM 3C: 24.6.6).
#[derive(Clone, Copy, Debug)]
pub struct Masks {
    pub guarded: [u64; 2],
    pub shadow: [u64; 2],
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            cr_reads: u16::MAX,
            cr_writes: u16::MAX,
            exceptions: 0,
            iret: false,
            invlpg: true,
            split_locks_fault: false,
            masks: None,
        }
    }
}

/// A guest's CPU.
#[derive(Clone, Debug)]
pub struct Guest {
    pub policy: Policy,
    /// Which register a move that exited was of: a number below 16 is a read of that control register, the next 16 are
    /// writes, then follow debug registers in the same way.
    pub moved: u64,
    /// The other register of that move.
    pub moved_with: Reg,
    /// The last exit was IRET's.
    pub returning: bool,
    pub state: CpuState,
    /// Interrupts are held off for one instruction.
    pub shadow: bool,
    /// It is MOV SS that does so.
    pub shadow_of_stack: bool,
    pub nmi_blocked: bool,
    /// The last exit was IRET's, which had let NMIs in already.
    pub nmi_unblocked: bool,
    pub cr8: u8,
    /// An exit is wanted when CR8 is lower, and what the last exit was.
    pub cr8_threshold: u8,
    pub below_threshold: bool,
    /// What the next entry delivers.
    pub injected: Option<Event>,
    /// What the last exit cut short.
    pub interrupted: Option<Event>,
    /// An exit is wanted when an interrupt of this priority would be taken.
    pub interrupt_window: Option<u8>,
    pub nmi_window: bool,
    /// Where the instruction ends that exited.
    pub next_rip: Option<u64>,
    pub tsc: u64,
    /// How many instructions were executed.
    pub executed: u64,
    /// How often its translations were flushed.
    pub flushes: u64,
    /// What the host's thread had used when the guest passed each of its marks (`prefetchnta`, with the mark's number as
    /// its address).
    pub marks: Vec<(u32, Usage)>,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            moved: 0,
            moved_with: Reg::Rax,
            returning: false,
            state: CpuState::reset(),
            shadow: false,
            shadow_of_stack: false,
            nmi_blocked: false,
            nmi_unblocked: false,
            cr8: 0,
            cr8_threshold: 0,
            below_threshold: false,
            injected: None,
            interrupted: None,
            interrupt_window: None,
            nmi_window: false,
            next_rip: None,
            tsc: 0,
            executed: 0,
            flushes: 0,
            marks: Vec::new(),
        }
    }
}

impl Guest {
    /// It would take an external interrupt now.
    pub fn interruptible(&self) -> bool {
        self.state.rflags & rflags::IF != 0 && !self.shadow
    }

    /// By a shadow. Whether that of STI does so is the processor's choice under VT-x (SDM 3C: 24.4.2); this one's is the worse.
    fn holds_off_nmis(&self) -> bool {
        self.shadow && (self.shadow_of_stack || self.policy.masks.is_none())
    }

    /// Runs until an exit. `interrupted` says whether the host wants the CPU.
    pub fn run(&mut self, bus: &mut Bus<'_>, interrupted: impl Fn() -> bool) -> Exit {
        (self.next_rip, self.returning) = (None, false);
        self.nmi_unblocked = false;
        if let Some(event) = self.injected.take() {
            if let Err(stop) = self.deliver(bus, event) {
                return self.cut_short(event, stop);
            }
        }
        loop {
            self.below_threshold = self.cr8 < self.cr8_threshold;
            if self.below_threshold {
                return Exit::InterruptWindow;
            }
            if interrupted() {
                return Exit::HostInterrupt;
            }
            if self.nmi_window && !self.nmi_blocked && !self.holds_off_nmis() {
                self.nmi_window = false;
                return Exit::NmiWindow;
            }
            let wanted = self.interrupt_window.is_some_and(|p| p > self.cr8);
            if wanted && self.interruptible() {
                self.interrupt_window = None;
                return Exit::InterruptWindow;
            }
            let traced = self.state.rflags & rflags::TF != 0;
            match self.step(bus).and_then(|()| self.trap(traced)) {
                Ok(()) => {}
                Err(Stop::Exit(exit)) => return exit,
                Err(Stop::Exception(exception)) => {
                    if self.policy.exceptions & 1 << exception.vector != 0 {
                        return Exit::Exception(exception);
                    }
                    let event = Event::Exception(exception);
                    if let Err(stop) = self.deliver(bus, event) {
                        return self.cut_short(event, stop);
                    }
                }
            }
            if self.executed % 256 == 0 {
                // The machine beneath may have fewer CPUs than the host.
                std::thread::yield_now();
            }
        }
    }

    /// After an instruction that began with RFLAGS.TF set.
    fn trap(&mut self, traced: bool) -> Result<(), Stop> {
        const BS: u64 = 1 << 14;
        if !traced {
            return Ok(());
        }
        self.state.dr6 |= BS;
        Err(Stop::Exception(Exception::DEBUG))
    }

    /// An event's delivery failed: the exit says which, or there is nobody left to take it.
    fn cut_short(&mut self, event: Event, stop: Stop) -> Exit {
        match stop {
            Stop::Exit(exit) => {
                self.interrupted = Some(event);
                exit
            }
            // A handler that cannot be reached: nobody's handler can.
            Stop::Exception(_) => Exit::TripleFault,
        }
    }

    /// One instruction.
    fn step(&mut self, bus: &mut Bus<'_>) -> Result<(), Stop> {
        if self.state.control.cr0 & cr0::PG != 0 {
            return Err(Stop::Exit(Exit::BadState("guest paging is not simulated")));
        }
        let instruction = self.fetch(bus)?;
        let mut next = self.state;
        next.rip = self.mask_ip(self.state.rip.wrapping_add(instruction.len() as u64));
        let shadowed = std::mem::take(&mut self.shadow);
        match self.execute(bus, &instruction, &mut next) {
            Ok(()) => {
                self.state = next;
                self.executed += 1;
                Ok(())
            }
            Err(stop) => {
                self.shadow = shadowed;
                self.next_rip = Some(next.rip);
                Err(stop)
            }
        }
    }

    /// The bytes at RIP, as far as they are needed.
    fn fetch(&mut self, bus: &mut Bus<'_>) -> Result<Instruction, Stop> {
        let mut bytes = Vec::with_capacity(15);
        while bytes.len() < 15 {
            let at = self.linear(Seg::Cs, self.state.rip.wrapping_add(bytes.len() as u64));
            match bus.read(at, 1, Access::Fetch) {
                Ok(byte) => bytes.push(byte as u8),
                // Only if the instruction is not whole without it.
                Err(fault) => match self.decode(&bytes) {
                    Some(instruction) => return Ok(instruction),
                    None => return Err(fault.into()),
                },
            }
            if bytes.len() % 4 == 3 {
                if let Some(instruction) = self.decode(&bytes) {
                    return Ok(instruction);
                }
            }
        }
        let whole = self.decode(&bytes);
        whole.ok_or(Stop::Exception(Exception::INVALID_OPCODE))
    }

    fn decode(&self, bytes: &[u8]) -> Option<Instruction> {
        // CR8 has a name in 32-bit code on AMD's only; this processor knows it in any case.
        let mut decoder = Decoder::with_ip(self.bits(), bytes, self.state.rip, DecoderOptions::AMD);
        let instruction = decoder.decode();
        (!instruction.is_invalid()).then_some(instruction)
    }

    /// 16 or 32.
    pub fn bits(&self) -> u32 {
        let code = self.state.segments[Seg::Cs as usize].attributes;
        match self.protected() && code.has(SegmentAttributes::DB) {
            true => 32,
            false => 16,
        }
    }
    pub fn protected(&self) -> bool {
        self.state.control.cr0 & cr0::PE != 0
    }
    pub fn mask_ip(&self, ip: u64) -> u64 {
        ip & (u64::MAX >> (64 - self.bits()))
    }
    /// The address of `offset` in a segment.
    pub fn linear(&self, seg: Seg, offset: u64) -> Gpa {
        let base = self.state.segments[seg as usize].base;
        Gpa(base.wrapping_add(self.mask_ip(offset)) & 0xffff_ffff)
    }

    /// Delivers an event through the interrupt descriptor table (SDM 3A: 6.12), in the state it finds.
    pub fn deliver(&mut self, bus: &mut Bus<'_>, event: Event) -> Result<(), Stop> {
        let (vector, error, rip) = match event {
            Event::Interrupt(vector) => (vector, None, self.state.rip),
            Event::Nmi => (2, None, self.state.rip),
            Event::Exception(e) => (e.vector, e.error_code, self.state.rip),
            Event::Software { vector, next_rip } => (vector, None, next_rip),
        };
        let mut next = self.state;
        match self.protected() {
            true => self.protected_gate(bus, &mut next, (vector, error, rip))?,
            false => self.real_vector(bus, &mut next, (vector, rip))?,
        }
        if let Event::Exception(Exception { cr2: Some(at), .. }) = event {
            next.control.cr2 = at;
        }
        self.nmi_blocked |= event == Event::Nmi;
        self.shadow = false;
        self.state = next;
        Ok(())
    }

    /// A 32-bit gate into a flat code segment of the same privilege, or a task gate.
    fn protected_gate(
        &mut self,
        bus: &mut Bus<'_>,
        next: &mut CpuState,
        (vector, error, rip): (u8, Option<u32>, u64),
    ) -> Result<(), Stop> {
        const PRESENT: u64 = 1 << 47;
        const INTERRUPT_GATE: u64 = 0xe << 40;
        const TRAP_GATE: u64 = 0xf << 40;
        const TASK_GATE: u64 = 0x5 << 40;
        let entry = u64::from(vector) * 8;
        let bad = Stop::Exception(Exception::general_protection(u32::from(vector) * 8 + 2));
        if entry + 7 > self.state.idtr.limit.into() {
            return Err(bad);
        }
        let at = Gpa(self.state.idtr.base.wrapping_add(entry) & 0xffff_ffff);
        let gate = bus.read(at, 8, Access::Read)?;
        let kind = gate & 0xf << 40;
        if gate & PRESENT != 0 && kind == TASK_GATE {
            return Err(Stop::Exit(Exit::TaskSwitch));
        }
        if gate & PRESENT == 0 || (kind != INTERRUPT_GATE && kind != TRAP_GATE) {
            return Err(bad);
        }
        let cs = self.state.segments[Seg::Cs as usize].selector;
        let pushed = [self.state.rflags, cs.into(), rip];
        for value in pushed.into_iter().chain(error.map(u64::from)) {
            self.push(bus, next, value, 4)?;
        }
        next.rip = gate & 0xffff | gate >> 32 & 0xffff_0000;
        next.rflags &= !(rflags::TF | rflags::RF | rflags::NT);
        if kind == INTERRUPT_GATE {
            next.rflags &= !rflags::IF;
        }
        Ok(())
    }

    /// A vector of the real-mode table.
    fn real_vector(
        &mut self,
        bus: &mut Bus<'_>,
        next: &mut CpuState,
        (vector, rip): (u8, u64),
    ) -> Result<(), Stop> {
        let at = Gpa(self.state.idtr.base + u64::from(vector) * 4);
        let entry = bus.read(at, 4, Access::Read)?;
        let cs = self.state.segments[Seg::Cs as usize].selector;
        for value in [self.state.rflags, cs.into(), rip] {
            self.push(bus, next, value, 2)?;
        }
        next.rip = entry & 0xffff;
        let code = &mut next.segments[Seg::Cs as usize];
        code.selector = (entry >> 16) as u16;
        code.base = entry >> 16 << 4;
        next.rflags &= !(rflags::TF | rflags::IF | rflags::AC);
        Ok(())
    }

    pub fn push(
        &mut self,
        bus: &mut Bus<'_>,
        next: &mut CpuState,
        value: u64,
        size: usize,
    ) -> Result<(), Stop> {
        let sp = next.gprs[Reg::Rsp].wrapping_sub(size as u64);
        let at = self.linear(Seg::Ss, sp);
        bus.write(at, size, value)?;
        next.gprs[Reg::Rsp] = sp & 0xffff_ffff;
        Ok(())
    }

    pub fn pop(
        &mut self,
        bus: &mut Bus<'_>,
        next: &mut CpuState,
        size: usize,
    ) -> Result<u64, Stop> {
        let sp = next.gprs[Reg::Rsp];
        let value = bus.read(self.linear(Seg::Ss, sp), size, Access::Read)?;
        next.gprs[Reg::Rsp] = sp.wrapping_add(size as u64) & 0xffff_ffff;
        Ok(value)
    }
}
