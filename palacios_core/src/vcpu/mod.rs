// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual CPU: its steps, and the one dispatch of exits.
//!
//! ```text
//!  run.rs            a step: what is due, then entries in a window
//!   ├─ deliver.rs    what the next entry brings: interrupts, exceptions
//!   ├─ timers.rs     what is due, and when the next is
//!   ├─ settle.rs     exits that are answered in the window, by plain instructions (length.rs)
//!   └─ dispatch.rs   an exit, and who sees to it:
//!       ├─ instructions.rs    CPUID (cpuid.rs), HLT, PAUSE, XSETBV, hypercalls
//!       ├─ msr_access.rs      RDMSR and WRMSR; what the core keeps is in msr_values.rs and tsc.rs
//!       ├─ emulate.rs         what the emulator executes, with the rules of control_registers.rs; code.rs finds the instruction
//!       ├─ exceptions.rs      faults and debug traps on their way to the guest
//!       └─ cause.rs           a triple fault: which exception began it
//!  saved.rs          writing it down (record.rs), and going on from that
//!  owned.rs          the vCPU, which belongs to whoever steps it
//!  on_backend.rs     the same, as the VM has it: whatever backend runs it
//!  context.rs        what its methods need besides: outside of a window all of the VM, in a window only what never sleeps
//!  shared.rs         what others see of a vCPU, and leave for it; presence.rs whether it must be fetched for that
//!  report.rs         a debugger's look at a vCPU; interrupts_look.rs at its interrupts
//! ```
//!
//! A [`Vcpu`] belongs to whoever steps it, most of the time its thread. What others see of it, and leave for it, is its [`VcpuShared`].
#![forbid(unsafe_code)]

mod cause;
mod clock;
mod code;
mod code_pages;
mod context;
mod control_registers;
mod cpuid;
mod deliver;
mod dispatch;
mod emulate;
mod exceptions;
mod instructions;
pub mod interrupts_look;
pub mod last_exits;
mod length;
mod msr_access;
mod msr_values;
mod on_backend;
mod owned;
mod presence;
mod pvclock;
pub mod record;
pub mod report;
mod run;
mod saved;
mod settle;
mod shared;
mod tick_cost;
mod timers;
mod times;
mod tsc;

pub(crate) use on_backend::{AnyVcpu, OnBackend, ProcessorOf};
pub(crate) use owned::reset_shared;
pub use owned::{Activity, Vcpu};
pub(crate) use run::VcpuStep;
pub use shared::VcpuShared;
