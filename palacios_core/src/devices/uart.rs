// SPDX-License-Identifier: MIT OR Apache-2.0
//! A 16550A serial port (National Semiconductor PC16550D datasheet) on a byte stream.
//!
//! Output leaves at once, whatever rate is programmed, so the transmitter is always empty. Input comes as fast as the
//! guest takes it: what the FIFO has no room for waits in the stream, and only loopback can overrun. The interrupt line
//! is not gated by OUT2, as a PC's is: kernels that forget OUT2 work on most emulators, and here.
#![forbid(unsafe_code)]

mod com_port;
#[cfg(test)]
mod tests;

pub use com_port::ComPort;

use super::kind::{AcpiDevice, Kind, Machines};
use super::links::{Line, Links};
use super::{read_bytewise, write_bytewise, ByteStream, Device, Input, IoRegion, Timed};
use crate::alloc_ext::{try_box, NoMemory};
use crate::interfaces::Clock;
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "serial",
    machines: Machines::Described("ns16550a"),
    has_stream: true,
    has_store: false,
    places: &com_port::PLACES,
    place_words: "is not 8 ports at 0x3f8, 0x2f8, 0x3e8 or 0x2e8",
    irq_words: "is not that of a PC's port: 4 at 0x3f8 and 0x3e8, 3 at 0x2f8 and 0x2e8",
    is_pci: false,
    make: |mut wanted| {
        let stream = wanted.take_stream()?;
        let port = wanted.place.and_then(ComPort::at);
        let port = port.unwrap_or(ComPort::Com1);
        Ok(try_box(Uart::new(wanted.links, port, stream)?)?)
    },
    acpi: |place| {
        let number = ComPort::at(place)?.number();
        Some(AcpiDevice {
            name: [b'C', b'O', b'M', b'0'.wrapping_add(number)],
            // PNP0501, a 16550.
            hid: [0x41, 0xd0, 0x05, 0x01],
            uid: number,
            place: *place,
        })
    },
};

const STATE_VERSION: u32 = 2;
/// Depth of the receiver's FIFO.
const FIFO: usize = 16;

/// Registers, by their offset from the first port (PC16550D: table I).
mod register {
    /// Receiver and transmitter; with DLAB, the low byte of the divisor.
    pub const DATA: u64 = 0;
    /// Interrupt enable; with DLAB, the high byte of the divisor.
    pub const IER: u64 = 1;
    /// Reads interrupt identification, writes FIFO control.
    pub const IIR_FCR: u64 = 2;
    pub const LCR: u64 = 3;
    pub const MCR: u64 = 4;
    pub const LSR: u64 = 5;
    pub const MSR: u64 = 6;
    pub const SCRATCH: u64 = 7;
}

/// Interrupt enable register.
mod ier {
    pub const RECEIVED: u8 = 1 << 0;
    pub const TRANSMITTER_EMPTY: u8 = 1 << 1;
    pub const LINE_STATUS: u8 = 1 << 2;
    pub const MODEM_STATUS: u8 = 1 << 3;
    pub const WRITABLE: u8 = 0x0f;
}

/// Interrupt identification register (PC16550D: table IV).
mod iir {
    pub const NONE: u8 = 0x01;
    pub const MODEM_STATUS: u8 = 0x00;
    pub const TRANSMITTER_EMPTY: u8 = 0x02;
    pub const RECEIVED: u8 = 0x04;
    pub const LINE_STATUS: u8 = 0x06;
    pub const TIMEOUT: u8 = 0x0c;
    pub const FIFO_ENABLED: u8 = 0xc0;
}

/// FIFO control register.
mod fcr {
    pub const ENABLE: u8 = 1 << 0;
    pub const CLEAR_RECEIVER: u8 = 1 << 1;
    pub const TRIGGER: u8 = 0xc0;
}

/// Line control register.
mod lcr {
    /// The output is held low: a break.
    pub const BREAK: u8 = 1 << 6;
    pub const DIVISOR_LATCH: u8 = 1 << 7;
}

