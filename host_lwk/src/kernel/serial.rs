// SPDX-License-Identifier: MIT OR Apache-2.0
//! Serial ports: what comes in raises an interrupt; what goes out waits for the port, on whatever CPU writes.

use super::acpi::Found;
use super::apic;
use super::sync::SpinLock;
use super::thread::Thread;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use uart_16550::SerialPort;
use x86_64::instructions::port::Port;

/// Those of a PC: I/O port and interrupt.
const PLACES: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// The port of the kernel's own log.
pub const LOG: usize = 0;
/// What a port takes at once.
pub const FIFO_BYTES: usize = 16;
/// The divisor for 115,200 baud.
const DIVISOR: [u8; 2] = [1, 0];

static PORTS: [SpinLock<Option<SerialPort>>; 4] = [const { SpinLock::new(None) }; 4];
/// Woken when something came in.
static READER: AtomicPtr<Thread> = AtomicPtr::new(null_mut());

/// Looks for the ports, which can send from now on.
pub fn init() {
    for ((base, _), slot) in PLACES.into_iter().zip(&PORTS) {
        // SAFETY: the places of serial ports; where there is none, nobody answers.
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

/// Has what comes in raise an interrupt on the CPU of `apic_id`, which wakes `reader`; it stays.
pub fn listen(found: &Found, apic_id: u32, reader: &'static Thread) {
    READER.store(core::ptr::from_ref(reader).cast_mut(), Ordering::Release);
    for (_, irq) in PLACES
        .into_iter()
        .zip(&PORTS)
        .filter(|(_, port)| port.lock().is_some())
        .map(|(place, _)| place)
    {
        apic::route(found, irq, apic::SERIAL, apic_id);
    }
}

/// In the interrupt.
pub fn interrupted() {
    // SAFETY: the reader stays.
    if let Some(reader) = unsafe { READER.load(Ordering::Acquire).as_ref() } {
        reader.unpark();
    }
}

/// Whether there is such a port.
pub fn exists(port: usize) -> bool {
    PORTS.get(port).is_some_and(|slot| slot.lock().is_some())
}

/// Sends all of it, with interrupts off until the port has taken the last of it.
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

/// Frees the log's port from whoever holds it: the machine goes down.
pub fn take_log() {
    if let Some(slot) = PORTS.get(LOG) {
        // SAFETY: no other CPU runs any more, and this one does not come back to what it did.
        unsafe { slot.unlock() };
    }
}
