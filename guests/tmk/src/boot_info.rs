// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the boot loader says, by whichever protocol it started us: Multiboot 1 (0.6.96: 3.3) and 2 (2.0: 3.6), PVH (the structure
//! `hvm_start_info`), and Linux' 32-bit protocol (the zero page).

use core::cell::UnsafeCell;
use core::ffi::CStr;

const MULTIBOOT: u32 = 0x2bad_b002;
const MULTIBOOT_2: u32 = 0x36d7_6289;
/// What boot.rs passes on of the protocols that have no such number.
const PVH: u32 = u32::from_le_bytes(*b"PVH ");
const LINUX: u32 = u32::from_le_bytes(*b"Linu");

const MOST_MODULES: usize = 8;
const MOST_REGIONS: usize = 32;

/// A file that came with the kernel.
#[derive(Clone, Copy)]
pub struct Module {
    pub start: u64,
    bytes: u64,
    line: u64,
}

impl Module {
    pub fn data(&self) -> &'static [u8] {
        // SAFETY: the loader's word that it lies there.
        unsafe { core::slice::from_raw_parts(self.start as *const u8, self.bytes as usize) }
    }
    pub fn cmdline(&self) -> &'static str {
        text(self.line)
    }
}

/// A part of the memory map: start, length in bytes, and kind, of which 1 is RAM.
pub type Region = (u64, u64, u32);

/// What a loader says.
pub struct Info {
    /// The protocol, by name.
    pub protocol: &'static str,
    line: u64,
    /// KiB below 1 MiB, and from there to the first hole, if the protocol has these numbers.
    pub bounds_kib: Option<(u32, u32)>,
    modules: [Module; MOST_MODULES],
    module_count: usize,
    regions: [Region; MOST_REGIONS],
    region_count: usize,
}

impl Info {
    const fn new(protocol: &'static str) -> Self {
        Self {
            protocol,
            line: 0,
            bounds_kib: None,
            modules: [Module {
                start: 0,
                bytes: 0,
                line: 0,
            }; MOST_MODULES],
            module_count: 0,
            regions: [(0, 0, 0); MOST_REGIONS],
            region_count: 0,
        }
    }
    pub fn cmdline(&self) -> &'static str {
        text(self.line)
    }
    pub fn modules(&self) -> &[Module] {
        &self.modules[..self.module_count]
    }
    pub fn memory_map(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }
    /// The end of the RAM below 3 GiB.
    pub fn low_ram_end(&self) -> u64 {
        let regions = self.memory_map().iter();
        let low = regions.filter(|(start, _, kind)| *kind == 1 && *start < 3 << 30);
        low.map(|(start, bytes, _)| start + bytes)
            .max()
            .unwrap_or(0)
    }

    fn add_module(&mut self, start: u64, bytes: u64, line: u64) {
        if let Some(slot) = self.modules.get_mut(self.module_count) {
            *slot = Module { start, bytes, line };
            self.module_count += 1;
        }
    }
    fn add_region(&mut self, region: Region) {
        if let Some(slot) = self.regions.get_mut(self.region_count) {
            *slot = region;
            self.region_count += 1;
        }
    }

    /// Reads what lies at `at`.
    fn read(magic: u32, at: u64) -> Option<Self> {
        match magic {
            MULTIBOOT => Some(Self::of_multiboot(at)),
            MULTIBOOT_2 => Some(Self::of_multiboot_2(at)),
            PVH if u32_at(at) == 0x336e_c578 => Some(Self::of_pvh(at)),
            LINUX => Some(Self::of_linux(at)),
            _ => None,
        }
    }

    fn of_multiboot(at: u64) -> Self {
        let mut info = Self::new("multiboot");
        let flags = u32_at(at);
        let field = |offset: u64| u64::from(u32_at(at + offset));
        if flags & 1 != 0 {
            info.bounds_kib = Some((u32_at(at + 4), u32_at(at + 8)));
        }
        if flags & 1 << 2 != 0 {
            info.line = field(16);
        }
        for n in 0..if flags & 1 << 3 != 0 { field(20) } else { 0 } {
            let entry = field(24) + 16 * n;
            let start = u64::from(u32_at(entry));
            let end = u64::from(u32_at(entry + 4));
            info.add_module(start, end - start, u32_at(entry + 8).into());
        }
        let map_bytes = if flags & 1 << 6 != 0 { field(44) } else { 0 };
        let (mut entry, end) = (field(48), field(48) + map_bytes);
        while entry < end {
            info.add_region((u64_at(entry + 4), u64_at(entry + 12), u32_at(entry + 20)));
            entry += u64::from(u32_at(entry)) + 4;
        }
        info
    }

    fn of_multiboot_2(at: u64) -> Self {
        let mut info = Self::new("multiboot2");
        let end = at + u64::from(u32_at(at));
        let mut tag = at + 8;
        while tag < end {
            let bytes = u64::from(u32_at(tag + 4));
            match u32_at(tag) {
                1 => info.line = tag + 8,
                3 => {
                    let (start, end) = (u32_at(tag + 8), u32_at(tag + 12));
                    info.add_module(start.into(), (end - start).into(), tag + 16);
                }
                4 => info.bounds_kib = Some((u32_at(tag + 8), u32_at(tag + 12))),
                6 => {
                    let entry_bytes = u64::from(u32_at(tag + 8)).max(1);
                    let entries = (tag + 16..tag + bytes).step_by(entry_bytes as usize);
                    entries.for_each(|entry| info.add_region(region_at(entry)));
                }
                _ => {}
            }
            tag = (tag + bytes).next_multiple_of(8);
        }
        info
    }

    fn of_pvh(at: u64) -> Self {
        let mut info = Self::new("pvh");
        info.line = u64_at(at + 24);
        for n in 0..u64::from(u32_at(at + 12)) {
            let entry = u64_at(at + 16) + 32 * n;
            info.add_module(u64_at(entry), u64_at(entry + 8), u64_at(entry + 16));
        }
        for n in 0..u64::from(u32_at(at + 48)) {
            info.add_region(region_at(u64_at(at + 40) + 24 * n));
        }
        info
    }

    fn of_linux(at: u64) -> Self {
        let mut info = Self::new("linux");
        info.line = u32_at(at + 0x228).into();
        let (start, bytes) = (u32_at(at + 0x218), u32_at(at + 0x21c));
        if bytes > 0 {
            info.add_module(start.into(), bytes.into(), 0);
        }
        let entries = u64::from(u32_at(at + 0x1e8) & 0xff);
        for n in 0..entries {
            info.add_region(region_at(at + 0x2d0 + 20 * n));
        }
        info
    }
}

