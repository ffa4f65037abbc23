// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way to an address, through a guest's page tables and the nested ones, in words.

use crate::format_bytes;
use crate::vcpu_report::Hex;
use serde::Serialize;
use std::fmt;
use v3_abi::*;

/// What each bit of an entry says, in the order in which it is told.
const FLAGS: [(u32, &str); 9] = [
    (V3_ENTRY_PRESENT, "present"),
    (V3_ENTRY_WRITE, "write"),
    (V3_ENTRY_USER, "user"),
    (V3_ENTRY_EXECUTE, "execute"),
    (V3_ENTRY_ACCESSED, "accessed"),
    (V3_ENTRY_DIRTY, "dirty"),
    (V3_ENTRY_LEAF, "page"),
    (V3_ENTRY_RESERVED, "reserved-bits"),
    (V3_ENTRY_UNTOUCHED, "untouched"),
];

/// A walk to an address.
#[derive(Clone, Debug, Serialize)]
pub struct Walk {
    /// The address: linear, or guest-physical if only nested tables were walked.
    pub address: Hex,
    /// The virtual CPU whose tables were walked; none for a guest-physical address.
    pub vcpu: Option<u32>,
    /// How the guest translates.
    pub mode: Option<&'static str>,
    /// The guest's entries, from the root down.
    pub entries: Vec<Entry>,
    /// Where the walk through the guest's tables ended.
    pub end: End,
    /// The guest-physical address to which it leads; where the missing table would be, where that is the end.
    pub gpa: Option<Hex>,
    /// The page there.
    pub page: Option<Page>,
    /// What is at the guest-physical address.
    pub place: Option<Place>,
    /// The nested tables' entries, from the root down.
    pub nested: Vec<Entry>,
    /// The host-physical address, if nested tables map it and the caller may know it.
    pub hpa: Option<Hex>,
    /// The page there.
    pub nested_page: Option<Page>,
}

/// An entry of a page table.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The level of its table. Those of level 1 map pages of 4 KiB.
    pub level: u32,
    /// What the manuals call it.
    pub name: &'static str,
    /// Its address.
    pub at: Hex,
    /// Its value.
    pub value: Hex,
    /// What it says.
    pub flags: Vec<&'static str>,
}

/// A page, and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Page {
    /// Its size; 2^32 without paging.
    pub bytes: u64,
    /// It may be written.
    pub write: bool,
    /// User mode may use it.
    pub user: bool,
    /// It may be executed.
    pub execute: bool,
}

/// Where a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// At a page.
    Mapped,
    /// At the last entry, which is not present.
    NotPresent,
    /// At the last entry, which has bits set that must be zero.
    ReservedBits,
    /// It does not begin.
    NonCanonical,
    /// No memory is where the next entry would be.
    NoTable,
    /// In a way that this program does not know.
    Other,
}

/// What is at a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Memory, which can be read.
    Memory,
    /// Memory without a page of the host.
    Untouched,
    /// No memory: a device's address, or nobody's.
    NoMemory,
}

impl From<u32> for Place {
    fn from(raw: u32) -> Self {
        match raw {
            V3_PLACE_MEMORY => Self::Memory,
            V3_PLACE_UNTOUCHED => Self::Untouched,
            _ => Self::NoMemory,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Untouched => {
                "the page has no frame: not touched yet, it reads as zeroes; or the host took it back"
            }
            Self::NoMemory => "no memory is there",
        })
    }
}

impl From<&v3_walk> for Walk {
    fn from(raw: &v3_walk) -> Self {
        let physical = raw.flags & V3_WALK_PHYSICAL != 0;
        let end = match raw.end {
            V3_WALK_MAPPED => End::Mapped,
            V3_WALK_NOT_PRESENT => End::NotPresent,
            V3_WALK_RESERVED => End::ReservedBits,
            V3_WALK_NON_CANONICAL => End::NonCanonical,
            V3_WALK_NO_TABLE => End::NoTable,
            _ => End::Other,
        };
        let mapped = end == End::Mapped;
        let nested_mapped = mapped && raw.nested_page_bytes != 0;
        Self {
            address: Hex(raw.address),
            vcpu: (!physical).then_some(raw.vcpu),
            mode: (!physical).then(|| mode(raw.mode)),
            entries: entries(&raw.entries, raw.count),
            end,
            gpa: (mapped || end == End::NoTable).then_some(Hex(raw.gpa)),
            page: (mapped && !physical).then(|| page(raw.page_bytes, raw.rights)),
            place: mapped.then(|| raw.place.into()),
            nested: entries(&raw.nested, raw.nested_count),
            hpa: (nested_mapped && raw.hpa != 0).then_some(Hex(raw.hpa)),
            nested_page: nested_mapped.then(|| page(raw.nested_page_bytes, raw.nested_rights)),
        }
    }
}

