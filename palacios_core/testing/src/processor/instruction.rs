// SPDX-License-Identifier: MIT OR Apache-2.0
//! What single instructions do. Decoding is `iced_x86`'s.

use super::bus::{Access, Bus};
use super::execute::{Guest, Stop};
use crate::host::Usage;
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};
use palacios_core::addr::Gpa;
use palacios_core::backend::{Event, Exit, PortAccess};
use palacios_core::state::{rflags, CpuState, Exception, Reg, Seg, Segment, SegmentAttributes};

pub(super) type Done = Result<(), Stop>;

const ARITHMETIC: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

pub(super) fn exit(exit: Exit) -> Stop {
    Stop::Exit(exit)
}

/// All ones of `size` bytes.
fn mask(size: usize) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}

fn sign(value: u64, size: usize) -> bool {
    value >> (8 * size - 1) & 1 != 0
}

/// Zero, sign and parity of a result.
fn result_flags(value: u64, size: usize) -> u64 {
    let flag = |on: bool, flag: u64| if on { flag } else { 0 };
    flag(value & mask(size) == 0, rflags::ZF)
        | flag(sign(value, size), rflags::SF)
        | flag((value as u8).count_ones() % 2 == 0, rflags::PF)
}

/// The sum and its flags.
fn add(a: u64, b: u64, size: usize) -> (u64, u64) {
    let sum = a.wrapping_add(b) & mask(size);
    let carry = sum < a & mask(size);
    let overflow = sign(a, size) == sign(b, size) && sign(sum, size) != sign(a, size);
    let flags = result_flags(sum, size)
        | if carry { rflags::CF } else { 0 }
        | if overflow { rflags::OF } else { 0 };
    (sum, flags)
}

/// The difference and its flags.
fn sub(a: u64, b: u64, size: usize) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let difference = a.wrapping_sub(b) & mask(size);
    let overflow = sign(a, size) != sign(b, size) && sign(difference, size) != sign(a, size);
    let flags = result_flags(difference, size)
        | if a < b { rflags::CF } else { 0 }
        | if overflow { rflags::OF } else { 0 };
    (difference, flags)
}

fn segment(register: Register) -> Seg {
    match register {
        Register::ES => Seg::Es,
        Register::CS => Seg::Cs,
        Register::SS => Seg::Ss,
        Register::FS => Seg::Fs,
        Register::GS => Seg::Gs,
        _ => Seg::Ds,
    }
}

/// Register, shift and size in bytes.
pub(super) fn gpr(register: Register) -> (Reg, u32, usize) {
    let high = matches!(
        register,
        Register::AH | Register::BH | Register::CH | Register::DH
    );
    let reg = Reg::from_number(register.full_register().number() as u8);
    (reg, if high { 8 } else { 0 }, register.size())
}

fn get(state: &CpuState, register: Register) -> u64 {
    let (reg, shift, size) = gpr(register);
    state.gprs[reg] >> shift & mask(size)
}

fn set(state: &mut CpuState, register: Register, value: u64) {
    let (reg, shift, size) = gpr(register);
    let old = state.gprs[reg];
    state.gprs[reg] = match size {
        // A 32-bit result clears the upper half.
        4 | 8 => value & mask(size),
        _ => old & !(mask(size) << shift) | (value & mask(size)) << shift,
    };
}

