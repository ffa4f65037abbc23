// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lightweight kernel: one address space, memory in large pieces, threads at home on cores, no tick. It knows nothing of
//! virtual machines; of `palacios_core` it uses `alloc_ext` alone.
//!
//! Its layers, from the bottom up: a file uses those of its own layer and of the layers before it.

// Base: needs nothing of the kernel.
pub mod cpu;
mod cpuid;
mod intrinsics;
mod layout;
pub mod log;
pub mod predictions;
pub mod serial;
pub mod stop;
mod symbols;
pub mod sync;

// Memory.
pub mod memory;
pub mod shared;

// What each CPU has of its own.
mod per_cpu;

// Faults and traps.
mod fault;
mod frame;
mod panic;
mod trap;

// Time.
pub mod time;

// What ACPI tells, and the interrupt controllers.
pub mod acpi;
mod apic;

// Threads, and what wakes them.
pub mod calls;
pub mod serial_input;
pub mod thread;

// Bring-up.
mod boot;
mod features;
pub mod loader;
pub mod start;