fn mode(raw: u32) -> &'static str {
    match raw {
        V3_PAGING_OFF => "no paging",
        V3_PAGING_32BIT => "32-bit paging",
        V3_PAGING_PAE => "PAE paging",
        V3_PAGING_4LEVEL => "4-level paging",
        V3_PAGING_5LEVEL => "5-level paging",
        _ => "unknown paging",
    }
}

fn page(bytes: u64, rights: u32) -> Page {
    Page {
        bytes,
        write: rights & V3_ENTRY_WRITE != 0,
        user: rights & V3_ENTRY_USER != 0,
        execute: rights & V3_ENTRY_EXECUTE != 0,
    }
}

fn entries(raw: &[v3_walk_entry], count: u32) -> Vec<Entry> {
    let raw = raw.iter().take(count as usize);
    raw.map(|entry| Entry {
        level: entry.level,
        name: match entry.level {
            1 => "PTE",
            2 => "PDE",
            3 => "PDPTE",
            4 => "PML4E",
            5 => "PML5E",
            _ => "entry",
        },
        at: Hex(entry.at),
        value: Hex(entry.value),
        flags: flags(entry.flags),
    })
    .collect()
}

fn flags(bits: u32) -> Vec<&'static str> {
    let set = FLAGS.iter().filter(|(bit, _)| bits & bit != 0);
    set.map(|(_, name)| *name).collect()
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = match self.flags.as_slice() {
            [] => "not present".into(),
            flags if flags.contains(&"present") => flags.join(" "),
            flags => format!("not present, {}", flags.join(" ")),
        };
        write!(
            f,
            "level {} {:5}  at {:#014x}  {:#018x}  {flags}",
            self.level, self.name, self.at.0, self.value.0
        )
    }
}

impl Page {
    /// What may be done, of all that has a name.
    fn allows(&self, user: bool) -> String {
        let all = [
            (true, "reads"),
            (self.write, "writes"),
            (self.execute, "execution"),
        ];
        let all: Vec<&str> = all
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, what)| *what)
            .collect();
        let whose = match (user, self.user) {
            (false, _) => "",
            (true, true) => "; user mode too",
            (true, false) => "; not user mode",
        };
        format!("{}{whose}", all.join(", "))
    }
}

