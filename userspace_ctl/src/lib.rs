// SPDX-License-Identifier: MIT OR Apache-2.0
//! Controls virtual machines of `v3vee.ko`, and builds the images they start from.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let image = std::fs::read("guest.img")?;
//! let control = v3_ctl::Control::open()?;
//! let vm = control.create(&image, "first")?;
//! let mut console = vm.stream("")?;
//! vm.launch()?;
//! std::io::copy(&mut console, &mut std::io::stdout())?; // Ends when the VM stops.
//! println!("{:?}", vm.wait(None)?);
//! control.free(vm.number())?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Control`] is `/dev/v3vee`, [`Vm`] is `/dev/v3-vmN`, [`Stream`] a byte stream of a guest; each method is one call of the
//! module, described in `v3vee.h`. [`Definition`] reads a TOML file, [`Guest`] makes an image of it.

mod answers;
mod contents;
mod control;
mod definition;
mod device;
mod error;
mod guest;
mod interrupts;
mod ioctl;
mod memory_dump;
mod node;
mod ram_disk;
mod saved;
mod stream;
mod units;
mod vcpu_report;
mod vm;
mod walk;

pub use answers::{Feature, Info, Reason, Stat, State, Stopped};
pub use contents::{read_file, BuildError, Contents};
pub use control::{Control, Version};
pub use definition::{Definition, DefinitionError};
pub use device::{Device, DeviceRegion, DiskRequest, Request, Role, Space};
pub use error::{Call, Error};
pub use guest::{
    check_memory, check_vcpus, feature_taken_away, features_to_take_away, Boot, Guest, ModuleFile,
    OnTripleFault, SerialPort,
};
pub use interrupts::{Chipset, Interrupts};
pub use memory_dump::MemoryDump;
pub use node::{node_of, number_of, CONTROL_NODE};
pub use ram_disk::RamDisk;
pub use saved::{RawSection, SavedDeviceInfo, SavedError, SavedReader, SavedState, Saving};
pub use stream::Stream;
pub use units::{format_bytes, parse_length, parse_memory, parse_seconds};
pub use vcpu_report::{Hex, VcpuReport};
pub use vm::Vm;
pub use walk::{Place, Walk};
