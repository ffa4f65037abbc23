// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device models: one device a file, safe code only, no locks inside.
//!
//! This file is the contract of a device. A device is plain state behind `&mut self`. The bus that owns it holds the lock and
//! hands it a [`Cx`] with every call: the [interfaces](crate::interfaces) through which it reaches the rest of the machine. A
//! device never names the VMM or the host.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod bus;
pub mod crtc;
pub mod debug;
pub mod hpet;
pub mod keyboard;
mod memory_commands;
pub mod pit;
pub mod reset;
pub mod rtc;
pub mod test_device;
#[cfg(any(test, feature = "test-support"))]
pub mod testing;
pub mod ticks;
pub mod uart;

use crate::interfaces::{Clock, GuestMemory, IrqSink, MemoryControl, PowerSink};
use crate::state_io::{StateError, StateReader, StateWriter};
use core::ops::Range;

/// The machine as a device sees it, for the length of one call.
pub struct Cx<'a> {
    /// The VM's clock.
    pub clock: &'a dyn Clock,
    /// Where interrupt lines end.
    pub irqs: &'a dyn IrqSink,
    /// The guest's RAM.
    pub memory: &'a dyn GuestMemory,
    /// Power-off, reset and test exit.
    pub power: &'a dyn PowerSink,
    /// What is where in the guest's memory.
    pub memory_control: &'a dyn MemoryControl,
}

/// One interrupt line, as wired when the machine was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqLine(pub u32);

impl IrqLine {
    /// Drives the line.
    pub fn set(self, cx: &Cx<'_>, level: bool) {
        cx.irqs.set_irq(self.0, level);
    }
    /// A pulse: an edge for an edge-triggered input.
    pub fn pulse(self, cx: &Cx<'_>) {
        self.set(cx, true);
        self.set(cx, false);
    }
}

/// The far end of a byte-wise device (a serial port, a debug port). Made by the host; never blocks.
pub trait ByteStream: Send {
    /// Takes output. When the buffer is full, the host drops its oldest bytes: a guest's port never stalls.
    fn write(&mut self, data: &[u8]);
    /// Gives waiting input; returns how many bytes of `buf` were filled.
    fn read(&mut self, buf: &mut [u8]) -> usize;
}

/// A device on the machine's buses.
pub trait Device: Send {
    /// A short name for reports and statistics, like `uart` or `pit`.
    fn name(&self) -> &'static str;
    /// Back to the state after power-on. It need not lower its lines: the interrupt controllers are new after a reset, and with
    /// all lines low.
    fn reset(&mut self);
    /// Writes all state a guest can observe. The format is the device's own, with its version first.
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError>;
    /// Takes back what [`Device::save`] wrote; any byte sequence either is restored or refused.
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError>;

    /// Port I/O, if it has any.
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        None
    }
    /// Memory-mapped I/O, if it has any.
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        None
    }
    /// Timed work, if it has any.
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        None
    }
    /// Input from a stream, if it takes any.
    fn input(&mut self) -> Option<&mut dyn Input> {
        None
    }
}

/// Port I/O.
pub trait PortIo {
    /// The ports it answers, fixed for its life.
    fn ports(&self) -> &'static [Range<u16>];
    /// A read of `size` (1, 2 or 4) bytes at `port`; only that many low bytes of the answer count.
    fn port_read(&mut self, cx: &Cx<'_>, port: u16, size: u8) -> u32;
    /// A write of the `size` (1, 2 or 4) low bytes of `value`.
    fn port_write(&mut self, cx: &Cx<'_>, port: u16, size: u8, value: u32);
}

/// Memory-mapped I/O.
pub trait Mmio {
    /// The guest-physical ranges it answers.
    fn ranges(&self) -> &[Range<u64>];
    /// A read of `size` (1, 2, 4 or 8) bytes, which lie in one of its ranges.
    fn mmio_read(&mut self, cx: &Cx<'_>, at: crate::addr::Gpa, size: u8) -> u64;
    /// A write of the `size` low bytes of `value`.
    fn mmio_write(&mut self, cx: &Cx<'_>, at: crate::addr::Gpa, size: u8, value: u64);
}

/// Work that is due at a time of the VM's clock.
pub trait Timed {
    /// When [`Timed::tick`] is next wanted, on [`Clock::now_ns`]'s scale. Asked after each call into the device.
    fn deadline_ns(&self) -> Option<u64>;
    /// The deadline passed, maybe long ago: does all that is due by now. It also comes with no deadline past when the VM
    /// goes on after a pause, in which the wall clock went on.
    fn tick(&mut self, cx: &Cx<'_>);
}

/// A device that takes input from a [`ByteStream`].
pub trait Input {
    /// New input may wait in the stream.
    fn input_ready(&mut self, cx: &Cx<'_>);
}

/// A wide read of byte-wide ports, as a bus bridge splits it: byte `i` comes from `port + i`, the first one first.
pub fn read_bytewise(port: u16, size: u8, mut read: impl FnMut(u16) -> u8) -> u32 {
    let mut bytes = [0; 4];
    for (at, byte) in (0u16..).zip(bytes.iter_mut()).take(usize::from(size)) {
        *byte = read(port.wrapping_add(at));
    }
    u32::from_le_bytes(bytes)
}

/// A wide write to byte-wide ports: byte `i` of `value` goes to `port + i`, the first one first.
pub fn write_bytewise(port: u16, size: u8, value: u32, mut write: impl FnMut(u16, u8)) {
    for (at, byte) in (0u16..).zip(value.to_le_bytes()).take(usize::from(size)) {
        write(port.wrapping_add(at), byte);
    }
}
