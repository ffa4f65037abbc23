// SPDX-License-Identifier: MIT OR Apache-2.0
//! Privileged instructions in tests: the machine beneath refuses them, and the signal that tells so has them done by the
//! test host's processor instead. The code under test is what a kernel would run, down to its assembly.

use super::fixups;
use super::svm::{self, Run, TSC_AUX};
use super::vmcb::Vmcb;
use crate::{heap, TestHost};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use palacios_core::host::CpuId;
use palacios_core::state::Gprs;
use std::sync::Once;

const LA57: u64 = 1 << 12;

/// From now on, this process's privileged instructions are the test host's processors'.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        fixups::prepare();
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

/// The registers at the instruction.
struct Registers<'a>(&'a mut [i64; 23]);

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

impl Registers<'_> {
    fn get(&self, n: usize) -> u64 {
        self.0[PLACES[n] as usize] as u64
    }
    fn set(&mut self, n: usize, value: u64) {
        self.0[PLACES[n] as usize] = value as i64;
    }
    fn rip(&mut self) -> &mut i64 {
        &mut self.0[libc::REG_RIP as usize]
    }
    fn edx_eax(&self) -> u64 {
        self.get(2) << 32 | self.get(0) & 0xffff_ffff
    }
}

extern "C" fn handle(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the context of the thread that it stopped.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let mut registers = Registers(&mut context.uc_mcontext.gregs);
    let done = heap::exempt(|| emulate(&mut registers));
    if !done {
        // Somebody's mistake: it strikes again, and for good.
        // SAFETY: the default action is always allowed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Does the instruction at RIP; `false` if it is none that this knows, or not the test host's.
fn emulate(registers: &mut Registers<'_>) -> bool {
    let Some(host) = TestHost::here() else {
        return false;
    };
    let rip = *registers.rip() as u64;
    // SAFETY: the instruction was fetched just now; what follows it is code of this process as well.
    let bytes = unsafe { std::slice::from_raw_parts(rip as *const u8, 15) };
    let i = Decoder::with_ip(64, bytes, rip, DecoderOptions::AMD).decode();
    let cpu = host.window_cpu().unwrap_or(CpuId(0));
    let known = match i.mnemonic() {
        _ if is_off(&host, cpu, &i) => return fault(registers),
        Mnemonic::Mov => moved(&host, cpu, &i, registers),
        _ => system(&host, cpu, &i, registers),
    };
    if known {
        *registers.rip() += i.len() as i64;
    }
    known
}

/// The instruction faults as long as SVM is off.
fn is_off(host: &TestHost, cpu: CpuId, i: &Instruction) -> bool {
    let svm = matches!(
        i.mnemonic(),
        Mnemonic::Clgi | Mnemonic::Stgi | Mnemonic::Vmload | Mnemonic::Vmsave | Mnemonic::Vmrun
    );
    svm && !host.processors().cpu(cpu).svm.is_on()
}

/// The instruction faults: goes on where the exception table says; `false` if that does not know.
fn fault(registers: &mut Registers<'_>) -> bool {
    let to = fixups::after(*registers.rip() as u64);
    *registers.rip() = to.unwrap_or(*registers.rip() as u64) as i64;
    to.is_some()
}

fn system(host: &TestHost, cpu: CpuId, i: &Instruction, registers: &mut Registers<'_>) -> bool {
    let mut core = host.processors().cpu(cpu);
    let rax = registers.get(0);
    match i.mnemonic() {
        Mnemonic::Cli => core.svm.interrupts = false,
        Mnemonic::Sti => core.svm.interrupts = true,
        Mnemonic::Clgi => core.svm.global_off = true,
        Mnemonic::Stgi => core.svm.global_off = false,
        Mnemonic::Vmsave => core.svm.vmsave(cpu, Vmcb::new(host, rax)),
        Mnemonic::Vmload => core.svm.vmload(Vmcb::new(host, rax), rax),
        Mnemonic::Rdmsr => {
            let index = registers.get(1) as u32;
            let value = match (index, core.svm.msrs.get(&index)) {
                (TSC_AUX, None) => cpu.0.into(),
                _ => core.svm.msr(index),
            };
            registers.set(0, value & 0xffff_ffff);
            registers.set(2, value >> 32);
        }
        Mnemonic::Wrmsr => {
            let (index, value) = (registers.get(1) as u32, registers.edx_eax());
            core.svm.msrs.insert(index, value);
        }
        Mnemonic::Xsetbv => core.svm.xcr0 = registers.edx_eax(),
        Mnemonic::Vmrun => {
            drop(core);
            vmrun(host, cpu, registers);
        }
        _ => return false,
    }
    true
}

fn vmrun(host: &TestHost, cpu: CpuId, registers: &mut Registers<'_>) {
    let mut gprs = Gprs::default();
    for (n, value) in gprs.0.iter_mut().enumerate() {
        *value = registers.get(n);
    }
    let (rax, rsp) = (registers.get(0), registers.get(4));
    let run = Run {
        host,
        cpu,
        at: rax,
        gprs: &mut gprs,
    };
    run.vmrun();
    for (n, value) in gprs.0.into_iter().enumerate() {
        registers.set(n, value);
    }
    // These two are the host's again.
    registers.set(0, rax);
    registers.set(4, rsp);
}

/// Moves to and from control and debug registers.
fn moved(host: &TestHost, cpu: CpuId, i: &Instruction, registers: &mut Registers<'_>) -> bool {
    let mut core = host.processors().cpu(cpu);
    let (to, from) = (i.op0_register(), i.op1_register());
    let general = |register: Register| register.full_register().number();
    match (to, from) {
        (to, Register::CR4) => {
            let five = host.processors().config.format.levels == 5;
            registers.set(general(to), if five { LA57 } else { 0 });
        }
        (to, from) if from.is_cr() => registers.set(general(to), 0),
        (to, from) if from.is_dr() => {
            let value = core.svm.debug_registers[from.number()];
            registers.set(general(to), value);
        }
        (to, from) if to.is_dr() => {
            core.svm.debug_registers[to.number()] = registers.get(general(from));
        }
        _ => return false,
    }
    true
}

/// The CPUID that the backend is to see.
pub fn cpuid(host: &TestHost) -> impl Fn(u32, u32) -> [u32; 4] {
    let config = host.processors().config.clone();
    move |leaf, _| svm::cpuid(leaf, config.next_rip, config.flush_by_tag, config.tags)
}
