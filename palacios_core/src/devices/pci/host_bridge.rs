// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host bridge of an i440FX (Intel 82441FX datasheet, 290549), function 00:00.0. Its registers for the memory from 640 KiB to 1 MiB keep what is written and change
//! nothing: all of that is RAM.
#![forbid(unsafe_code)]

use super::config::Config;
use super::{Bdf, Description, Function, Ids, PciDevice, Wires};
use crate::alloc_ext::try_box;
use crate::devices::kind::Kind;
use crate::state_io::{StateError, StateReader, StateWriter};

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "host-bridge",
    make: |wanted| Ok(try_box(Function::new(wanted.links, AT, HostBridge)?)?),
    ..Kind::OF_EVERY_PC
};
/// Where it is.
pub const AT: Bdf = Bdf::new(0, 0);

/// Programmable attribute map, and SMRAM control (82441FX: 3.2.15, 3.2.21).
const ATTRIBUTES: u8 = 0x59;
const SMRAM: u8 = 0x72;

/// The bridge.
struct HostBridge;

impl PciDevice for HostBridge {
    fn description(&self) -> Description {
        let ids = Ids::new(0x8086, 0x1237, 0x06_0000, 2);
        Description {
            pin: 0,
            is_removable: false,
            ..Description::new(KIND.name, ids)
        }
    }
    fn prepare(&mut self, config: &mut Config) {
        config.let_write(ATTRIBUTES, &[0xf0, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        config.put(ATTRIBUTES, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        config.put(SMRAM, &[2]);
    }
    fn reset(&mut self, _: &mut Wires) {}
    fn save(&self, _: &mut StateWriter<'_>) -> Result<(), StateError> {
        Ok(())
    }
    fn restore(&mut self, _: &mut StateReader<'_>) -> Result<(), StateError> {
        Ok(())
    }
}
