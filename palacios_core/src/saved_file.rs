// SPDX-License-Identifier: MIT OR Apache-2.0
//! A saved machine as a file: what made it, its state, its RAM. A host gives and takes it as a stream.
//!
//! ```text
//!  7f 'v3save' 0a                                  magic
//!  image       guest.img                           what the VM was made of, which is loaded again at a reset
//!  machine, features, device/NAME, …               its state, as `Vm::save` writes it
//!  ram/N       pages                               what is in RAM from page N (in hexadecimal) on; pages of zeroes are left out
//!  …
//!  end         end                                 how many sections there were
//! ```
//!
//! All but the magic are [`sections`](crate::sections), in this order. So a file that was cut anywhere has no end, and each section has a checksum. They find
//! damage, not malice: whoever may create a VM may put anything in it.
#![forbid(unsafe_code)]

use crate::addr::PAGE_SIZE;
use crate::sections::{write_head, write_section, Section, SectionName, Sections};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::vec::Vec;
use core::fmt;

/// The first bytes of the file. The last is lost in a transfer that takes the file for text.
pub const MAGIC: [u8; 8] = *b"\x7fv3save\n";
/// The most pages of one section of RAM.
pub const MOST_PAGES: u64 = 256;

const VERSION: u32 = 1;
const IMAGE: (&str, &str) = ("image", "guest.img");
const END: (&str, &str) = ("end", "end");
const RAM_PATH: &str = "ram/";
const PAGES: &str = "pages";

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedFileError {
    /// It does not begin as one.
    NotOne,
    /// It ends too early, behind this section.
    Cut(SectionName),
    /// This section is damaged, or one that cannot be there.
    Section(SectionName, StateError),
    /// Something follows its end.
    TooLong,
}

impl fmt::Display for SavedFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOne => f.write_str("it is no saved machine"),
            Self::Cut(section) => write!(f, "it is cut off behind section {section}"),
            Self::Section(section, why) => write!(f, "section {section} is damaged: {why}"),
            Self::TooLong => f.write_str("something follows its end"),
        }
    }
}

