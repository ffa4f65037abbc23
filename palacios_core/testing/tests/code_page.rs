// SPDX-License-Identifier: MIT OR Apache-2.0
//! A page of code that is remembered is the one that a walk of the guest's tables would find, whatever the guest and the host have changed since.

use palacios_core::addr::{Gpa, Gva, PAGE_SIZE};
use palacios_core::interfaces::GuestMemory;
use palacios_core::memory::code_page::{CodePage, CodeView};
use palacios_core::memory::walk::{self, Access, AccessKind, Paging, Privilege};
use palacios_core::memory::Memory;
use palacios_core::ram::RamLayout;
use palacios_core::regions::Change;
use palacios_core::state::{cr0, cr4, efer, Control};
use palacios_testing::host::LargePages;
use palacios_testing::{formats, Config, TestHost};
use proptest::prelude::*;

type Ram = Memory<TestHost>;

const RAM_BYTES: u64 = 1 << 20;
/// Two sets of tables of four levels, a page each, behind each other.
const TABLES: [u64; 2] = [0x1000, 0x5000];
/// Pages of code: each holds its own number.
const CODE: u64 = 0x10000;
const CODE_PAGES: u64 = 8;
const AT: Gva = Gva(0x40_2345);

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const NO_EXECUTE: u64 = 1 << 63;

/// What happens between two exits.
#[derive(Clone, Debug)]
enum Step {
    /// The guest writes the entry of a level (1 is the last) in a set of tables: which page of code, for the last one, and with which bits.
    Entry(usize, u32, u64, u64),
    /// The guest takes the accessed bit away, at a level of a set.
    NotAccessed(usize, u32),
    /// The guest turns to a set of tables.
    Root(usize),
    /// The guest goes to another privilege level.
    Level(u8),
    /// The guest writes to a page of code.
    Write(u64, u8),
    /// The host takes a page back.
    Revoke(u64),
    /// A page of memory goes, until the machine is reset.
    Hide(u64),
    /// The machine is reset.
    ResetMap,
}

fn step() -> impl Strategy<Value = Step> {
    let bits = prop::sample::select(vec![
        PRESENT | WRITABLE | USER,
        PRESENT | USER,
        PRESENT | ACCESSED,
        PRESENT | USER | ACCESSED | NO_EXECUTE,
        0,
    ]);
    let page = prop_oneof![1..9u64, 0x10..0x18u64];
    prop_oneof![
        4 => (0..2usize, 1..5u32, 0..CODE_PAGES, bits).prop_map(|(set, level, page, bits)| Step::Entry(set, level, page, bits)),
        2 => (0..2usize, 1..5u32).prop_map(|(set, level)| Step::NotAccessed(set, level)),
        1 => (0..2usize).prop_map(Step::Root),
        1 => prop::sample::select(vec![0, 3]).prop_map(Step::Level),
        1 => (0..CODE_PAGES, any::<u8>()).prop_map(|(page, byte)| Step::Write(page, byte)),
        2 => page.clone().prop_map(Step::Revoke),
        1 => page.prop_map(Step::Hide),
        1 => Just(Step::ResetMap),
    ]
}

fn write_word(memory: &Ram, at: Gpa, value: u64) {
    // Where the memory was taken away, the guest writes to nothing.
    let _ = memory.write(at, &value.to_le_bytes());
}

/// Where the entry of a level lies.
fn entry_at(set: usize, level: u32) -> Gpa {
    let index = AT.0 >> (12 + 9 * (level - 1)) & 511;
    Gpa(TABLES[set] + u64::from(4 - level) * PAGE_SIZE + 8 * index)
}

fn entry(set: usize, level: u32, page: u64, bits: u64) -> u64 {
    match level {
        1 => (CODE + page * PAGE_SIZE) | bits,
        _ => (TABLES[set] + u64::from(5 - level) * PAGE_SIZE) | bits,
    }
}

struct Guest {
    control: Control,
    cpl: u8,
}

impl Guest {
    fn paging(&self) -> Paging {
        Paging {
            cr0: self.control.cr0,
            cr3: self.control.cr3,
            cr4: self.control.cr4,
            efer: self.control.efer,
            rflags: 2,
            pkru: 0,
            physical_bits: 40,
            gigabyte_pages: true,
        }
    }
    fn view(&self) -> CodeView {
        CodeView::new(AT, &self.control, self.cpl)
    }
}

/// The code's first byte, as a walk finds it.
fn walked(memory: &Ram, guest: &Guest) -> Option<u8> {
    let access = Access {
        kind: AccessKind::Execute,
        privilege: if guest.cpl == 3 {
            Privilege::User
        } else {
            Privilege::Supervisor
        },
    };
    let mut tables = memory.resident();
    let found = walk::look_up(&guest.paging(), access, AT, &mut tables).ok()?;
    let mut byte = [0];
    tables.read(found.gpa, &mut byte).ok()?;
    Some(byte[0])
}