/// A start, a length and a kind, one behind the other.
fn region_at(at: u64) -> Region {
    (u64_at(at), u64_at(at + 8), u32_at(at + 16))
}

fn u32_at(at: u64) -> u32 {
    // SAFETY: the loader's word that it lies there.
    unsafe { (at as *const u32).read_unaligned() }
}

fn u64_at(at: u64) -> u64 {
    // SAFETY: as above.
    unsafe { (at as *const u64).read_unaligned() }
}

fn text(at: u64) -> &'static str {
    if at == 0 {
        return "";
    }
    // SAFETY: the loader's word that a string ends there.
    unsafe { CStr::from_ptr(at as *const _) }
        .to_str()
        .unwrap_or("")
}

/// What the loader said, once that is known.
struct Remembered(UnsafeCell<Option<Info>>);
// SAFETY: written once, before any other processor runs.
unsafe impl Sync for Remembered {}
static INFO: Remembered = Remembered(UnsafeCell::new(None));

/// Reads what the loader says; `false` if that is no loader that we know.
pub fn remember(magic: u32, at: u32) -> bool {
    let info = Info::read(magic, at.into());
    let known = info.is_some();
    // SAFETY: nobody else is there yet.
    unsafe { *INFO.0.get() = info };
    known
}
pub fn info() -> &'static Info {
    static NOTHING: Info = Info::new("nothing");
    // SAFETY: it does not change any more.
    unsafe { (*INFO.0.get()).as_ref().unwrap_or(&NOTHING) }
}
/// The value of `name=value` on the command line.
pub fn argument(name: &str) -> Option<&'static str> {
    info()
        .cmdline()
        .split(' ')
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}
/// A decimal number from the command line.
pub fn number(name: &str) -> Option<u64> {
    argument(name)?.parse().ok()
}
/// Whether another machine than this project's VMM is to judge the tests.
pub fn judged_by_another_machine() -> bool {
    argument("machine") == Some("other")
}