/// What a section of the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The image.
    Image(&'a [u8]),
    /// A piece of the state.
    State(Section<'a>),
    /// What is in RAM from page number `page` on: whole pages.
    Ram {
        /// The first page.
        page: u64,
        /// What they hold.
        bytes: &'a [u8],
    },
    /// The file's end.
    End,
}

/// Begins a file: the image is to follow.
pub fn write_begin(to: &mut Vec<u8>, image: &[u8]) -> Result<(), StateError> {
    StateWriter::new(to).bytes(&MAGIC)?;
    let path = SectionName::new(format_args!("{}", IMAGE.0));
    write_head(to, &path, IMAGE.1, image)
}

/// Appends what is in RAM from page number `page` on, which `write` writes.
pub fn write_ram(
    to: &mut Vec<u8>,
    page: u64,
    write: impl FnOnce(&mut StateWriter<'_>) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let path = SectionName::new(format_args!("{RAM_PATH}{page:x}"));
    write_section(to, &path, PAGES, |content| {
        content.u32(VERSION)?;
        content.u64(page)?;
        write(content)
    })
}

/// The first page of a piece of RAM, and what it holds.
fn read_ram(content: &[u8]) -> Result<(u64, &[u8]), StateError> {
    let mut from = StateReader::new(content);
    from.version(VERSION)?;
    Ok((from.u64()?, from.rest()))
}

/// Ends a file that has so many sections.
pub fn write_end(to: &mut Vec<u8>, sections: u64) -> Result<(), StateError> {
    let path = SectionName::new(format_args!("{}", END.0));
    write_section(to, &path, END.1, |content| {
        content.u32(VERSION)?;
        content.u64(sections)
    })
}

/// Takes a file's sections one after the other, and says what each is.
pub struct Checker {
    taken: u64,
    last: SectionName,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Begin,
    State,
    Ram,
    End,
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

impl Checker {
    /// Nothing was taken yet.
    pub fn new() -> Self {
        Self {
            taken: 0,
            last: SectionName::new(format_args!("magic")),
            stage: Stage::Begin,
        }
    }

    /// Takes the next one.
    ///
    /// # Errors
    /// It cannot be there.
    pub fn take<'a>(&mut self, section: &Section<'a>) -> Result<Part<'a>, SavedFileError> {
        let name = SectionName::new(format_args!("{}", section.path));
        let part = self.part(section);
        let part = part.map_err(|why| SavedFileError::Section(name, why))?;
        let (allowed, stage) = match (&part, self.stage) {
            (_, Stage::End) => return Err(SavedFileError::TooLong),
            (Part::Image(_), stage) => (stage == Stage::Begin, Stage::State),
            (Part::State(_), stage) => (stage == Stage::State, Stage::State),
            (Part::Ram { .. }, stage) => (stage >= Stage::State, Stage::Ram),
            (Part::End, stage) => (stage >= Stage::State, Stage::End),
        };
        if !allowed {
            return Err(SavedFileError::Section(
                name,
                StateError::Value("section.order"),
            ));
        }
        self.taken = self.taken.wrapping_add(1);
        (self.last, self.stage) = (name, stage);
        Ok(part)
    }

    /// Nothing follows what was taken.
    pub fn end(&self) -> Result<(), SavedFileError> {
        match self.stage {
            Stage::End => Ok(()),
            _ => Err(SavedFileError::Cut(self.last)),
        }
    }

    /// What is wrong where the next section cannot be read.
    pub fn unreadable(&self, why: StateError) -> SavedFileError {
        match why {
            StateError::Truncated => SavedFileError::Cut(self.last),
            why => {
                let behind = SectionName::new(format_args!("behind {}", self.last));
                SavedFileError::Section(behind, why)
            }
        }
    }

    fn part<'a>(&self, section: &Section<'a>) -> Result<Part<'a>, StateError> {
        let mut from = StateReader::new(section.content);
        match (section.path, section.kind) {
            IMAGE => Ok(Part::Image(section.content)),
            END => {
                from.version(VERSION)?;
                let same = from.u64()? == self.taken;
                from.end("end")?;
                same.then_some(Part::End)
                    .ok_or(StateError::Value("end.sections"))
            }
            (path, PAGES) if path.starts_with(RAM_PATH) => {
                let (page, bytes) = read_ram(section.content)?;
                let whole = bytes.len() as u64 % PAGE_SIZE == 0 && !bytes.is_empty();
                let few = bytes.len() as u64 <= MOST_PAGES.saturating_mul(PAGE_SIZE);
                let good = whole && few && page < 1 << 40;
                good.then_some(Part::Ram { page, bytes })
                    .ok_or(StateError::Value("ram"))
            }
            _ => Ok(Part::State(*section)),
        }
    }
}

/// A whole file in memory, which was found good.
pub struct SavedFile<'a> {
    /// The image.
    pub image: &'a [u8],
    /// The state, for `Vm::load`.
    pub state: &'a [u8],
    ram: Sections<'a>,
}

impl<'a> SavedFile<'a> {
    /// Whether a file says that it is one.
    pub fn recognises(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Reads a file, and checks all of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SavedFileError> {
        let bytes = bytes.strip_prefix(&MAGIC).ok_or(SavedFileError::NotOne)?;
        let (mut sections, mut checker) = (Sections::checked(bytes), Checker::new());
        let (mut image, mut state_from, mut ram_from) = (&bytes[..0], None, None);
        loop {
            let rest = sections.rest();
            let Some(section) = sections.next() else {
                break;
            };
            let section = section.map_err(|why| checker.unreadable(why))?;
            match checker.take(&section)? {
                Part::Image(bytes) => (image, state_from) = (bytes, Some(sections.rest())),
                Part::State(_) => {}
                Part::Ram { .. } | Part::End => ram_from = ram_from.or(Some(rest)),
            }
        }
        checker.end()?;
        let (state, ram) = (state_from.unwrap_or_default(), ram_from.unwrap_or_default());
        let state_len = state.len().saturating_sub(ram.len());
        Ok(Self {
            image,
            state: state.get(..state_len).unwrap_or_default(),
            ram: Sections::new(ram),
        })
    }

    /// What is in RAM: each the number of its first page, and whole pages.
    pub fn ram(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        let pieces = self.ram.clone().flatten();
        let pieces = pieces.filter(|section| section.kind == PAGES);
        pieces.filter_map(|section| read_ram(section.content).ok())
    }
}

#[cfg(test)]
mod tests;
