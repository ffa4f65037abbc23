// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory.

pub mod walk;