/// Modem control register.
mod mcr {
    pub const DTR: u8 = 1 << 0;
    pub const RTS: u8 = 1 << 1;
    pub const OUT1: u8 = 1 << 2;
    pub const OUT2: u8 = 1 << 3;
    pub const LOOPBACK: u8 = 1 << 4;
    pub const WRITABLE: u8 = 0x1f;
}

/// Line status register.
mod lsr {
    pub const DATA_READY: u8 = 1 << 0;
    pub const OVERRUN: u8 = 1 << 1;
    /// The byte that is read next is a break.
    pub const BREAK: u8 = 1 << 4;
    /// Holding register and shifter are empty.
    pub const TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;
    /// With the FIFO on: a byte in it came with an error.
    pub const ERROR_IN_FIFO: u8 = 1 << 7;
}

/// Modem status register.
mod msr {
    pub const DELTAS: u8 = 0x0f;
    pub const TRAILING_EDGE_RI: u8 = 1 << 2;
    pub const CTS: u8 = 1 << 4;
    pub const DSR: u8 = 1 << 5;
    pub const RI: u8 = 1 << 6;
    pub const DCD: u8 = 1 << 7;
    /// A terminal is there and listens.
    pub const CONNECTED: u8 = CTS | DSR | DCD;
}

/// The receiver: a queue of up to 16 bytes, or of one when the FIFO is off.
#[derive(Clone, Copy, Debug, Default)]
struct Receiver {
    bytes: [u8; FIFO],
    /// Which of them are breaks that LSR has not told of, one bit a place.
    breaks: u16,
    first: usize,
    len: usize,
}

/// A place's bit.
const fn bit(place: usize) -> u16 {
    1 << (place % FIFO)
}

impl Receiver {
    /// Appends; the caller has seen that there is room.
    fn push(&mut self, byte: u8, is_break: bool) {
        let at = self.first.wrapping_add(self.len) % FIFO;
        if let Some(slot) = self.bytes.get_mut(at) {
            *slot = byte;
        }
        self.breaks &= !bit(at);
        if is_break {
            self.breaks |= bit(at);
        }
        self.len = self.len.wrapping_add(1).min(FIFO);
    }
    fn pop(&mut self) -> Option<u8> {
        self.len = self.len.checked_sub(1)?;
        let byte = self.bytes.get(self.first).copied();
        self.breaks &= !bit(self.first);
        self.first = self.first.wrapping_add(1) % FIFO;
        byte
    }
    fn clear(&mut self) {
        *self = Self::default();
    }
    /// The byte that is read next is a break.
    const fn is_break(&self) -> bool {
        self.len > 0 && self.breaks & bit(self.first) != 0
    }
    /// LSR has told of it.
    fn tell_break(&mut self) {
        self.breaks &= !bit(self.first);
    }
}

/// Everything a guest can observe.
#[derive(Clone, Copy, Debug)]
struct State {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    /// The transmitter ran empty, and IIR has not told yet.
    transmitter_empty: bool,
    receiver: Receiver,
    /// When data that waits below the trigger level becomes an interrupt.
    timeout_at_ns: Option<u64>,
    timed_out: bool,
}