impl Guest {
    /// Executes `i`, changing `next`, in which RIP has moved on already.
    pub(super) fn execute(
        &mut self,
        bus: &mut Bus<'_>,
        i: &Instruction,
        next: &mut CpuState,
    ) -> Done {
        if self.policy.split_locks_fault && self.splits_a_lock(i) {
            return Err(Stop::Exception(Exception::alignment()));
        }
        match i.mnemonic() {
            Mnemonic::Nop => Ok(()),
            Mnemonic::Mov => self.mov(bus, i, next),
            Mnemonic::Movzx => {
                let value = self.read(bus, i, 1)?;
                self.write(bus, i, next, value)
            }
            Mnemonic::Lea => {
                let at = self.offset(i);
                self.write(bus, i, next, at)
            }
            Mnemonic::Push => {
                let value = self.read(bus, i, 0)?;
                self.push(bus, next, value, self.bits() as usize / 8)
            }
            Mnemonic::Pop => {
                let value = self.pop(bus, next, self.bits() as usize / 8)?;
                self.write(bus, i, next, value)
            }
            Mnemonic::Xchg => {
                let new = self.read(bus, i, 1)?;
                let old = self.modify(bus, i, next, |_| new)?;
                set(next, i.op1_register(), old);
                Ok(())
            }
            Mnemonic::Xadd => {
                let (add_to, size) = (self.read(bus, i, 1)?, self.size(i, 0));
                let old = self.modify(bus, i, next, |old| add(old, add_to, size).0)?;
                set(next, i.op1_register(), old);
                set_flags(next, add(old, add_to, size).1);
                Ok(())
            }
            Mnemonic::Prefetchnta => {
                let number = self.offset(i) as u32;
                let flushes = self.flushes;
                let usage = Usage {
                    flushes,
                    ..Usage::here()
                };
                self.marks.push((number, usage));
                Ok(())
            }
            _ => self.compute(bus, i, next),
        }
    }

    fn mov(&mut self, bus: &mut Bus<'_>, i: &Instruction, next: &mut CpuState) -> Done {
        let special = |r: Register| r.is_cr() || r.is_dr();
        if special(i.op0_register()) || special(i.op1_register()) {
            return self.mov_special(i, next);
        }
        if i.op0_register().is_segment_register() {
            let selector = self.read(bus, i, 1)? as u16;
            let seg = segment(i.op0_register());
            next.segments[seg as usize] = self.load_segment(bus, seg, selector)?;
            self.shadow = seg == Seg::Ss;
            self.shadow_of_stack = self.shadow;
            return Ok(());
        }
        let value = match i.op1_register().is_segment_register() {
            true => self.state.segments[segment(i.op1_register()) as usize]
                .selector
                .into(),
            false => self.read(bus, i, 1)?,
        };
        self.write(bus, i, next, value)
    }

    fn compute(&mut self, bus: &mut Bus<'_>, i: &Instruction, next: &mut CpuState) -> Done {
        let size = self.size(i, 0);
        let operation: fn(u64, u64, usize) -> (u64, u64) = match i.mnemonic() {
            Mnemonic::Add | Mnemonic::Inc => add,
            Mnemonic::Sub | Mnemonic::Dec | Mnemonic::Cmp => sub,
            Mnemonic::And | Mnemonic::Test => |a, b, size| (a & b, result_flags(a & b, size)),
            Mnemonic::Or => |a, b, size| (a | b, result_flags(a | b, size)),
            Mnemonic::Xor => |a, b, size| (a ^ b, result_flags(a ^ b, size)),
            Mnemonic::Shl => |a, b, size| (a << (b & 31), result_flags(a << (b & 31), size)),
            Mnemonic::Shr => |a, b, size| (a >> (b & 31), result_flags(a >> (b & 31), size)),
            _ => return self.control(bus, i, next),
        };
        let by_one = matches!(i.mnemonic(), Mnemonic::Inc | Mnemonic::Dec);
        let b = if by_one { 1 } else { self.read(bus, i, 1)? };
        let a = match i.mnemonic() {
            Mnemonic::Cmp | Mnemonic::Test => self.read(bus, i, 0)?,
            _ => self.modify(bus, i, next, |a| operation(a, b, size).0)?,
        };
        let (_, flags) = operation(a, b, size);
        let carry = next.rflags & rflags::CF;
        set_flags(
            next,
            if by_one {
                flags & !rflags::CF | carry
            } else {
                flags
            },
        );
        Ok(())
    }

