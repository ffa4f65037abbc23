// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ISA bridge of a PIIX3 (Intel 82371SB, 290550), function 00:01.0. It routes the four wires of the interrupt pins to interrupts. Whether one of those is
//! triggered by edge or level the PIC pair keeps.
#![forbid(unsafe_code)]

use super::config::Config;
use super::intx::{self, USUAL};
use super::{Bdf, Description, Function, Ids, PciDevice, Wires};
use crate::alloc_ext::try_box;
use crate::devices::kind::Kind;
use crate::state_io::{StateError, StateReader, StateWriter};

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "isa-bridge",
    make: |wanted| Ok(try_box(Function::new(wanted.links, AT, IsaBridge)?)?),
    ..Kind::OF_EVERY_PC
};
/// Where it is.
pub const AT: Bdf = Bdf::new(1, 0);

/// PIRQA to PIRQD route control, a byte each (82371SB: 2.2.8): bits 3:0 the interrupt, bit 7 none.
pub const ROUTES: u8 = 0x60;
/// Deterministic latency control (82371SB: 2.2.13). Bit 1, passive release, is set as firmware leaves it.
const LATENCY: u8 = 0x82;
/// X-bus chip select (82371SB: 2.2.6): clock and keyboard controller are decoded.
const CHIP_SELECT: u8 = 0x4e;

/// The bridge.
struct IsaBridge;

impl PciDevice for IsaBridge {
    fn description(&self) -> Description {
        let ids = Ids::new(0x8086, 0x7000, 0x06_0100, 0);
        Description {
            pin: 0,
            has_more_functions: true,
            is_removable: false,
            ..Description::new(KIND.name, ids)
        }
    }
    fn prepare(&mut self, config: &mut Config) {
        config.put(ROUTES, &USUAL);
        config.let_write(ROUTES, &[0x8f; 4]);
        config.put(LATENCY, &[3]);
        config.let_write(LATENCY, &[0xf]);
        config.put(CHIP_SELECT, &[3]);
    }
    fn reset(&mut self, _: &mut Wires) {}
    fn configured(&mut self, wires: &mut Wires) {
        for (number, wire) in (0..).zip(0..intx::LINES.len()) {
            let route = wires.config().byte(ROUTES.wrapping_add(number));
            wires.lines().route_wire(wire, intx::routed(route));
        }
    }
    fn save(&self, _: &mut StateWriter<'_>) -> Result<(), StateError> {
        Ok(())
    }
    fn restore(&mut self, _: &mut StateReader<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::TestMachine;
    use crate::devices::Device;

    #[test]
    fn registers_route_wires() {
        let machine = TestMachine::new();
        let mut bridge = Function::new(&machine, AT, IsaBridge).unwrap();
        let routes = || *machine.wire_routes.borrow();
        assert_eq!(routes(), USUAL.map(Some));
        bridge.write(0, 0x60, 4, 0x800d_0b05);
        assert_eq!(routes(), [Some(5), Some(11), None, None]);
        assert_eq!(bridge.read(0, 0x60, 4), 0x800d_0b05);
        bridge.reset();
        assert_eq!(routes(), USUAL.map(Some));
        assert_eq!(bridge.read(0, 0xe, 1), 0x80, "it has other functions");
    }
}
