// SPDX-License-Identifier: MIT OR Apache-2.0
//! Serial ports. A CPU that sends waits until the port has taken the last byte. `serial_input` has the interrupt of what comes in.

use super::sync::SpinLock;
use uart_16550::SerialPort;
use x86_64::instructions::port::Port;

/// The serial ports of a PC: the I/O port of the first register, and the ISA interrupt.
const PORT_RESOURCES: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// The port of the kernel's own log.
pub const LOG: usize = 0;
/// How many bytes a port takes at once (16550A).
pub const FIFO_BYTES: usize = 16;
/// The divisor for 115,200 baud.
const DIVISOR: [u8; 2] = [1, 0];

static PORTS: [SpinLock<Option<SerialPort>>; 4] = [const { SpinLock::new(None) }; 4];

/// Looks for the ports, which can send from now on.
pub fn init() {
    for ((base, _), slot) in PORT_RESOURCES.into_iter().zip(&PORTS) {
        // SAFETY: the I/O ports of serial ports; where there is none, nobody answers.
        unsafe {
            let mut scratch = Port::<u8>::new(base + 7);
            scratch.write(0x5a);
            if scratch.read() != 0x5a {
                continue;
            }
            let mut port = SerialPort::new(base);
            port.init();
            let mut line = Port::<u8>::new(base + 3);
            line.write(0x83); // The divisor is at the first two registers.
            Port::<u8>::new(base).write(DIVISOR[0]);
            Port::<u8>::new(base + 1).write(DIVISOR[1]);
            line.write(0x03); // 8 bits, no parity, one stop bit.
            *slot.lock() = Some(port);
        }
    }
}

/// The ISA interrupts of those ports that there are.
pub fn irqs() -> impl Iterator<Item = u8> {
    let ports = PORT_RESOURCES.into_iter().zip(&PORTS);
    ports
        .filter(|(_, port)| port.lock().is_some())
        .map(|((_, irq), _)| irq)
}

/// Whether there is such a port.
pub fn exists(port: usize) -> bool {
    PORTS.get(port).is_some_and(|slot| slot.lock().is_some())
}

/// Sends `bytes`, with interrupts off until the port has taken the last one.
pub fn send(port: usize, bytes: &[u8]) {
    let Some(slot) = PORTS.get(port) else { return };
    if let Some(port) = slot.lock().as_mut() {
        bytes.iter().for_each(|byte| port.send_raw(*byte));
    }
}

/// A byte that came in.
pub fn receive(port: usize) -> Option<u8> {
    PORTS.get(port)?.lock().as_mut()?.try_receive().ok()
}

/// Breaks the lock of the log's port, whoever holds it: the machine goes down.
pub fn break_log_lock() {
    if let Some(slot) = PORTS.get(LOG) {
        // SAFETY: no other CPU runs any more, and this one does not return to what it did.
        unsafe { slot.unlock() };
    }
}