    /// Jumps, calls and flags.
    fn control(&mut self, bus: &mut Bus<'_>, i: &Instruction, next: &mut CpuState) -> Done {
        let word = self.bits() as usize / 8;
        match i.mnemonic() {
            Mnemonic::Jmp if i.op0_kind() == OpKind::FarBranch32 => {
                return self.far_jump(bus, i, next)
            }
            Mnemonic::Jmp => next.rip = self.target(bus, i)?,
            Mnemonic::Call => {
                let target = self.target(bus, i)?;
                self.push(bus, next, next.rip, word)?;
                next.rip = target;
            }
            Mnemonic::Ret => next.rip = self.pop(bus, next, word)?,
            Mnemonic::Loop => {
                let count = get(next, Register::ECX).wrapping_sub(1);
                set(next, Register::ECX, count);
                if count & 0xffff_ffff != 0 {
                    next.rip = i.near_branch_target();
                }
            }
            Mnemonic::Cli => next.rflags &= !rflags::IF,
            Mnemonic::Sti => {
                self.shadow = self.state.rflags & rflags::IF == 0;
                self.shadow_of_stack = false;
                next.rflags |= rflags::IF;
            }
            Mnemonic::Pushfd => self.push(bus, next, self.state.rflags, 4)?,
            Mnemonic::Iretd | Mnemonic::Iret if self.policy.iret => {
                self.returning = true;
                return Err(exit(Exit::Emulate));
            }
            Mnemonic::Iretd | Mnemonic::Iret => {
                if self.policy.masks.is_some() {
                    // Not yet, if it faults: see below.
                    self.nmi_unblocked = std::mem::take(&mut self.nmi_blocked);
                }
                let [rip, cs, flags] = [(); 3].map(|()| self.pop(bus, next, word));
                (next.rip, next.rflags) = (rip?, flags? | rflags::FIXED);
                let code = &mut next.segments[Seg::Cs as usize];
                code.selector = cs? as u16;
                if word == 2 {
                    code.base = u64::from(code.selector) << 4;
                }
                (self.nmi_blocked, self.nmi_unblocked) = (false, false);
            }
            _ if i.condition_code() != ConditionCode::None => {
                if self.holds(i.condition_code()) {
                    next.rip = i.near_branch_target();
                }
            }
            _ => return self.system(bus, i, next),
        }
        Ok(())
    }

    fn system(&mut self, bus: &mut Bus<'_>, i: &Instruction, next: &mut CpuState) -> Done {
        Err(exit(match i.mnemonic() {
            Mnemonic::Cpuid => Exit::Cpuid,
            Mnemonic::Rdmsr => Exit::ReadMsr,
            Mnemonic::Wrmsr => Exit::WriteMsr,
            Mnemonic::Hlt => Exit::Halt,
            Mnemonic::Pause => Exit::Pause,
            Mnemonic::Vmmcall | Mnemonic::Vmcall => Exit::Hypercall,
            Mnemonic::Wbinvd | Mnemonic::Invd => Exit::CacheControl,
            Mnemonic::Xsetbv => Exit::SetXcr,
            Mnemonic::Monitor | Mnemonic::Mwait => Exit::Monitor,
            Mnemonic::Rdpmc => Exit::ReadPmc,
            Mnemonic::Invlpg if !self.policy.invlpg => return Ok(()),
            Mnemonic::Invlpg | Mnemonic::Lmsw | Mnemonic::Clts => Exit::Emulate,
            Mnemonic::In | Mnemonic::Out => self.port(i),
            Mnemonic::Rdtsc => {
                next.gprs[Reg::Rax] = self.tsc & 0xffff_ffff;
                next.gprs[Reg::Rdx] = self.tsc >> 32;
                return Ok(());
            }
            Mnemonic::Lidt | Mnemonic::Lgdt => return self.load_table(bus, i, next),
            Mnemonic::Int => {
                let (vector, next_rip) = (i.immediate8(), next.rip);
                let event = Event::Software { vector, next_rip };
                // On a copy, so that a failure leaves no trace but the event.
                let mut after = self.clone();
                return match after.deliver(bus, event) {
                    Ok(()) => {
                        *next = after.state;
                        Ok(())
                    }
                    Err(stop) => {
                        self.interrupted = Some(event);
                        Err(stop)
                    }
                };
            }
            Mnemonic::Ud2 => return Err(Stop::Exception(Exception::INVALID_OPCODE)),
            other => panic!("the test processor does not know {other:?}"),
        }))
    }

