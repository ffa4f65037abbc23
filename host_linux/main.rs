// SPDX-License-Identifier: GPL-2.0
//! v3vee: runs virtual machines. The Linux half of Palacios.

mod counters;
mod cpus;
mod ffi;
mod host;
mod memory;
mod misc;
mod queue;
mod stream;
mod sync;
mod threads;
mod window;

use kernel::prelude::*;

module! {
    type: V3vee,
    name: "v3vee",
    authors: ["The v3vee authors"],
    description: "Palacios, an embeddable virtual machine monitor",
    license: "GPL",
}

struct V3vee {
    _counters: counters::Directory,
}

impl kernel::Module for V3vee {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _counters: counters::Directory::new(),
        })
    }
}
