// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile guest, a hostile far end and a hostile record at the serial port. It may not panic, lose a byte that it has
//! taken, name an interrupt with its line down, or save what it would not restore.
#![forbid(unsafe_code)]

use crate::Target;
use palacios_core::devices::testing::{assert_restores, assert_survives, saved};
use palacios_core::devices::testing::{TestMachine, TestStream};
use palacios_core::devices::uart::{ComPort, Uart};
use palacios_core::devices::{Device, Timed};

/// The target.
pub const TARGET: Target = Target {
    name: "uart",
    run,
    header_bytes: 0,
    step_bytes: 4,
};

fn run(data: &[u8]) {
    let (machine, stream) = (TestMachine::new(), TestStream::default());
    let fresh = || Uart::new(&machine, ComPort::Com1, Box::new(stream.clone())).unwrap();
    let mut uart = fresh();
    let (steps, rest) = crate::steps(data);
    for [what, a, b, c] in &steps {
        let port = 0x3f8 + u16::from(a & 7);
        let size = 1 << (*a >> 3 & 3).min(2);
        match what % 6 {
            0 => _ = machine.port_read(&mut uart, port, size),
            1 | 2 => {
                let value = u32::from_le_bytes([*b, *c, *b, *c]);
                machine.port_write(&mut uart, port, size, value);
            }
            3 => {
                stream.give_input(&[*b; 40][..usize::from(a % 40)]);
                uart.input().unwrap().input_ready();
            }
            4 => {
                machine.advance_ns(u64::from(u32::from_le_bytes([*a, *b, *c, 0])));
                uart.tick();
                let now = machine.now_ns.get();
                assert!(uart.deadline_ns().is_none_or(|due| due > now));
            }
            _ => {
                let record = saved(|w| uart.save(w));
                let line = machine.line(4);
                uart = fresh();
                assert_restores(&record, &mut uart);
                assert_eq!(machine.line(4), line);
            }
        }
    }
    let line = machine.line(4);
    assert_eq!(machine.inb(&mut uart, 0x3fa) & 1 == 0, line);
    assert_survives(rest, &mut uart);
    let mut record = saved(|w| uart.save(w));
    if let [index, xor, ..] = data {
        let at = usize::from(*index) % record.len();
        record[at] ^= xor;
    }
    assert_survives(&record, &mut uart);
}