fn take(memory: &Ram, guest: &mut Guest, step: &Step) {
    match *step {
        Step::Entry(set, level, page, bits) => {
            write_word(memory, entry_at(set, level), entry(set, level, page, bits));
        }
        Step::NotAccessed(set, level) => {
            let mut bytes = [0; 8];
            if memory.read(entry_at(set, level), &mut bytes).is_ok() {
                let value = u64::from_le_bytes(bytes);
                write_word(memory, entry_at(set, level), value & !ACCESSED);
            }
        }
        Step::Root(set) => guest.control.cr3 = TABLES[set],
        Step::Level(cpl) => guest.cpl = cpl,
        Step::Write(page, byte) => {
            let at = Gpa(CODE + page * PAGE_SIZE + AT.page_offset());
            let _ = memory.write(at, &[byte]);
        }
        Step::Revoke(page) => {
            memory.revoke(Gpa(page * PAGE_SIZE), PAGE_SIZE, &|| {});
        }
        Step::Hide(page) => {
            let _ = memory.change_until_reset(
                &[Change::Remove {
                    at: Gpa(page * PAGE_SIZE),
                    bytes: PAGE_SIZE,
                }],
                &|| {},
            );
        }
        Step::ResetMap => memory.reset_map(&|| {}).unwrap(),
    }
}

/// How often the page that was remembered was good, and how often it was not.
fn run(steps: &[Step], large: LargePages) -> (u32, u32) {
    TestHost::run(Config::default(), |host| {
        let ram = host.ram(large);
        let memory = Memory::new(host, ram, RamLayout::new(RAM_BYTES), formats::npt(4)).unwrap();
        for set in 0..2 {
            for level in 1..5 {
                let value = entry(set, level, set as u64, PRESENT | USER | WRITABLE);
                write_word(&memory, entry_at(set, level), value);
            }
        }
        for page in 0..CODE_PAGES {
            let at = Gpa(CODE + page * PAGE_SIZE + AT.page_offset());
            memory.write(at, &[page as u8 + 1]).unwrap();
        }
        let mut guest = Guest {
            control: Control {
                cr0: cr0::PE | cr0::PG | cr0::WP,
                cr2: 0,
                cr3: TABLES[0],
                cr4: cr4::PAE,
                efer: efer::LMA | efer::LME | efer::NXE,
            },
            cpl: 0,
        };
        let mut known: Option<CodePage> = None;
        let (mut good, mut stale) = (0, 0);
        for step in steps {
            take(&memory, &mut guest, step);
            let expected = walked(&memory, &guest);
            let view = guest.view();
            let mut resident = memory.resident();
            let remembered = known
                .as_ref()
                .and_then(|page| resident.remembered(page, &view, AT)?.byte(0));
            if remembered.is_some() {
                assert_eq!(remembered, expected, "{step:?}");
                good += 1;
                continue;
            }
            stale += 1;
            known = resident.find_code(&guest.paging(), &view, AT);
            let found = known
                .as_ref()
                .and_then(|page| resident.remembered(page, &view, AT)?.byte(0));
            assert_eq!(found, expected, "{step:?}");
        }
        (good, stale)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_remembered_is_what_a_walk_finds(steps in prop::collection::vec(step(), 1..80), is_large in any::<bool>()) {
        let large = if is_large { LargePages::Always } else { LargePages::Never };
        run(&steps, large);
    }
}

#[test]
fn only_what_has_changed_is_looked_for_anew() {
    let writes = [Step::Write(0, 9), Step::Write(0, 10), Step::Level(0)];
    assert_eq!(run(&writes, LargePages::Never), (2, 1));
    let remapped = PRESENT | USER | WRITABLE;
    let changes = [
        Step::Level(0),
        Step::Entry(0, 1, 3, remapped),
        Step::Write(3, 7),
        Step::NotAccessed(0, 3),
        Step::Level(3),
        Step::Root(1),
        Step::Revoke(0x11),
        Step::Write(1, 5),
    ];
    // A page that was taken back has no frame until somebody touches it, so nothing can be remembered of it.
    assert_eq!(run(&changes, LargePages::Never), (1, 7));
}

#[test]
fn code_ends_with_its_page() {
    TestHost::run(Config::default(), |host| {
        let ram = host.ram(LargePages::Never);
        let memory = Memory::new(host, ram, RamLayout::new(RAM_BYTES), formats::npt(4)).unwrap();
        memory.write(Gpa(0x2ffe), &[1, 2, 3]).unwrap();
        let guest = Guest {
            control: Control {
                cr0: cr0::PE,
                cr2: 0,
                cr3: 0,
                cr4: 0,
                efer: 0,
            },
            cpl: 0,
        };
        let at = Gva(0x2ffe);
        let view = CodeView::new(at, &guest.control, 0);
        let mut resident = memory.resident();
        let page = resident.find_code(&guest.paging(), &view, at).unwrap();
        let code = resident.remembered(&page, &view, at).unwrap();
        assert_eq!([0, 1, 2].map(|n| code.byte(n)), [Some(1), Some(2), None]);
    });
}
