// SPDX-License-Identifier: MIT OR Apache-2.0
//! Privileged instructions in tests: the machine beneath refuses them, and the signal that tells so has them done by the
//! test host's processor instead, or that of another [`HostMachine`]. The code under test is what a kernel would run, down to its assembly.

use super::svm::{self, Run, TSC_AUX};
use super::vmcb::Vmcb;
use super::{breakpoints, fixups, vmx, HostMachine};
use crate::{heap, TestHost};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use palacios_core::host::CpuId;
use palacios_core::state::{cr4, Gprs};
use std::sync::{Arc, Once, OnceLock};

/// Whose processors do the privileged instructions of threads that are on no test host.
static MACHINE: OnceLock<Arc<dyn HostMachine>> = OnceLock::new();

/// From now on, this process's privileged instructions are done by the processors of `machine`; on threads of a test host by
/// that one's. Once in a process.
pub fn install_for(machine: Arc<dyn HostMachine>) {
    assert!(MACHINE.set(machine).is_ok(), "a process has one machine");
    install();
}

/// From now on, this process's privileged instructions are the test host's processors'.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        fixups::prepare();
        breakpoints::set();
        for signal in [libc::SIGSEGV, libc::SIGILL] {
            // SAFETY: the handler is a function of the right type; all other fields may be zero.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handle as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    });
}

/// The machine at the instruction: registers, and the process's memory.
pub(crate) struct Machine<'a>(&'a mut [i64; 23]);

/// Where each general register is, in the order of their numbers.
const PLACES: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

impl Machine<'_> {
    /// A general register, as far as the instruction names it.
    pub fn get(&self, register: Register) -> u64 {
        let value = self.full(register.full_register().number());
        value & (u64::MAX >> (64 - 8 * register.size() as u32))
    }
    pub fn set(&mut self, register: Register, value: u64) {
        let n = register.full_register().number();
        let value = match register.size() {
            2 => self.full(n) & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
        self.0[PLACES[n] as usize] = value as i64;
    }
    fn full(&self, n: usize) -> u64 {
        self.0[PLACES[n] as usize] as u64
    }
    pub fn gprs(&self) -> Gprs {
        Gprs(std::array::from_fn(|n| self.full(n)))
    }
    /// All but RSP.
    pub fn set_gprs(&mut self, gprs: &Gprs) {
        const RSP: usize = 4;
        for (n, value) in gprs.0.into_iter().enumerate().filter(|(n, _)| *n != RSP) {
            self.0[PLACES[n] as usize] = value as i64;
        }
    }
    pub fn edx_eax(&self) -> u64 {
        self.get(Register::RDX) << 32 | self.get(Register::EAX)
    }
    fn rip(&mut self) -> &mut i64 {
        &mut self.0[libc::REG_RIP as usize]
    }
    /// Goes on elsewhere, with RFLAGS clear but for what user mode cannot do without.
    pub fn go_on(&mut self, rip: u64, rsp: u64) {
        const IF: i64 = 1 << 9;
        *self.rip() = rip as i64;
        self.0[libc::REG_RSP as usize] = rsp as i64;
        self.0[libc::REG_EFL as usize] = IF | 2;
    }
    pub fn set_flags(&mut self, which: u64, to: u64) {
        let flags = &mut self.0[libc::REG_EFL as usize];
        *flags = *flags & !(which as i64) | to as i64;
    }
    /// The address of the memory operand.
    pub fn address(&self, i: &Instruction) -> u64 {
        let part = |register: Register| match register {
            Register::None | Register::RIP => 0,
            register => self.get(register),
        };
        let index = part(i.memory_index()).wrapping_mul(i.memory_index_scale().into());
        part(i.memory_base())
            .wrapping_add(index)
            .wrapping_add(i.memory_displacement64())
    }
    pub fn word(&self, at: u64) -> u64 {
        // SAFETY: what the instruction would have read.
        unsafe { (at as *const u64).read_unaligned() }
    }
    /// GDTR or IDTR in memory: limit and base.
    pub fn load_table(&self, at: u64) -> (u16, u64) {
        // SAFETY: as above.
        let limit = unsafe { (at as *const u16).read_unaligned() };
        (limit, self.word(at + 2))
    }
    pub fn store_table(&self, at: u64, limit: u16, base: u64) {
        // SAFETY: what the instruction would have written.
        unsafe {
            (at as *mut u16).write_unaligned(limit);
            (at as *mut u64).byte_add(2).write_unaligned(base);
        }
    }
}

/// What became of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// It is done; the next one follows.
    Next,
    /// It is done, and went on elsewhere.
    Elsewhere,
    /// It faults.
    Faults,
    /// This processor does not know it.
    Unknown,
}