    fn port(&self, i: &Instruction) -> Exit {
        let write = i.mnemonic() == Mnemonic::Out;
        let (data, port) = if write { (1, 0) } else { (0, 1) };
        let port = match i.op_kind(port) {
            OpKind::Immediate8 => i.immediate8().into(),
            _ => self.state.gprs[Reg::Rdx] as u16,
        };
        Exit::Port(PortAccess {
            port,
            size: i.op_register(data).size() as u8,
            write,
            string: false,
        })
    }

    fn load_table(&mut self, bus: &mut Bus<'_>, i: &Instruction, next: &mut CpuState) -> Done {
        let at = self.address(i);
        let limit = bus.read(at, 2, Access::Read)? as u16;
        let base = bus.read(at.wrapping_add(2), 4, Access::Read)?;
        let table = match i.mnemonic() {
            Mnemonic::Lidt => &mut next.idtr,
            _ => &mut next.gdtr,
        };
        (table.limit, table.base) = (limit, base);
        Ok(())
    }

    fn far_jump(&mut self, bus: &mut Bus<'_>, i: &Instruction, next: &mut CpuState) -> Done {
        let segment = self.load_segment(bus, Seg::Cs, i.far_branch_selector())?;
        if !segment.attributes.has(SegmentAttributes::S) {
            // Of what the system has, guests here jump to task-state segments alone.
            return Err(exit(Exit::TaskSwitch));
        }
        next.segments[Seg::Cs as usize] = segment;
        next.rip = i.far_branch32().into();
        Ok(())
    }

    /// What a segment register holds once `selector` is in it (SDM 3A: 3.4.5). Guests here load what they may.
    fn load_segment(
        &mut self,
        bus: &mut Bus<'_>,
        seg: Seg,
        selector: u16,
    ) -> Result<Segment, Stop> {
        let old = self.state.segments[seg as usize];
        if !self.protected() {
            let base = u64::from(selector) << 4;
            return Ok(Segment {
                selector,
                base,
                ..old
            });
        }
        let offset = u64::from(selector & !7);
        let gdt = self.state.gdtr;
        if offset == 0 || offset + 7 > gdt.limit.into() {
            let fault = Exception::general_protection(selector.into());
            return Err(Stop::Exception(fault));
        }
        let d = bus.read(Gpa(gdt.base + offset), 8, Access::Read)?;
        let attributes = SegmentAttributes((d >> 40 & 0xff | d >> 44 & 0xf00) as u16);
        let limit = (d & 0xffff | d >> 32 & 0xf_0000) as u32;
        Ok(Segment {
            selector,
            base: d >> 16 & 0xff_ffff | d >> 32 & 0xff00_0000,
            limit: match attributes.has(SegmentAttributes::G) {
                true => limit << 12 | 0xfff,
                false => limit,
            },
            attributes,
        })
    }

