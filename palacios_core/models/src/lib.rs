// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proofs that no call to a vCPU is lost, and none made without need, that no vCPU runs while somebody holds its VM, and that no frame goes while somebody uses it: loom runs every
//! order of the steps, and every value that a weakly ordered processor could read. And that no access reaches a device that is gone.
//!
//! What is proved is the core's own source: `pending.rs`, `presence.rs`, `run_word.rs`, `stuck.rs`, of the memory `frame_word.rs` and `gate.rs`, and of
//! the buses `map.rs` and `doorbell.rs`, compiled against loom's atomics. What stands
//! around them here, a vCPU's loop and a host's kick, is cut down to the order of its steps. Each model runs again with all
//! orderings relaxed or a step left out, and must then fail: it proves something.
#![cfg(test)]
extern crate alloc;

#[path = "../../src/alloc_ext.rs"]
#[expect(dead_code, reason = "the models need a part of it")]
mod alloc_ext;
mod atomic;
mod bus;
#[path = "../../src/devices/doorbell.rs"]
#[expect(dead_code, reason = "the models need a part of it")]
mod doorbell;
#[path = "../../src/memory/frame_word.rs"]
#[expect(dead_code, reason = "the models need a part of it")]
mod frame_word;
#[path = "../../src/memory/gate.rs"]
mod gate;
#[path = "../../src/devices/layout.rs"]
#[expect(dead_code, reason = "the models need a part of it")]
mod layout;
#[path = "../../src/devices/map.rs"]
mod map;
mod memory;
mod models;
#[path = "../../src/names.rs"]
#[expect(dead_code, reason = "the models need a part of it")]
mod names;
#[path = "../../src/interrupts/pending.rs"]
#[expect(dead_code, reason = "the models need a part of it")]
mod pending;
#[path = "../../src/vcpu/presence.rs"]
mod presence;
#[path = "../../src/devices/region.rs"]
#[expect(dead_code, reason = "the models need a part of it")]
mod region;
#[path = "../../src/vm/run_word.rs"]
#[expect(dead_code, reason = "the models need a part of it")]
mod run_word;
#[path = "../../src/vm/stuck.rs"]
mod stuck;
mod vcpu;
mod worker;
