// SPDX-License-Identifier: MIT OR Apache-2.0
//! Power management of a PIIX4 (Intel 82371AB, 290562), function 00:01.3: the ports of ACPI's fixed hardware, where the guest wants them.
#![forbid(unsafe_code)]

use super::config::Config;
use super::function::OWN_REGIONS;
use super::{Bdf, Description, Function, Ids, PciDevice, Wires};
use crate::alloc_ext::{try_box, NoMemory};
use crate::devices::acpi::{AcpiPm, TimerWidth, PM1_EVENT_PORT};
use crate::devices::kind::Kind;
use crate::devices::links::Links;
use crate::devices::{Device, IoRegion, Timed};
use crate::state_io::{StateError, StateReader, StateWriter};

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "acpi",
    make: |wanted| Ok(try_box(new(wanted.links)?)?),
    ..Kind::OF_EVERY_PC
};
/// Where it is.
pub const AT: Bdf = Bdf::new(1, 3);

/// The ports' base (82371AB: 7.1.15), and whether it answers there (7.1.30).
const BASE: u8 = 0x40;
const SWITCH: u8 = 0x80;
const ON: u8 = 1 << 0;
/// Bit 0 of the base says that it is one of ports.
const IS_PORTS: u16 = 1 << 0;

/// A new one.
pub fn new(links: &dyn Links) -> Result<Function<impl PciDevice>, NoMemory> {
    let pm = AcpiPm::new(links, TimerWidth::Bits24)?;
    let regions = *AcpiPm::REGIONS;
    Function::new(links, AT, Pm { pm, regions })
}

/// The function.
struct Pm {
    pm: AcpiPm,
    regions: [IoRegion; 2],
}

impl PciDevice for Pm {
    fn description(&self) -> Description {
        let ids = Ids::new(0x8086, 0x7113, 0x06_8000, 3);
        Description {
            pin: 0,
            is_removable: false,
            ..Description::new(KIND.name, ids)
        }
    }
    fn prepare(&mut self, config: &mut Config) {
        config.put(BASE, &(PM1_EVENT_PORT | IS_PORTS).to_le_bytes());
        config.let_write(BASE, &0xffc0u16.to_le_bytes());
        config.put(SWITCH, &[ON]);
        config.let_write(SWITCH, &[ON]);
    }
    fn reset(&mut self, _: &mut Wires) {
        self.pm.reset();
    }
    fn configured(&mut self, wires: &mut Wires) {
        let base = wires.config().word(BASE) & !IS_PORTS;
        let on = wires.config().byte(SWITCH) & ON != 0;
        for (region, usual) in self.regions.iter_mut().zip(AcpiPm::REGIONS) {
            let offset = usual.at.wrapping_sub(PM1_EVENT_PORT.into());
            let at = u64::from(base).wrapping_add(offset);
            *region = usual.moved_to(at).switched(on);
        }
    }
    fn regions(&self) -> &[IoRegion] {
        &self.regions
    }
    fn answers_in_window(&self, bar: usize, offset: u64, write: bool) -> bool {
        let region = bar.wrapping_sub(OWN_REGIONS);
        self.pm.answers_in_window(region, offset, write)
    }
    fn read(&mut self, _: &mut Wires, bar: usize, offset: u64, size: u8) -> u64 {
        self.pm.read(bar.wrapping_sub(OWN_REGIONS), offset, size)
    }
    fn write(&mut self, _: &mut Wires, bar: usize, offset: u64, size: u8, value: u64) {
        let region = bar.wrapping_sub(OWN_REGIONS);
        self.pm.write(region, offset, size, value);
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        self.pm.save(to)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.pm.restore(from)
    }
    fn deadline_ns(&self) -> Option<u64> {
        self.pm.deadline_ns()
    }
    fn tick(&mut self, _: &mut Wires) {
        self.pm.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::{assert_restores, saved, TestMachine};

    #[test]
    fn the_ports_move_and_go() {
        let machine = TestMachine::new();
        let mut pm = new(&machine).unwrap();
        assert_eq!(pm.read(0, 0x40, 4), 0x601);
        assert_eq!(machine.port_read(&mut pm, 0x604, 2), 1, "ACPI mode");
        pm.write(0, 0x40, 4, 0xffff_b03f);
        assert_eq!(pm.read(0, 0x40, 4), 0xb001);
        assert_eq!(machine.port_read(&mut pm, 0xb004, 2), 1);
        assert_eq!(machine.port_read(&mut pm, 0x604, 2), 0xffff);
        let record = saved(|w| pm.save(w));
        pm.write(0, 0x80, 1, 0);
        assert_eq!(machine.port_read(&mut pm, 0xb004, 2), 0xffff, "it is off");
        pm.reset();
        assert_eq!(machine.port_read(&mut pm, 0x604, 2), 1);
        assert_restores(&record, &mut pm);
        assert_eq!(machine.port_read(&mut pm, 0xb004, 2), 1);
    }
}
