// SPDX-License-Identifier: MIT OR Apache-2.0
//! Saved machines: read from a file a section at a time, taken out of a VM, and given to a new one.

use crate::answers::text;
use crate::error::Call;
use crate::node::{node_of, open_node};
use crate::{ioctl, Error, Vm};
use palacios_core::devices::bus::SavedDevice;
use palacios_core::features::GuestFeatures;
use palacios_core::saved_file::{Checker, Part, SavedFileError, MAGIC};
use palacios_core::sections::{section_bytes, Section, SectionName, Sections, HEAD_BYTES};
use palacios_core::state_io::StateError;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::fmt;
use std::io::{self, Read};
use v3_abi::{V3_LOAD_NEW_TSC_RATE, V3_MAX_LOAD_RAM, V3_MESSAGE_LEN};

/// Why a saved machine cannot be read.
#[derive(Debug)]
pub enum SavedError {
    /// The file cannot be read.
    Io(io::Error),
    /// What is in it is wrong.
    File(SavedFileError),
}

impl From<io::Error> for SavedError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<SavedFileError> for SavedError {
    fn from(error: SavedFileError) -> Self {
        Self::File(error)
    }
}

impl fmt::Display for SavedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::File(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SavedError {}

/// A section, what it is, and how it stands in the file.
pub type RawSection<'a> = (Section<'a>, Part<'a>, &'a [u8]);

/// Reads a saved machine, and checks what it reads. No more than one section of it is in memory.
pub struct SavedReader<R> {
    from: R,
    checker: Checker,
    section: Vec<u8>,
    bytes: u64,
}

impl<R: Read> SavedReader<R> {
    /// Reads the beginning.
    pub fn new(mut from: R) -> Result<Self, SavedError> {
        let mut magic = Vec::new();
        from.by_ref()
            .take(MAGIC.len() as u64)
            .read_to_end(&mut magic)?;
        if magic != MAGIC {
            return Err(SavedFileError::NotOne.into());
        }
        Ok(Self {
            from,
            checker: Checker::new(),
            section: Vec::new(),
            bytes: magic.len() as u64,
        })
    }

    /// How many bytes were read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next section. `None`: that was the last.
    pub fn next_section(&mut self) -> Result<Option<RawSection<'_>>, SavedError> {
        self.section.clear();
        self.read_up_to(HEAD_BYTES as u64)?;
        if self.section.is_empty() {
            self.checker.end()?;
            return Ok(None);
        }
        let unreadable = |why| self.checker.unreadable(why);
        let head = self.section.first_chunk().ok_or(StateError::Truncated);
        let len = head.and_then(section_bytes).map_err(unreadable)?;
        self.read_up_to(len)?;
        // One that is not all there is cut off.
        let section = Sections::checked(&self.section).next();
        let section = section.unwrap_or(Err(StateError::Truncated));
        let section = section.map_err(|why| self.checker.unreadable(why))?;
        let part = self.checker.take(&section)?;
        Ok(Some((section, part, &self.section)))
    }

    /// Reads more of the section, as far as there is something.
    fn read_up_to(&mut self, len: u64) -> io::Result<()> {
        let want = len.saturating_sub(self.section.len() as u64);
        let read = self
            .from
            .by_ref()
            .take(want)
            .read_to_end(&mut self.section)?;
        self.bytes = self.bytes.saturating_add(read as u64);
        Ok(())
    }
}

/// A device that a saved machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedDeviceInfo {
    /// What it is known by.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// The first of its ports, if its kind may be at several places.
    pub port: Option<u16>,
    /// Its slot of the PCI bus, if it is a PCI device.
    pub slot: Option<u8>,
}

/// All of a saved machine but its RAM.
#[derive(Clone, Debug, Default)]
pub struct SavedState {
    /// What the VM was made of.
    pub image: Vec<u8>,
    /// The sections of its state.
    pub state: Vec<u8>,
    /// Its devices.
    pub devices: Vec<SavedDeviceInfo>,
    /// The features that its processors have, if they are written down as this program knows it.
    pub features: Option<GuestFeatures>,
}

