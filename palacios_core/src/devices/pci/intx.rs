// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupt pins: which of the four wires of the PIIX3 a pin leads to, and which interrupt firmware routes a wire to.
//!
//! Each wire, PIRQA to PIRQD, is a line of the machine, which several functions share. The PIIX3 connects it to an interrupt
//! of the PIC pair and the I/O APIC (82371AB: 4.1.10).
#![forbid(unsafe_code)]

use super::Bdf;

/// The wires' lines, as [`InterruptLines::raise`](crate::interfaces::InterruptLines::raise) numbers them.
pub const LINES: [u32; 4] = [0x110, 0x111, 0x112, 0x113];
/// The interrupts to which firmware routes the wires.
pub const USUAL: [u8; 4] = [10, 11, 5, 10];
/// The interrupts to which the guest may route one.
pub const POSSIBLE: [u8; 3] = [5, 10, 11];

/// The wire of a pin, 1 for INTA to 4 for INTD: each slot begins with another one, so that they are shared out. An i440FX begins with PIRQA in slot 1.
pub const fn wire(of: Bdf, pin: u8) -> usize {
    (of.slot().wrapping_add(pin).wrapping_sub(2) & 3) as usize
}

/// The line of that wire.
pub fn line(of: Bdf, pin: u8) -> u32 {
    let [first, ..] = LINES;
    first.wrapping_add(wire(of, pin) as u32)
}

/// The interrupt that a register of the PIIX3 routes a wire to; `None` if it is off, or routed where no wire may go.
pub const fn routed(register: u8) -> Option<u8> {
    match register & 0x8f {
        irq @ (3..=7 | 9..=12 | 14 | 15) => Some(irq),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_shared_out() {
        assert_eq!(
            [1, 2, 3, 4].map(|pin| wire(Bdf::new(1, 0), pin)),
            [0, 1, 2, 3]
        );
        assert_eq!(
            [1, 2, 3, 4].map(|pin| wire(Bdf::new(2, 0), pin)),
            [1, 2, 3, 0]
        );
        assert_eq!(wire(Bdf::new(0, 0), 1), 3);
        assert_eq!(line(Bdf::new(4, 7), 1), LINES[3]);
    }

    #[test]
    fn only_interrupts_of_devices_are_routed_to() {
        let possible: Vec<u8> = (0..=255).filter(|value| routed(*value).is_some()).collect();
        assert!(possible.iter().all(|value| value & 0x80 == 0));
        for irq in [0, 1, 2, 8, 13] {
            assert_eq!(routed(irq), None, "{irq}");
        }
        assert!(POSSIBLE
            .iter()
            .chain(&USUAL)
            .all(|irq| routed(*irq) == Some(*irq)));
    }
}