    fn target(&mut self, bus: &mut Bus<'_>, i: &Instruction) -> Result<u64, Stop> {
        match i.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 => Ok(i.near_branch_target()),
            _ => self.read(bus, i, 0),
        }
    }

    fn holds(&self, condition: ConditionCode) -> bool {
        let flag = |flag: u64| self.state.rflags & flag != 0;
        let less = flag(rflags::SF) != flag(rflags::OF);
        match condition {
            ConditionCode::o => flag(rflags::OF),
            ConditionCode::no => !flag(rflags::OF),
            ConditionCode::b => flag(rflags::CF),
            ConditionCode::ae => !flag(rflags::CF),
            ConditionCode::e => flag(rflags::ZF),
            ConditionCode::ne => !flag(rflags::ZF),
            ConditionCode::be => flag(rflags::CF) || flag(rflags::ZF),
            ConditionCode::a => !flag(rflags::CF) && !flag(rflags::ZF),
            ConditionCode::s => flag(rflags::SF),
            ConditionCode::ns => !flag(rflags::SF),
            ConditionCode::p => flag(rflags::PF),
            ConditionCode::np => !flag(rflags::PF),
            ConditionCode::l => less,
            ConditionCode::ge => !less,
            ConditionCode::le => less || flag(rflags::ZF),
            ConditionCode::g => !less && !flag(rflags::ZF),
            ConditionCode::None => true,
        }
    }

    /// Bytes of an operand.
    fn size(&self, i: &Instruction, n: u32) -> usize {
        match i.op_kind(n) {
            OpKind::Register => i.op_register(n).size(),
            OpKind::Memory => i.memory_size().size(),
            _ => self.bits() as usize / 8,
        }
    }

    /// The offset of a memory operand in its segment.
    fn offset(&self, i: &Instruction) -> u64 {
        let part = |register: Register| match register {
            Register::None => 0,
            register => get(&self.state, register),
        };
        let index = part(i.memory_index()).wrapping_mul(i.memory_index_scale().into());
        let sum = part(i.memory_base())
            .wrapping_add(index)
            .wrapping_add(i.memory_displacement64());
        sum & 0xffff_ffff
    }

    fn address(&self, i: &Instruction) -> Gpa {
        let base = self.state.segments[segment(i.memory_segment()) as usize].base;
        Gpa(base.wrapping_add(self.offset(i)) & 0xffff_ffff)
    }

    /// A locked access to two cache lines. (A move to CR8 has the prefix for another reason.)
    fn splits_a_lock(&self, i: &Instruction) -> bool {
        const LINE: u64 = 64;
        let locks = i.has_lock_prefix() || i.mnemonic() == Mnemonic::Xchg;
        if !locks || i.op0_kind() != OpKind::Memory {
            return false;
        }
        self.address(i).0 % LINE + self.size(i, 0) as u64 > LINE
    }

    fn read(&mut self, bus: &mut Bus<'_>, i: &Instruction, n: u32) -> Result<u64, Stop> {
        Ok(match i.op_kind(n) {
            OpKind::Register if i.op_register(n).is_segment_register() => self.state.segments
                [segment(i.op_register(n)) as usize]
                .selector
                .into(),
            OpKind::Register => get(&self.state, i.op_register(n)),
            OpKind::Memory => bus.read(self.address(i), self.size(i, n), Access::Read)?,
            _ => i.immediate(n),
        })
    }

    /// Writes operand 0.
    fn write(
        &mut self,
        bus: &mut Bus<'_>,
        i: &Instruction,
        next: &mut CpuState,
        value: u64,
    ) -> Done {
        match i.op0_kind() {
            OpKind::Memory => bus.write(self.address(i), self.size(i, 0), value)?,
            _ => set(next, i.op0_register(), value),
        }
        Ok(())
    }

    /// Replaces operand 0 by what `f` makes of it; gives what it was.
    fn modify(
        &mut self,
        bus: &mut Bus<'_>,
        i: &Instruction,
        next: &mut CpuState,
        f: impl Fn(u64) -> u64,
    ) -> Result<u64, Stop> {
        let size = self.size(i, 0);
        if i.op0_kind() == OpKind::Memory {
            return Ok(bus.exchange(self.address(i), size, f)?);
        }
        let old = get(&self.state, i.op0_register());
        set(next, i.op0_register(), f(old));
        Ok(old)
    }
}

fn set_flags(state: &mut CpuState, flags: u64) {
    state.rflags = state.rflags & !ARITHMETIC | flags;
}