extern "C" fn handle(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the context of the thread that it stopped.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let mut machine = Machine(&mut context.uc_mcontext.gregs);
    let done = heap::exempt(|| emulate(&mut machine));
    if !done {
        // Somebody's mistake: it strikes again, and for good.
        // SAFETY: the default action is always allowed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Does the instruction at RIP; `false` if it is none that this knows, or not the test host's.
fn emulate(machine: &mut Machine<'_>) -> bool {
    let test_host = TestHost::here();
    let host: &dyn HostMachine = match (&test_host, MACHINE.get()) {
        (Some(host), _) => host,
        (None, Some(host)) => host.as_ref(),
        (None, None) => return false,
    };
    let rip = *machine.rip() as u64;
    let bytes = breakpoints::code(rip);
    let intel = host.processors().config.vmx.is_some();
    let options = match intel {
        true => DecoderOptions::NONE,
        false => DecoderOptions::AMD,
    };
    let i = Decoder::with_ip(64, &bytes, rip, options).decode();
    let cpu = host.window_cpu().unwrap_or(CpuId(0));
    let done = match i.mnemonic() {
        _ if intel => vmx::emulate(host, cpu, &i, machine),
        _ if is_off(host, cpu, &i) => Done::Faults,
        Mnemonic::Mov => moved(host, cpu, &i, machine),
        _ => system(host, cpu, &i, machine),
    };
    match done {
        Done::Next => *machine.rip() += i.len() as i64,
        Done::Elsewhere => {}
        Done::Faults => return fault(machine),
        Done::Unknown => return false,
    }
    true
}

/// The instruction faults as long as SVM is off.
fn is_off(host: &dyn HostMachine, cpu: CpuId, i: &Instruction) -> bool {
    let svm = matches!(
        i.mnemonic(),
        Mnemonic::Clgi | Mnemonic::Stgi | Mnemonic::Vmload | Mnemonic::Vmsave | Mnemonic::Vmrun
    );
    svm && !host.processors().cpu(cpu).svm.is_on()
}

/// The instruction faults: goes on where the exception table says; `false` if that does not know.
fn fault(machine: &mut Machine<'_>) -> bool {
    let to = fixups::after(*machine.rip() as u64);
    *machine.rip() = to.unwrap_or(*machine.rip() as u64) as i64;
    to.is_some()
}

fn system(host: &dyn HostMachine, cpu: CpuId, i: &Instruction, machine: &mut Machine<'_>) -> Done {
    let mut core = host.processors().cpu(cpu);
    let rax = machine.get(Register::RAX);
    match i.mnemonic() {
        Mnemonic::Cli => core.svm.interrupts = false,
        Mnemonic::Sti => core.svm.interrupts = true,
        Mnemonic::Clgi => core.svm.global_off = true,
        Mnemonic::Stgi => core.svm.global_off = false,
        Mnemonic::Vmsave => core.svm.vmsave(cpu, Vmcb::new(host, rax)),
        Mnemonic::Vmload => core.svm.vmload(Vmcb::new(host, rax), rax),
        Mnemonic::Rdmsr => {
            let index = machine.get(Register::RCX) as u32;
            let value = match (index, core.svm.msrs.get(&index)) {
                (TSC_AUX, None) => cpu.0.into(),
                _ => core.svm.msr(index),
            };
            machine.set(Register::RAX, value & 0xffff_ffff);
            machine.set(Register::RDX, value >> 32);
        }
        Mnemonic::Wrmsr => {
            let (index, value) = (machine.get(Register::RCX) as u32, machine.edx_eax());
            core.svm.msrs.insert(index, value);
        }
        Mnemonic::Xsetbv => core.svm.xcr0 = machine.edx_eax(),
        Mnemonic::Vmrun => {
            drop(core);
            vmrun(host, cpu, machine);
        }
        _ => return Done::Unknown,
    }
    Done::Next
}

fn vmrun(host: &dyn HostMachine, cpu: CpuId, machine: &mut Machine<'_>) {
    let mut gprs = machine.gprs();
    let rax = machine.get(Register::RAX);
    let run = Run {
        host,
        cpu,
        at: rax,
        gprs: &mut gprs,
    };
    run.vmrun();
    machine.set_gprs(&gprs);
    // Like RSP, this is the host's again.
    machine.set(Register::RAX, rax);
}

/// Moves to and from control and debug registers.
fn moved(host: &dyn HostMachine, cpu: CpuId, i: &Instruction, machine: &mut Machine<'_>) -> Done {
    let mut core = host.processors().cpu(cpu);
    let (to, from) = (i.op0_register(), i.op1_register());
    match (to, from) {
        (to, Register::CR4) => {
            let five = host.processors().config.format.levels == 5;
            machine.set(to, cr4::MCE | if five { cr4::LA57 } else { 0 });
        }
        (to, from) if from.is_cr() => machine.set(to, 0),
        (to, from) if from.is_dr() => {
            let value = core.svm.debug_registers[from.number()];
            machine.set(to, value);
        }
        (to, from) if to.is_dr() => {
            core.svm.debug_registers[to.number()] = machine.get(from);
        }
        _ => return Done::Unknown,
    }
    Done::Next
}

/// The CPUID that the backend is to see.
pub fn cpuid(host: &dyn HostMachine) -> impl Fn(u32, u32) -> [u32; 4] {
    let config = host.processors().config.clone();
    move |leaf, _| match config.vmx {
        Some(_) => vmx::caps::cpuid(&config, leaf),
        None => svm::cpuid(leaf, config.next_rip, config.flush_by_tag, config.tags),
    }
}
