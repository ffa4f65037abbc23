// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host in memory, on which the core is tested under plain cargo.
//!
//! [`TestHost`] keeps the host contract to the letter and no further: it counts everything, gives as little as the contract
//! allows, and panics where the core breaks its side. [`heap`] counts and fails allocations.
//! Its processors run small [`guests`], keep all that processors may keep, and note what none allows.
//! [`AdversarialBackend`] runs on them; so does the real SVM backend, down to its assembly: the machine beneath refuses
//! privileged instructions, and the signal that says so has them done by the test host's processor. [`vm`] makes whole VMs.

pub mod backend;
pub mod formats;
pub mod guests;
pub mod heap;
pub mod host;
pub mod pipe;
pub mod processor;
pub mod storm;
pub mod vm;

pub use backend::AdversarialBackend;
pub use host::{Config, TestHost};

use palacios_core::addr::{Gpa, PAGE_SIZE};
use palacios_core::interfaces::GuestMemory;
use palacios_core::memory::walk::AccessKind;
use palacios_core::memory::{FaultError, Memory, Resolved};

/// Gives a page its frame and its translation, as a guest's first write would; no vCPU runs.
pub fn map_page(memory: &Memory<TestHost>, gpa: Gpa) -> Result<Resolved, FaultError> {
    memory.fault(gpa, AccessKind::Write, &|| ())
}

/// Writes to guest memory of a machine without a VM, and maps it.
pub fn put(memory: &Memory<TestHost>, at: Gpa, data: &[u8]) {
    memory.write(at, data).expect("memory is there");
    for page in (at.page().0..at.0 + data.len() as u64).step_by(PAGE_SIZE as usize) {
        map_page(memory, Gpa(page)).expect("memory is there");
    }
}

/// Tests may take long: `V3VEE_SOAK` is 1 in the environment, as `make soak` has it.
pub fn soaks() -> bool {
    std::env::var_os("V3VEE_SOAK").is_some_and(|value| value == "1")
}
