// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile guest, a hostile far end and a hostile record at the serial port. It may not panic, lose a byte that it has
//! taken, name an interrupt with its line down, or save what it would not restore.
#![forbid(unsafe_code)]

use crate::Target;
use palacios_core::devices::testing::{assert_restores, assert_survives, saved};
use palacios_core::devices::testing::{TestMachine, TestStream};
use palacios_core::devices::uart::{ComPort, Uart};
use palacios_core::devices::{Device, PortIo, Timed};

/// The target.
pub const TARGET: Target = Target {
    name: "uart",
    run,
    header_bytes: 0,
    step_bytes: 4,
};

fn run(data: &[u8]) {
    let (machine, stream) = (TestMachine::new(), TestStream::default());
    let mut uart = Uart::new(ComPort::Com1, Box::new(stream.clone()));
    let (steps, rest) = crate::steps(data);
    for [what, a, b, c] in &steps {
        let port = 0x3f8 + u16::from(a & 7);
        let size = 1 << (a >> 3 & 3);
        let cx = machine.cx();
        match what % 6 {
            0 => _ = uart.port_read(&cx, port, size),
            1 | 2 => uart.port_write(&cx, port, size, u32::from_le_bytes([*b, *c, *b, *c])),
            3 => {
                stream.give_input(&[*b; 40][..usize::from(a % 40)]);
                uart.input().unwrap().input_ready(&cx);
            }
            4 => {
                machine.advance_ns(u64::from(u32::from_le_bytes([*a, *b, *c, 0])));
                uart.tick(&cx);
                let now = machine.now_ns.get();
                assert!(uart.deadline_ns().is_none_or(|due| due > now));
            }
            _ => {
                let record = saved(|w| uart.save(w));
                uart = Uart::new(ComPort::Com1, Box::new(stream.clone()));
                assert_restores(&record, &mut uart);
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
