// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual CPU: its loop, and the one dispatch of exits.
//!
//! ```text
//!  run.rs            the loop: what is due, then entries in a window
//!   ├─ deliver.rs    what the next entry brings: interrupts, exceptions
//!   ├─ timers.rs     what is due, and when the next is
//!   └─ dispatch.rs   an exit, and who sees to it: instructions.rs, msr.rs, emulate.rs, exceptions.rs, cause.rs
//!  owned.rs          the vCPU, which belongs to its thread alone
//!  context.rs        what its methods need besides: the VM's shared part, the backend, its own shared part
//!  shared.rs         what others see of a vCPU, and leave for it
//! ```
//!
//! A [`Vcpu`] belongs to its thread alone. What others see of it, and leave for it, is its [`VcpuShared`].
#![forbid(unsafe_code)]

mod cause;
mod clock;
mod context;
mod cpuid;
mod deliver;
mod dispatch;
mod emulate;
mod exceptions;
mod instructions;
pub mod last_exits;
mod msr;
mod msrs;
mod owned;
mod presence;
mod pvclock;
pub mod report;
mod run;
mod shared;
mod tick_cost;
mod timers;
mod times;
mod tsc;

pub(crate) use context::RunContext;
pub(crate) use owned::reset_shared;
pub use owned::{Activity, Vcpu};
pub use shared::VcpuShared;
