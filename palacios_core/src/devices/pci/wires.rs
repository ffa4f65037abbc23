// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a function is wired to: its configuration space, its interrupts whichever way the guest wants them, and guest memory as long as the guest lets it
//! master the bus.
#![forbid(unsafe_code)]

use super::config::{command, register, status, Config};
use super::description::Description;
use super::msi::Msi;
use super::msix::MsiX;
use super::{intx, Bdf};
use crate::alloc_ext::NoMemory;
use crate::devices::links::{Dma, Line, Links};
use crate::devices::read_bytewise;
use crate::interfaces::{InterruptLines, Msi as Message, MsiSender};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// A function's wires.
pub struct Wires {
    config: Config,
    msi: Option<Msi>,
    msix: Option<MsiX>,
    dma: Dma,
    sender: Box<dyn MsiSender>,
    /// Its pin, if it has one.
    pin: Option<Line>,
    /// All lines, for a function that routes them.
    lines: Box<dyn InterruptLines>,
    /// It would assert its pin, if the guest lets it.
    asserted: bool,
}

/// A record that was read and is not in force yet.
pub(super) struct Restored<'a> {
    config: &'a [u8],
    asserted: bool,
    pending: u32,
    msix: Option<MsiX>,
}

impl Wires {
    /// Those of a function at `at`.
    pub(super) fn new(
        links: &dyn Links,
        at: Bdf,
        mut config: Config,
        description: &Description,
    ) -> Result<Self, NoMemory> {
        let (mut msi, mut msix) = (None, None);
        if let Some((vectors, bar)) = description.msix {
            msix = MsiX::new(&mut config, vectors, bar)?;
        }
        if description.msi_vectors > 0 {
            msi = Msi::new(&mut config, description.msi_vectors);
        }
        let pin = match description.pin {
            0 => None,
            pin => Some(links.line(intx::line(at, pin))?),
        };
        Ok(Self {
            config,
            msi,
            msix,
            dma: links.dma()?,
            sender: links.msi()?,
            pin,
            lines: links.interrupt_lines()?,
            asserted: false,
        })
    }

    /// The function has an interrupt: a message of that vector if the guest wants messages, else by its pin, which it asserts until
    /// [`Wires::acknowledge`].
    pub fn interrupt(&mut self, vector: u16) {
        let config = &self.config;
        let message = match (&mut self.msix, &mut self.msi) {
            (Some(msix), _) if msix.is_enabled(config) => msix.raise(config, vector),
            (_, Some(msi)) if msi.is_enabled(config) => msi.raise(config, vector),
            _ => {
                self.asserted = true;
                return self.drive_pin();
            }
        };
        self.send(message);
    }
    /// The guest has seen the interrupt: the pin is let go of.
    pub fn acknowledge(&mut self) {
        self.asserted = false;
        self.drive_pin();
    }
    /// The guest wants messages, and the pin is silent.
    pub fn uses_messages(&self) -> bool {
        let by_msix = self
            .msix
            .as_ref()
            .is_some_and(|msix| msix.is_enabled(&self.config));
        by_msix || self.msi.is_some_and(|msi| msi.is_enabled(&self.config))
    }
    /// Guest memory. It is closed unless the guest lets the function master the bus.
    pub fn dma(&self) -> &Dma {
        &self.dma
    }
    /// Its configuration space.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// Its configuration space, to change what it shows.
    pub fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }
    /// All interrupt lines of the machine, for a function that routes them.
    pub fn lines(&self) -> &dyn InterruptLines {
        &*self.lines
    }

    /// A message is a write by the function, so it is lost unless that may master the bus.
    fn send(&self, message: Option<Message>) {
        if let Some(message) = message.filter(|_| self.is_master()) {
            self.sender.send(message);
        }
    }
    fn is_master(&self) -> bool {
        self.config.command() & command::MASTER != 0
    }
    fn drive_pin(&mut self) {
        let is_silent = self.config.command() & command::NO_INTX != 0 || self.uses_messages();
        if let Some(pin) = &mut self.pin {
            pin.set(self.asserted && !is_silent);
        }
    }

    /// Goes by what configuration space says now.
    pub(super) fn follow_config(&mut self) {
        self.dma.set_open(self.is_master());
        self.drive_pin();
        self.send_due();
    }
    /// Sends what was masked and is not any longer. Until it may master the bus it stays pending.
    fn send_due(&mut self) {
        if !self.is_master() {
            return;
        }
        loop {
            let config = &self.config;
            let by_msix = self.msix.as_mut().and_then(|msix| msix.take_due(config));
            let by_msi = || self.msi.as_mut().and_then(|msi| msi.take_due(config));
            match by_msix.or_else(by_msi) {
                None => return,
                message => self.send(message),
            }
        }
    }

    /// A read of configuration space, with what is not kept there.
    pub(super) fn read_config(&self, offset: u64, size: u8) -> u64 {
        let status_at = u64::from(register::STATUS);
        read_bytewise(offset, size, |at| {
            let byte = self.config.read(at, 1) as u8;
            match self.msi {
                _ if at == status_at && self.asserted => byte | status::INTX,
                Some(msi) => pending_byte(&msi, at).unwrap_or(byte),
                None => byte,
            }
        })
    }

    pub(super) fn read_table(&self, offset: u64, size: u8) -> u64 {
        self.msix
            .as_ref()
            .map_or(u64::MAX, |msix| msix.read(offset, size))
    }
    pub(super) fn write_table(&mut self, offset: u64, size: u8, value: u64) {
        if let Some(msix) = &mut self.msix {
            msix.write(offset, size, value);
        }
        self.send_due();
    }

    /// As after power-on.
    pub(super) fn reset(&mut self) {
        self.config.reset();
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
        if let Some(msi) = &mut self.msi {
            msi.pending = 0;
        }
        self.asserted = false;
    }
    pub(super) fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        self.config.save(to)?;
        to.bool(self.asserted)?;
        to.u32(self.msi.map_or(0, |msi| msi.pending))?;
        self.msix.as_ref().map_or(Ok(()), |msix| msix.save(to))
    }
    /// Reads what [`Wires::save`] wrote, and changes nothing.
    pub(super) fn check<'a>(&self, from: &mut StateReader<'a>) -> Result<Restored<'a>, StateError> {
        let config = self.config.check(from)?;
        let asserted = from.bool("pci.asserted")?;
        let pending = from.u32()?;
        if pending != 0 && self.msi.is_none() {
            return Err(StateError::Value("pci.pending"));
        }
        let msix = self.msix.as_ref();
        Ok(Restored {
            config,
            asserted,
            pending,
            msix: msix.map(|msix| msix.restored(from)).transpose()?,
        })
    }
    /// Takes what [`Wires::check`] gave.
    pub(super) fn take(&mut self, restored: Restored<'_>) {
        self.config.take(restored.config);
        self.asserted = restored.asserted;
        self.msix = restored.msix;
        if let Some(msi) = &mut self.msi {
            msi.pending = restored.pending;
        }
    }
}

/// The byte of the pending bits at an offset, if it is one.
fn pending_byte(msi: &Msi, offset: u64) -> Option<u8> {
    let number = offset.checked_sub(msi.pending_at().into())?;
    let bytes = msi.pending.to_le_bytes();
    bytes.get(usize::try_from(number).ok()?).copied()
}
