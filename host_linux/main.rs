// SPDX-License-Identifier: GPL-2.0
//! v3vee: runs virtual machines. The Linux half of Palacios.

extern crate alloc;

mod checks;
mod control;
mod counters;
mod cpus;
mod descriptor;
mod device_calls;
mod device_refusal;
mod disk_calls;
mod error;
mod ffi;
mod file_store;
mod hardware;
mod host;
mod info;
mod load_calls;
mod look;
mod look_calls;
mod memory;
mod misc_device;
mod options;
mod payer;
mod queue;
mod refusal;
mod report;
mod saving;
mod sleep;
mod stream;
mod sync;
mod threads;
mod user;
mod virtualization;
mod vm_calls;
mod vm_file;
mod vm_node;
mod vms;
mod waiters;
mod window;

use kernel::{prelude::*, sync::Arc};

module! {
    type: V3vee,
    name: "v3vee",
    authors: ["The v3vee authors"],
    description: "Palacios, an embeddable virtual machine monitor",
    license: "GPL",
}

/// What the module is, while it is loaded. No VM is left when it is dropped: each holds the module.
struct V3vee {
    control: Arc<control::Control>,
    _counters: counters::Directory,
    _homecoming: threads::Homecoming,
}

/// What the kernel's `build_assert!` calls where it fails. An optimiser finds that none does, and leaves no call; without one
/// (PROFILE=debug) the calls that cannot be reached are still there, and want something to lead to.
#[cfg(unoptimised)]
#[export_name = "rust_build_error"]
fn build_error(what: &'static str) -> ! {
    panic!("{what}");
}

impl kernel::Module for V3vee {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let hardware = hardware::Hardware::enable()?;
        // What serves all VMs is not counted.
        counters::start_from_zero();
        file_store::init();
        let homecoming = threads::Homecoming::enable()?;
        let features = hardware.features();
        let control = control::Control::new(hardware)?;
        pr_info!(
            "{} with {} address-space tags; /dev/v3vee is ready\n",
            features.backend,
            features.address_space_tags
        );
        let counters = counters::Directory::new();
        checks::publish(&counters);
        Ok(Self {
            control,
            _counters: counters,
            _homecoming: homecoming,
        })
    }
}

impl Drop for V3vee {
    fn drop(&mut self) {
        self.control.close();
    }
}