impl Walk {
    /// Why the walk through the guest's tables leads nowhere; `None` if it leads to a page.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let last = self.entries.last().map_or(0, |entry| entry.level);
        let untouched = self
            .entries
            .last()
            .is_some_and(|e| e.flags.contains(&"untouched"));
        Some(match self.end {
            End::Mapped => return None,
            End::NotPresent if untouched => {
                format!("not present at level {last}: the table was not touched yet, and reads as zeroes")
            }
            End::NotPresent => format!("not present at level {last}"),
            End::ReservedBits => format!("bits are set at level {last} that must be zero"),
            End::NonCanonical => "the address is not canonical".into(),
            End::NoTable => format!(
                "no memory is at {}, where the next entry would be",
                self.gpa.unwrap_or(Hex(0))
            ),
            End::Other => "it ends in a way that this program does not know".into(),
        })
    }
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(vcpu), Some(mode)) = (self.vcpu, self.mode) {
            writeln!(f, "vcpu {vcpu}: {}, {mode}", self.address)?;
        }
        for entry in &self.entries {
            writeln!(f, "  {entry}")?;
        }
        if let Some(failure) = self.failure() {
            return writeln!(f, "  {failure}");
        }
        let gpa = self.gpa.unwrap_or(self.address);
        write!(f, "guest-physical {gpa}")?;
        match &self.page {
            Some(page) if page.bytes < 1 << 32 => {
                let (size, allows) = (format_bytes(page.bytes), page.allows(true));
                writeln!(f, ": a page of {size}, which allows {allows}")?;
            }
            _ => writeln!(f)?,
        }
        for entry in &self.nested {
            writeln!(f, "  {entry}")?;
        }
        if let Some(place) = self.place.filter(|place| *place != Place::Memory) {
            return writeln!(f, "  {place}");
        }
        match (&self.nested_page, self.hpa) {
            (None, _) => writeln!(f, "  not mapped yet: the next access makes the entry"),
            (Some(page), hpa) => {
                let hpa = hpa.map_or_else(|| "hidden".into(), |hpa| hpa.to_string());
                let (size, allows) = (format_bytes(page.bytes), page.allows(false));
                writeln!(
                    f,
                    "host-physical {hpa}: a page of {size}, which allows {allows}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> v3_walk {
        let mut raw = v3_walk {
            address: 0x80_0000_0123,
            mode: V3_PAGING_4LEVEL,
            end: V3_WALK_MAPPED,
            count: 4,
            nested_count: 2,
            gpa: 0x80_0123,
            page_bytes: 4096,
            rights: V3_ENTRY_WRITE,
            place: V3_PLACE_MEMORY,
            hpa: 0x1_2340_0123,
            nested_page_bytes: 2 << 20,
            nested_rights: V3_ENTRY_WRITE | V3_ENTRY_EXECUTE,
            ..v3_walk::zeroed()
        };
        for (entry, level) in raw.entries.iter_mut().zip([4, 3, 2, 1]) {
            *entry = v3_walk_entry {
                at: 0x10_0000,
                value: 0x10_1023,
                level,
                flags: V3_ENTRY_PRESENT | V3_ENTRY_WRITE | V3_ENTRY_ACCESSED,
            };
        }
        for (entry, level) in raw.nested.iter_mut().zip([4, 3]) {
            entry.level = level;
            entry.flags = V3_ENTRY_PRESENT;
        }
        raw
    }

    #[test]
    fn a_walk_is_told_level_by_level() {
        let text = Walk::from(&raw()).to_string();
        for expected in [
            "vcpu 0: 0x8000000123, 4-level paging\n",
            "  level 4 PML4E  at 0x000000100000  0x0000000000101023  present write accessed\n",
            "  level 1 PTE    at ",
            "\nguest-physical 0x800123: a page of 4 KiB, which allows reads, writes; not user mode\n",
            "\nhost-physical 0x123400123: a page of 2 MiB, which allows reads, writes, execution\n",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
        let json = serde_json::to_value(Walk::from(&raw())).unwrap();
        assert_eq!(json["end"], "mapped");
        assert_eq!(json["gpa"], "0x800123");
        assert_eq!(json["entries"][3]["name"], "PTE");
        assert_eq!(json["entries"][0]["flags"][1], "write");
        assert_eq!(json["page"]["bytes"], 4096);
        assert_eq!(json["place"], "memory");
    }

    #[test]
    fn each_end_has_its_words() {
        let ends = |end, flags| {
            let mut raw = v3_walk {
                end,
                count: 2,
                gpa: 0xe000_0000,
                ..raw()
            };
            raw.entries[1].flags = flags;
            Walk::from(&raw).to_string()
        };
        for (end, flags, words) in [
            (V3_WALK_NOT_PRESENT, 0, "  not present at level 3\n"),
            (
                V3_WALK_NOT_PRESENT,
                V3_ENTRY_UNTOUCHED,
                "not touched yet, and reads as zeroes\n",
            ),
            (
                V3_WALK_RESERVED,
                V3_ENTRY_PRESENT,
                "  bits are set at level 3 that must be zero\n",
            ),
            (V3_WALK_NON_CANONICAL, 0, "  the address is not canonical\n"),
            (
                V3_WALK_NO_TABLE,
                1,
                "  no memory is at 0xe0000000, where the next entry would be\n",
            ),
            (99, 0, "that this program does not know\n"),
        ] {
            let text = ends(end, flags);
            assert!(text.ends_with(words), "{words:?} in\n{text}");
            assert!(!text.contains("host-physical"));
        }
    }

    #[test]
    fn what_the_nested_tables_lack_is_said() {
        let of = |place, nested_page_bytes| {
            let raw = v3_walk {
                place,
                nested_page_bytes,
                hpa: 0,
                flags: V3_WALK_PHYSICAL,
                count: 0,
                ..raw()
            };
            Walk::from(&raw).to_string()
        };
        let text = of(V3_PLACE_UNTOUCHED, 0);
        assert!(text.starts_with("guest-physical 0x800123\n"), "{text}");
        assert!(
            text.contains("not touched yet, it reads as zeroes"),
            "{text}"
        );
        assert!(of(V3_PLACE_NONE, 0).ends_with("  no memory is there\n"));
        assert!(of(V3_PLACE_MEMORY, 0).contains("not mapped yet"));
        assert!(of(V3_PLACE_MEMORY, 4096).contains("host-physical hidden: a page of 4 KiB"));
    }

    #[test]
    fn a_module_that_says_too_much_is_not_believed() {
        let wild = v3_walk {
            count: u32::MAX,
            nested_count: u32::MAX,
            mode: 99,
            ..raw()
        };
        let walk = Walk::from(&wild);
        assert_eq!((walk.entries.len(), walk.nested.len()), (5, 5));
        assert!(!walk.to_string().is_empty());
    }
}