impl State {
    const fn new() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            msr: msr::CONNECTED,
            scratch: 0,
            // 9,600 baud, as firmware leaves it.
            divisor: 12,
            overrun: false,
            transmitter_empty: false,
            receiver: Receiver {
                bytes: [0; FIFO],
                breaks: 0,
                first: 0,
                len: 0,
            },
            timeout_at_ns: None,
            timed_out: false,
        }
    }

    const fn fifo_enabled(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }
    const fn loopback(&self) -> bool {
        self.mcr & mcr::LOOPBACK != 0
    }
    /// The output is held low, and its own input sees it (PC16550D: 8.1, bit 6; 8.6.4).
    const fn hears_own_break(&self) -> bool {
        self.loopback() && self.lcr & lcr::BREAK != 0
    }
    const fn divisor_latch(&self) -> bool {
        self.lcr & lcr::DIVISOR_LATCH != 0
    }
    const fn capacity(&self) -> usize {
        if self.fifo_enabled() {
            FIFO
        } else {
            1
        }
    }

    /// How many bytes make the received-data interrupt.
    const fn trigger(&self) -> usize {
        match (self.fifo_enabled(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// Time of four characters at the programmed rate (PC16550D: 8.4.1).
    fn four_characters_ns(&self) -> u64 {
        let stop_bits = 1 + (self.lcr >> 2 & 1);
        let parity_bits = self.lcr >> 3 & 1;
        let bits = u64::from(1 + 5 + (self.lcr & 3) + parity_bits + stop_bits);
        // A bit takes 16 times the divisor in ticks of 1.8432 MHz, each 542 ns.
        bits * 4 * u64::from(self.divisor.max(1)) * 16 * 1_000_000 / 1_843
    }

    /// The interrupt of highest priority, as IIR names it.
    fn interrupt(&self) -> Option<u8> {
        let enabled = |bit| self.ier & bit != 0;
        if enabled(ier::LINE_STATUS) && (self.overrun || self.receiver.is_break()) {
            Some(iir::LINE_STATUS)
        } else if enabled(ier::RECEIVED) && self.receiver.len >= self.trigger() {
            Some(iir::RECEIVED)
        } else if enabled(ier::RECEIVED) && self.timed_out {
            Some(iir::TIMEOUT)
        } else if enabled(ier::TRANSMITTER_EMPTY) && self.transmitter_empty {
            Some(iir::TRANSMITTER_EMPTY)
        } else if enabled(ier::MODEM_STATUS) && self.msr & msr::DELTAS != 0 {
            Some(iir::MODEM_STATUS)
        } else {
            None
        }
    }

    /// The receiver was filled or read: the timeout starts anew, if what waits is below the trigger level.
    fn restart_timeout(&mut self, now_ns: u64) {
        let waits = self.receiver.len > 0 && self.receiver.len < self.trigger();
        self.timed_out = false;
        self.timeout_at_ns = waits.then(|| now_ns.saturating_add(self.four_characters_ns()));
    }

    fn receive(&mut self, byte: u8, is_break: bool, now_ns: u64) {
        if self.receiver.len >= self.capacity() {
            self.overrun = true;
            if self.fifo_enabled() {
                return;
            }
            // Without a FIFO the old byte is overwritten.
            self.receiver.pop();
        }
        self.receiver.push(byte, is_break);
        self.restart_timeout(now_ns);
    }

    /// Runs a write to LCR or MCR. A break that its own input begins to see comes as one byte of zero.
    fn with_line(&mut self, now_ns: u64, write: impl FnOnce(&mut Self)) {
        let heard = self.hears_own_break();
        write(self);
        if !heard && self.hears_own_break() {
            self.receive(0, true, now_ns);
        }
    }

    fn write_fcr(&mut self, value: u8, now_ns: u64) {
        let toggled = (self.fcr ^ value) & fcr::ENABLE != 0;
        if toggled || value & fcr::ENABLE != 0 && value & fcr::CLEAR_RECEIVER != 0 {
            self.receiver.clear();
        }
        // The other bits are not programmed without the enable bit.
        self.fcr = match value & fcr::ENABLE {
            0 => 0,
            _ => value & (fcr::ENABLE | fcr::TRIGGER),
        };
        self.restart_timeout(now_ns);
    }

    fn write_mcr(&mut self, value: u8) {
        self.mcr = value & mcr::WRITABLE;
        let inputs = if self.loopback() {
            // The outputs feed the inputs (PC16550D: 8.6.4).
            [
                (mcr::RTS, msr::CTS),
                (mcr::DTR, msr::DSR),
                (mcr::OUT1, msr::RI),
                (mcr::OUT2, msr::DCD),
            ]
            .into_iter()
            .filter(|(output, _)| self.mcr & output != 0)
            .fold(0, |inputs, (_, input)| inputs | input)
        } else {
            msr::CONNECTED
        };
        let old = self.msr & !msr::DELTAS;
        let mut deltas = (old ^ inputs) >> 4;
        if inputs & msr::RI != 0 {
            // The ring indicator tells of its falling edge alone.
            deltas &= !msr::TRAILING_EDGE_RI;
        }
        self.msr = self.msr & msr::DELTAS | deltas | inputs;
    }

    fn read_iir(&mut self) -> u8 {
        let cause = self.interrupt();
        if cause == Some(iir::TRANSMITTER_EMPTY) {
            self.transmitter_empty = false;
        }
        let fifos = if self.fifo_enabled() {
            iir::FIFO_ENABLED
        } else {
            0
        };
        cause.unwrap_or(iir::NONE) | fifos
    }

    fn read_lsr(&mut self) -> u8 {
        let mut value = lsr::TRANSMITTER_EMPTY;
        if self.receiver.len > 0 {
            value |= lsr::DATA_READY;
        }
        if core::mem::take(&mut self.overrun) {
            value |= lsr::OVERRUN;
        }
        if self.fifo_enabled() && self.receiver.breaks != 0 {
            value |= lsr::ERROR_IN_FIFO;
        }
        if self.receiver.is_break() {
            value |= lsr::BREAK;
            self.receiver.tell_break();
        }
        value
    }

    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.bytes(&[
            self.ier,
            self.fcr,
            self.lcr,
            self.mcr,
            self.msr,
            self.scratch,
        ])?;
        to.u16(self.divisor)?;
        to.bool(self.overrun)?;
        to.bool(self.transmitter_empty)?;
        to.bool(self.timed_out)?;
        to.bool(self.timeout_at_ns.is_some())?;
        to.u64(self.timeout_at_ns.unwrap_or(0))?;
        to.u8(self.receiver.len as u8)?;
        let mut waiting = self.receiver;
        while waiting.len > 0 {
            to.bool(waiting.is_break())?;
            to.u8(waiting.pop().unwrap_or(0))?;
        }
        Ok(())
    }

    fn restored(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let mut state = Self::new();
        [
            state.ier,
            state.fcr,
            state.lcr,
            state.mcr,
            state.msr,
            state.scratch,
        ] = from.bytes()?;
        state.divisor = from.u16()?;
        state.overrun = from.bool("uart.overrun")?;
        state.transmitter_empty = from.bool("uart.transmitter_empty")?;
        state.timed_out = from.bool("uart.timed_out")?;
        let waits = from.bool("uart.timeout")?;
        let timeout_at_ns = from.u64()?;
        state.timeout_at_ns = waits.then_some(timeout_at_ns);
        let len = usize::from(from.u8()?);
        let registers_legal = state.ier & !ier::WRITABLE == 0
            && state.mcr & !mcr::WRITABLE == 0
            && state.fcr & !(fcr::ENABLE | fcr::TRIGGER) == 0
            && (state.fifo_enabled() || state.fcr == 0);
        if !registers_legal || len > state.capacity() || !waits && timeout_at_ns != 0 {
            return Err(StateError::Value("uart"));
        }
        for _ in 0..len {
            let is_break = from.bool("uart.break")?;
            state.receiver.push(from.u8()?, is_break);
        }
        Ok(state)
    }
}

/// The serial port.
pub struct Uart {
    region: IoRegion,
    clock: Box<dyn Clock>,
    line: Line,
    stream: Box<dyn ByteStream>,
    state: State,
}

impl Uart {
    /// A port whose far end is `stream`, wired where a PC wires it.
    pub fn new(
        links: &dyn Links,
        port: ComPort,
        stream: Box<dyn ByteStream>,
    ) -> Result<Self, NoMemory> {
        Ok(Self {
            region: port.region(),
            clock: links.clock()?,
            line: links.line(port.irq())?,
            stream,
            state: State::new(),
        })
    }

    /// Takes from the stream what there is room for.
    fn fill(&mut self, now_ns: u64) {
        let state = &mut self.state;
        if state.loopback() {
            return;
        }
        let mut bytes = [0; FIFO];
        let room = state.capacity().saturating_sub(state.receiver.len);
        let Some(wanted) = bytes.get_mut(..room) else {
            return;
        };
        let got = self.stream.read(wanted);
        for byte in wanted.iter().take(got) {
            state.receive(*byte, false, now_ns);
        }
    }

    fn read_register(&mut self, register: u64, now_ns: u64) -> u8 {
        let state = &mut self.state;
        match register {
            register::DATA if state.divisor_latch() => state.divisor as u8,
            register::DATA => {
                let byte = state.receiver.pop().unwrap_or(0);
                state.restart_timeout(now_ns);
                self.fill(now_ns);
                byte
            }
            register::IER if state.divisor_latch() => (state.divisor >> 8) as u8,
            register::IER => state.ier,
            register::IIR_FCR => state.read_iir(),
            register::LCR => state.lcr,
            register::MCR => state.mcr,
            register::LSR => state.read_lsr(),
            register::MSR => {
                let value = state.msr;
                state.msr &= !msr::DELTAS;
                value
            }
            register::SCRATCH => state.scratch,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, register: u64, value: u8) {
        let state = &mut self.state;
        match register {
            register::DATA if state.divisor_latch() => {
                state.divisor = state.divisor & 0xff00 | u16::from(value);
            }
            register::DATA => self.transmit(value),
            register::IER if state.divisor_latch() => {
                state.divisor = state.divisor & 0x00ff | u16::from(value) << 8;
            }
            register::IER => {
                // Enabled while the transmitter is empty, its interrupt comes at once.
                let enabled = value & !state.ier & ier::TRANSMITTER_EMPTY != 0;
                state.transmitter_empty |= enabled;
                state.ier = value & ier::WRITABLE;
            }
            register::IIR_FCR => {
                let now_ns = self.clock.now_ns();
                state.write_fcr(value, now_ns);
                self.fill(now_ns);
            }
            register::LCR => state.with_line(self.clock.now_ns(), |state| state.lcr = value),
            register::MCR => {
                let now_ns = self.clock.now_ns();
                state.with_line(now_ns, |state| state.write_mcr(value));
                self.fill(now_ns);
            }
            register::SCRATCH => state.scratch = value,
            _ => {}
        }
    }

    fn transmit(&mut self, byte: u8) {
        // The holding register is full for an instant, so that its running empty is an edge.
        self.state.transmitter_empty = false;
        self.drive_line();
        match (self.state.loopback(), self.state.hears_own_break()) {
            (false, _) => self.stream.write(&[byte]),
            (true, false) => self.state.receive(byte, false, self.clock.now_ns()),
            // The line is low, whatever is sent.
            (true, true) => {}
        }
        self.state.transmitter_empty = true;
    }

    fn drive_line(&mut self) {
        self.line.set(self.state.interrupt().is_some());
    }
}

impl Device for Uart {
    fn name(&self) -> &'static str {
        KIND.name
    }

    fn is_removable(&self) -> bool {
        true
    }
    fn reset(&mut self) {
        self.state = State::new();
        self.drive_line();
    }

    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        self.state.save(to)
    }

    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        self.state = State::restored(from)?;
        self.drive_line();
        Ok(())
    }

    fn regions(&self) -> &[IoRegion] {
        core::slice::from_ref(&self.region)
    }

    fn answers_in_window(&self, _region: usize, offset: u64, write: bool) -> bool {
        // The others may look for more input, or change what is sent.
        !write && matches!(offset, register::LSR | register::MSR | register::SCRATCH)
    }
    fn read(&mut self, _region: usize, offset: u64, size: u8) -> u64 {
        let now_ns = self.clock.now_ns();
        let value = read_bytewise(offset, size, |register| {
            self.read_register(register, now_ns)
        });
        self.drive_line();
        value
    }

    fn write(&mut self, _region: usize, offset: u64, size: u8, value: u64) {
        write_bytewise(offset, size, value, |register, byte| {
            self.write_register(register, byte);
        });
        self.drive_line();
    }

    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
    fn input(&mut self) -> Option<&mut dyn Input> {
        Some(self)
    }
}

impl Timed for Uart {
    fn deadline_ns(&self) -> Option<u64> {
        let wanted = self.state.ier & ier::RECEIVED != 0;
        self.state.timeout_at_ns.filter(|_| wanted)
    }

    fn tick(&mut self) {
        let now_ns = self.clock.now_ns();
        if self.state.timeout_at_ns.is_some_and(|at| at <= now_ns) {
            self.state.timeout_at_ns = None;
            self.state.timed_out = true;
            self.drive_line();
        }
    }
}

impl Input for Uart {
    fn input_ready(&mut self) {
        self.fill(self.clock.now_ns());
        self.drive_line();
    }
}
