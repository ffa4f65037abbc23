// SPDX-License-Identifier: MIT OR Apache-2.0
//! An embeddable virtual machine monitor.
//!
//! The core knows guests. A host shim knows one operating system and implements [`host::Host`]; a backend knows one
//! vendor's instructions and implements `backend::Backend`. Nothing else knows any of the three.
#![cfg_attr(not(test), no_std)]
extern crate alloc;
#[cfg(all(not(test), feature = "test-support"))]
extern crate std;

// What vCPUs are called by. The models of `palacios_core/models` have loom's in their place.
use core::sync::atomic;

pub mod addr;
pub mod alloc_ext;
pub mod backend;
pub mod block;
pub mod boot;
mod bytes;
pub mod checksum;
pub mod clock;
pub mod conformance;
pub mod devices;
pub mod emulator;
pub mod features;
mod file_kind;
pub mod host;
pub mod image;
pub mod interfaces;
pub mod interrupts;
pub mod memory;
pub mod names;
pub mod pump;
pub mod ram;
pub mod regions;
pub mod ring;
pub mod saved_file;
pub mod sections;
pub mod state;
pub mod state_io;
pub mod stats;

#[cfg(test)]
#[path = "boot/multiboot/oracle.rs"]
mod multiboot_oracle;
pub mod vcpu;
pub mod vm;
pub mod worker;
pub mod xsave;
