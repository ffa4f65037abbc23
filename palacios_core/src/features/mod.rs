// SPDX-License-Identifier: MIT OR Apache-2.0
//! The features of a guest's processor: which it has, and why it lacks the others.
//!
//! One [`TABLE`] says for each feature where CPUID tells of it, whether guests are offered it, and what is there with it alone:
//! bits of CR4 and EFER, components of XCR0. What CPUID answers, what those registers take, which model-specific registers there
//! are and what `v3 info --cpuid` prints follows from it. A guest's write of CR0, CR4, EFER or XCR0 is judged by it in
//! `vcpu/control_registers.rs`. A guest never has what its CPUID does not show, as far as the
//! processor lets the VMM see to that.
#![forbid(unsafe_code)]

mod guest;
mod msr_gate;
mod set;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod verdict;

pub use guest::GuestFeatures;
pub(crate) use guest::SECTION;
pub use set::FeatureSet;
pub use table::{Feature, Offer, Row, Word, TABLE};
pub use verdict::{judge, Absence, Judge, Verdict};