impl SavedState {
    /// Reads and checks a whole file. `step` is told how much was read.
    pub fn read(from: impl Read, mut step: impl FnMut(u64)) -> Result<Self, SavedError> {
        let mut reader = SavedReader::new(from)?;
        let mut all = Self::default();
        while let Some((section, part, raw)) = reader.next_section()? {
            match part {
                Part::Image(image) => all.image = image.to_vec(),
                Part::State(_) => {
                    all.state.extend_from_slice(raw);
                    all.devices.extend(device_of(&section)?);
                    all.features = all.features.or(GuestFeatures::of(&section));
                }
                Part::Ram { .. } | Part::End => {}
            }
            step(reader.bytes());
        }
        Ok(all)
    }
}

fn device_of(section: &Section<'_>) -> Result<Option<SavedDeviceInfo>, SavedError> {
    let device = SavedDevice::of(section).map_err(|why| {
        let path = SectionName::new(format_args!("{}", section.path));
        SavedFileError::Section(path, why)
    })?;
    Ok(device.map(|device| SavedDeviceInfo {
        id: device.id.into(),
        kind: device.kind.into(),
        port: device.port,
        slot: device.slot,
    }))
}

/// A VM that is being saved: reads as the file. The VM stands still until this is dropped.
#[derive(Debug)]
pub struct Saving(OwnedFd);

impl Read for Saving {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buf)?)
    }
}

impl AsFd for Saving {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Vm {
    /// Begins to save it.
    pub fn save(&self) -> Result<Saving, Error> {
        let fd = open_node(&node_of(self.number()))?;
        ioctl::save(&fd).map_err(self.failed(Call::Save))?;
        Ok(Saving(fd))
    }

    /// Writes to the RAM of one that was never launched, from page number `page` on.
    pub fn load_ram(&self, page: u64, bytes: &[u8]) -> Result<(), Error> {
        let pieces = bytes.chunks(V3_MAX_LOAD_RAM as usize);
        let pages = (page..).step_by(V3_MAX_LOAD_RAM as usize / 4096);
        for (page, piece) in pages.zip(pieces) {
            ioctl::load_ram(self, page, piece).map_err(self.failed(Call::Load))?;
        }
        Ok(())
    }

    /// Has one that was never launched go on from a state; with `new_tsc_rate` also if its time stamp counter then runs at another rate.
    pub fn load_state(&self, state: &[u8], new_tsc_rate: bool) -> Result<(), Error> {
        let mut message = [0; V3_MESSAGE_LEN as usize];
        let flags = if new_tsc_rate {
            V3_LOAD_NEW_TSC_RATE
        } else {
            0
        };
        ioctl::load(self, state, flags, &mut message).map_err(|errno| match errno {
            Errno::BADFD => self.failed(Call::Load)(errno),
            errno => Error::NotLoaded {
                vm: self.name(),
                errno,
                message: text(&message),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palacios_core::saved_file::{write_begin, write_end, write_ram};
    use palacios_core::sections::write_section;

    fn file() -> Vec<u8> {
        let mut file = Vec::new();
        write_begin(&mut file, b"image").unwrap();
        file.extend_from_slice(b"image");
        let path = SectionName::new(format_args!("device/com3"));
        write_section(&mut file, &path, "serial", |to| {
            to.u32(1)?;
            to.u16(0x3e8)?;
            to.u64(0)
        })
        .unwrap();
        write_ram(&mut file, 2, |to| to.bytes(&[7; 4096])).unwrap();
        write_end(&mut file, 3).unwrap();
        file
    }

    #[test]
    fn a_file_is_read_section_by_section() {
        let file = file();
        let mut steps = Vec::new();
        let read = SavedState::read(&file[..], |bytes| steps.push(bytes)).unwrap();
        assert_eq!(read.image, b"image");
        let com3 = SavedDeviceInfo {
            id: "com3".into(),
            kind: "serial".into(),
            port: Some(0x3e8),
            slot: None,
        };
        assert_eq!(read.devices, [com3]);
        assert_eq!(Sections::new(&read.state).count(), 1);
        assert_eq!(steps.len(), 4);
        assert_eq!(steps.last(), Some(&(file.len() as u64)));
    }

    #[test]
    fn any_cut_and_any_flipped_bit_is_an_error() {
        let file = file();
        let refused = |bytes: &[u8]| SavedState::read(bytes, |_| {}).unwrap_err().to_string();
        for len in 0..file.len() {
            let told = refused(&file[..len]);
            let expected = if len < 8 {
                "no saved machine"
            } else {
                "cut off behind"
            };
            assert!(told.contains(expected), "{len}: {told}");
        }
        for bit in 0..file.len() * 8 {
            let mut bytes = file.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            refused(&bytes);
        }
    }
}
