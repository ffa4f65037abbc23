// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory: what is RAM, which frames it has, what the VMM reads and writes, and what revocation leaves alone.

use palacios_core::addr::{Gpa, NotRam, LARGE_PAGE_SIZE, PAGE_SIZE};
use palacios_core::host::{CpuId, Host, NoMemory, PageSize, Thread};
use palacios_core::interfaces::GuestMemory;
use palacios_core::interfaces::PinError;
use palacios_core::memory::nested::Format;
use palacios_core::memory::{FaultError, Memory, Pin};
use palacios_core::ram::{RamLayout, HIGH_RAM, LOW_RAM_END};
use palacios_core::regions::{Change, Region, Writes};
use palacios_testing::host::{LargePages, TestRam};
use palacios_testing::{formats, heap, map_page, Config, TestHost};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

type Ram = Memory<TestHost>;

const LARGE: u64 = LARGE_PAGE_SIZE;

fn memory(host: &TestHost, ram: &TestRam, bytes: u64) -> Result<Ram, NoMemory> {
    Memory::new(host, ram.clone(), RamLayout::new(bytes), formats::npt(4))
}

fn with_memory<R>(large: LargePages, bytes: u64, test: impl FnOnce(&Ram, &TestRam) -> R) -> R {
    with_tables(formats::npt(4), large, bytes, test)
}

fn with_tables<R>(
    format: Format,
    large: LargePages,
    bytes: u64,
    test: impl FnOnce(&Ram, &TestRam) -> R,
) -> R {
    TestHost::run(Config::default(), |host| {
        let ram = host.ram(large);
        let memory = Memory::new(host, ram.clone(), RamLayout::new(bytes), format).unwrap();
        test(&memory, &ram)
    })
}

/// How many frames it has, large and small.
fn frames(memory: &Ram) -> (u64, u64) {
    (
        memory.frames(PageSize::Large),
        memory.frames(PageSize::Small),
    )
}

fn word(memory: &Ram, at: Gpa) -> u64 {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

#[test]
fn ram_ends_where_it_ends_and_leaves_out_the_hole() {
    let bytes = LOW_RAM_END + 3 * PAGE_SIZE;
    with_memory(LargePages::Always, bytes, |memory, _| {
        let high_end = HIGH_RAM + 3 * PAGE_SIZE;
        for (gpa, is_ram) in [
            (0, true),
            (LOW_RAM_END - 1, true),
            (LOW_RAM_END, false),
            (HIGH_RAM - 1, false),
            (HIGH_RAM, true),
            (high_end - 1, true),
            (high_end, false),
            (u64::MAX, false),
        ] {
            let gpa = Gpa(gpa);
            assert_eq!(memory.is_memory(gpa), is_ram, "{gpa}");
            let mapped = if is_ram {
                Ok(())
            } else {
                Err(FaultError::NotMemory)
            };
            assert_eq!(map_page(memory, gpa).map(|_| ()), mapped, "{gpa}");
            assert_eq!(memory.read(gpa, &mut [0]).is_ok(), is_ram, "{gpa}");
            assert_eq!(memory.write(gpa, &[1]).is_ok(), is_ram, "{gpa}");
        }
        // The last large page above the hole is not whole, so it was not given.
        assert_eq!(frames(memory), (2, 2));
        assert_eq!(memory.resident_bytes(), 2 * LARGE + 2 * PAGE_SIZE);
    });
}

#[test]
fn accesses_end_with_the_ram() {
    with_memory(LargePages::Never, 2 * PAGE_SIZE, |memory, _| {
        let last = Gpa(2 * PAGE_SIZE - 4);
        assert_eq!(memory.read(last, &mut [0; 4]), Ok(()));
        assert_eq!(
            memory.read(last, &mut [0; 5]),
            Err(NotRam(Gpa(2 * PAGE_SIZE)))
        );
        assert_eq!(memory.write(last, &[7; 9]), Err(NotRam(Gpa(2 * PAGE_SIZE))));
        for at in [Gpa(u64::MAX), Gpa(u64::MAX - 3), Gpa(1 << 48)] {
            assert!(memory.read(at, &mut [0; 8]).is_err());
            assert!(memory.write(at, &[0; 8]).is_err());
            assert!(memory.compare_exchange(at, 1, 0, 1).is_err());
        }
        assert_eq!(memory.read(Gpa(u64::MAX), &mut []), Ok(()));
    });
}

#[test]
fn compare_exchange_is_of_aligned_words() {
    with_memory(LargePages::Always, LARGE, |memory, _| {
        memory.write(Gpa(0), &[0xff; 16]).unwrap();
        for size in [1u8, 2, 4, 8] {
            let ones = u64::MAX >> (64 - 8 * u32::from(size));
            let at = Gpa(8);
            assert_eq!(memory.compare_exchange(at, size, 0, 1), Ok(false));
            assert_eq!(memory.compare_exchange(at, size, ones, 0), Ok(true));
            assert_eq!(word(memory, at), !ones);
            assert_eq!(word(memory, Gpa(0)), u64::MAX);
            assert_eq!(memory.compare_exchange(at, size, 0, ones), Ok(true));
        }
        for (at, size) in [(1, 2), (2, 4), (4, 8), (0, 3), (0, 16), (0, 0)] {
            let answer = memory.compare_exchange(Gpa(at), size, u64::MAX, 0);
            assert_eq!(answer, Err(NotRam(Gpa(at))));
        }
        assert_eq!(word(memory, Gpa(0)), u64::MAX);
    });
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Exchange(u64, u64),
    Revoke(u64, u64),
    Map(u64),
    LargePages(LargePages),
}

/// Guest-physical addresses around those that matter, in RAM of 3 GiB and 5 MiB: few, so that they meet.
fn at() -> impl Strategy<Value = u64> {
    const NEAR: [u64; 8] = [
        0,
        LARGE,
        3 * LARGE,
        LOW_RAM_END - LARGE,
        LOW_RAM_END,
        HIGH_RAM,
        HIGH_RAM + 2 * LARGE,
        HIGH_RAM + 5 * LARGE / 2,
    ];
    (prop::sample::select(&NEAR[..]), 0..3 * PAGE_SIZE)
        .prop_map(|(near, offset)| near.saturating_add(offset).saturating_sub(PAGE_SIZE))
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = prop_oneof![0..64usize, 4000..9000usize];
    let large = prop::sample::select(vec![LargePages::Always, LargePages::Never]);
    prop_oneof![
        4 => (at(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, b)| Op::Write(at, b)),
        1 => (at(), any::<u8>(), 4000..9000usize).prop_map(|(at, b, n)| Op::Write(at, vec![b; n])),
        4 => (at(), bytes).prop_map(|(at, n)| Op::Read(at, n)),
        2 => (at(), any::<u64>()).prop_map(|(at, new)| Op::Exchange(at & !7, new)),
        3 => (at(), prop_oneof![0..3 * LARGE, Just(u64::MAX)]).prop_map(|(at, n)| Op::Revoke(at, n)),
        1 => at().prop_map(Op::Map),
        1 => large.prop_map(Op::LargePages),
    ]
}

/// Bytes that are not zero.
#[derive(Default)]
struct Model(BTreeMap<u64, u8>);

impl Model {
    fn byte(&self, at: u64) -> u8 {
        self.0.get(&at).copied().unwrap_or(0)
    }
    fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.byte(at + i as u64)))
    }
    /// Writes what is RAM, up to the first byte that is not.
    fn write(&mut self, memory: &Ram, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..)
            .zip(bytes)
            .take_while(|(at, _)| memory.is_memory(Gpa(*at)))
        {
            self.0.insert(at, *byte);
        }
    }
}

fn apply(memory: &Ram, ram: &TestRam, model: &mut Model, op: &Op) {
    let all_ram = |at: u64, n: usize| (at..at + n as u64).all(|at| memory.is_memory(Gpa(at)));
    match op {
        Op::Write(at, bytes) => {
            let written = memory.write(Gpa(*at), bytes);
            assert_eq!(written.is_ok(), all_ram(*at, bytes.len()));
            model.write(memory, *at, bytes);
        }
        Op::Read(at, n) => {
            let mut bytes = vec![0xee; *n];
            let read = memory.read(Gpa(*at), &mut bytes);
            assert_eq!(read.is_ok(), all_ram(*at, *n));
            if read.is_ok() {
                let expected = (*at..).take(*n).map(|at| model.byte(at));
                assert!(bytes.into_iter().eq(expected));
            }
        }
        Op::Exchange(at, new) => {
            let old = model.word(*at);
            let answer = memory.compare_exchange(Gpa(*at), 8, old, *new);
            assert_eq!(answer.is_ok(), all_ram(*at, 8));
            if answer == Ok(true) {
                model.write(memory, *at, &new.to_le_bytes());
            }
            assert_ne!(answer, Ok(false));
        }
        Op::Revoke(from, bytes) => {
            let (before, generation) = (frames(memory), memory.generation());
            let taken = memory.revoke(Gpa(*from), *bytes, &|| {
                // Out of the guest's reach already, and not yet back with the host.
                let (now, given) = (frames(memory), ram.given());
                assert!(now.0 + now.1 < given.0 + given.1);
                assert_ne!(memory.generation(), generation);
            });
            let after = frames(memory);
            assert_eq!(before.0 + before.1 - taken, after.0 + after.1);
            assert_eq!(generation == memory.generation(), taken == 0);
        }
        Op::Map(at) => assert_eq!(
            map_page(memory, Gpa(*at)).is_ok(),
            memory.is_memory(Gpa(*at))
        ),
        Op::LargePages(large) => ram.set_large_pages(*large),
    }
    assert_eq!(frames(memory), ram.given());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]
    #[test]
    fn contents_outlive_revocation(
        ops in prop::collection::vec(op(), 1..60),
        format in prop::sample::select(vec![formats::npt(4), formats::no_large_code(formats::ept(4))]),
    ) {
        let bytes = LOW_RAM_END + 2 * LARGE + LARGE / 2;
        with_tables(format, LargePages::Sometimes, bytes, |memory, ram| {
            let mut model = Model::default();
            for op in &ops {
                apply(memory, ram, &mut model, op);
            }
            memory.revoke(Gpa(0), u64::MAX, &|| ());
            assert_eq!(memory.resident_bytes(), 0);
            for (at, byte) in model.0 {
                let mut read = [0];
                memory.read(Gpa(at), &mut read).unwrap();
                assert_eq!(read, [byte]);
            }
        });
    }
}

/// Whichever allocation fails: an error, nothing lost, and the same again works when there is memory.
#[test]
fn memory_may_run_out_anywhere() {
    for large in [LargePages::Always, LargePages::Never] {
        TestHost::run(Config::default(), |host| {
            let ram = heap::exempt(|| host.ram(large));
            let allocations = heap::fail_each(|_| {
                let Ok(memory) = memory(host, &ram, 64 << 20) else {
                    return assert_eq!(host.pages_in_use(), 0);
                };
                for at in [0, LARGE - 8, 40 << 20] {
                    let at = Gpa(at);
                    if let Err(error) = map_page(&memory, at) {
                        assert_eq!(error, FaultError::NoMemory);
                        assert_eq!(frames(&memory), ram.given());
                        assert!(map_page(&memory, at).is_ok());
                    }
                    assert_eq!(memory.write(at, &at.0.to_le_bytes()), Ok(()));
                    assert_eq!(word(&memory, at), at.0);
                }
                assert_eq!(frames(&memory), ram.given());
                drop(memory);
                assert_eq!(host.pages_in_use(), 0);
            });
            assert!(allocations >= 8, "{allocations}");
        });
    }
}

/// Physical memory is smaller than the guest's: at some page there is none left; what was there stays usable.
#[test]
fn a_full_host_is_an_error() {
    let config = Config {
        low_pages: 8,
        high_pages: 64,
        ..Config::default()
    };
    TestHost::run(config, |host| {
        let ram = host.ram(LargePages::Sometimes);
        let memory = memory(host, &ram, 1 << 30).unwrap();
        let mut at = Gpa(0);
        while map_page(&memory, at).is_ok() {
            memory.write(at, &at.0.to_le_bytes()).unwrap();
            at = at.wrapping_add(PAGE_SIZE);
        }
        assert!(at.0 >= 40 * PAGE_SIZE, "{at}");
        assert_eq!(memory.read(at, &mut [0]), Err(NotRam(at)));
        assert!((0..at.0)
            .step_by(4096)
            .all(|at| word(&memory, Gpa(at)) == at));
        // The host takes half of it back, and has room for the guest again.
        assert_eq!(
            memory.revoke(Gpa(0), at.0 / 2, &|| ()),
            at.0 / 2 / PAGE_SIZE
        );
        assert!(map_page(&memory, at).is_ok());
    });
}

#[test]
fn resident_memory_is_read_and_written_without_allocation() {
    with_memory(LargePages::Sometimes, 8 * LARGE, |memory, _| {
        let mut buffer = [1; 8192];
        memory.write(Gpa(LARGE - 4096), &buffer).unwrap();
        map_page(memory, Gpa(LARGE)).unwrap();
        let before = heap::allocations();
        for _ in 0..100 {
            memory.write(Gpa(LARGE - 4096), &buffer).unwrap();
            memory.read(Gpa(LARGE - 4096), &mut buffer).unwrap();
            memory.compare_exchange(Gpa(LARGE), 8, 0, 0).unwrap();
            map_page(memory, Gpa(LARGE)).unwrap();
        }
        assert_eq!(heap::allocations(), before);
    });
}

/// A frame that is pinned stays where it is, whatever the host wants back; its neighbours go.
#[test]
fn a_pin_outlives_a_revocation() {
    for large in [LargePages::Always, LargePages::Never] {
        with_memory(large, 8 * LARGE, |memory, ram| {
            let frame = if large == LargePages::Always {
                LARGE
            } else {
                PAGE_SIZE
            };
            let at = Gpa(2 * LARGE - 12);
            memory.write(at, b"pinned over a page").unwrap();
            memory.write(Gpa(0), b"gone").unwrap();
            let pin = Pin::new(memory, at, 18, false).unwrap();
            let pieces = || pin.pieces().collect::<Vec<_>>();
            let before = pieces();
            assert_eq!(
                before.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(),
                [12, 6]
            );
            assert_eq!(memory.revoke(Gpa(0), u64::MAX, &|| ()), 1);
            assert_eq!(memory.discard(Gpa(0), u64::MAX, &|| ()), 0);
            assert_eq!((memory.resident_bytes(), pieces()), (2 * frame, before));
            let mut bytes = [0; 18];
            memory.read(at, &mut bytes).unwrap();
            assert_eq!(&bytes, b"pinned over a page");
            let mut part = [0; 6];
            assert!(pin.read(8, &mut part) && &part == b"ver a ");
            assert!(!pin.read(13, &mut part), "it does not reach so far");
            assert!(!pin.read(u64::MAX, &mut part));
            assert!(!pin.write(0, b"P"), "it is pinned to be read");
            drop(pin);
            let pin = Pin::new(memory, at, 18, true).unwrap();
            assert!(pin.write(8, b"VER A ") && !pin.write(13, b"longer") && pin.write(18, b""));
            memory.read(at, &mut bytes).unwrap();
            assert_eq!(&bytes, b"pinned oVER A page");
            drop(pin);
            assert_eq!(memory.revoke(Gpa(0), u64::MAX, &|| ()), 2);
            assert_eq!(frames(memory), ram.given());
        });
    }
}

/// What cannot be pinned is refused, and leaves nothing pinned.
#[test]
fn pins_have_bounds() {
    let bytes = LOW_RAM_END + LARGE;
    with_memory(LargePages::Sometimes, bytes, |memory, _| {
        let refused = |gpa, bytes, write| Pin::new(memory, Gpa(gpa), bytes, write).err().unwrap();
        assert_eq!(
            refused(LOW_RAM_END, 1, false),
            PinError::NotMemory(Gpa(LOW_RAM_END))
        );
        assert_eq!(
            refused(u64::MAX, 1, false),
            PinError::NotMemory(Gpa(u64::MAX))
        );
        assert_eq!(refused(LOW_RAM_END - 4, 5, false), PinError::CrossesRegions);
        assert_eq!(refused(0, u64::MAX, true), PinError::CrossesRegions);
        let rom = Region {
            writes: Writes::Dropped,
            ..Region::ram(Gpa(LOW_RAM_END), PAGE_SIZE, 0)
        };
        memory.change(&[Change::Add(rom)], &|| ()).unwrap();
        assert_eq!(
            refused(LOW_RAM_END, 1, true),
            PinError::NotMemory(Gpa(LOW_RAM_END))
        );
        assert!(Pin::new(memory, Gpa(LOW_RAM_END), 1, false).is_ok());
        let pins = std::iter::from_fn(|| Pin::new(memory, Gpa(8), 8, false).ok());
        let pins = pins.collect::<Vec<_>>();
        assert_eq!(
            (pins.len(), refused(8, 8, false)),
            (2047, PinError::TooMany)
        );
        // The second page of this one cannot be pinned again.
        assert_eq!(
            refused(HIGH_RAM - 4, 8, false),
            PinError::NotMemory(Gpa(HIGH_RAM - 4))
        );
        drop(pins);
        let taken = memory.revoke(Gpa(0), u64::MAX, &|| ());
        assert!(taken > 0);
        assert_eq!(memory.resident_bytes(), 0);
        assert_eq!(
            Pin::new(memory, Gpa(0), 0, true).unwrap().pieces().count(),
            0
        );
    });
}

/// RAM of sizes at and around each of a PC's holes: what is RAM, and its last byte.
#[test]
fn ram_may_end_anywhere() {
    const MIB: u64 = 1 << 20;
    let near = [
        640 << 10,
        MIB,
        2 * MIB,
        15 * MIB,
        16 * MIB,
        LOW_RAM_END,
        LOW_RAM_END + MIB,
        LOW_RAM_END + (1 << 30),
    ];
    for bytes in near
        .into_iter()
        .flat_map(|at| [at - PAGE_SIZE, at, at + PAGE_SIZE])
    {
        with_memory(LargePages::Sometimes, bytes, |memory, _| {
            let layout = RamLayout::new(bytes);
            let last = layout.gpa(bytes - 1).unwrap();
            memory.write(last, &[7]).unwrap();
            assert!(map_page(memory, last).is_ok());
            assert!(memory.write(last, &[7, 7]).is_err());
            let behind = Gpa(last.0 + 1);
            assert_eq!(memory.region(behind), None);
            assert_eq!(map_page(memory, behind), Err(FaultError::NotMemory));
            assert_eq!(memory.revoke(Gpa(0), u64::MAX, &|| ()), 1);
        });
    }
}

const COUNTERS: u64 = 24;

/// Threads add to counters that lie in large and small pages while others take the pages away: no addition is lost, and
/// no copy is torn.
#[test]
fn revocation_under_readers_and_writers() {
    struct Shared {
        memory: Ram,
        added: AtomicU64,
        stop: AtomicBool,
    }
    /// Counters and copied words, all in pages of their own.
    fn counter(i: u64) -> Gpa {
        Gpa(i * (LARGE / 4 + PAGE_SIZE))
    }
    /// So many rounds at least, and until pages were taken so often.
    fn add(shared: &Shared, rounds: u64, revocations: u64) {
        let wanted = |n: &u64| *n < rounds || shared.memory.generation() < revocations;
        for n in (0..).take_while(wanted) {
            let at = counter(n % COUNTERS);
            let old = word(&shared.memory, at);
            if shared.memory.compare_exchange(at, 8, old, old + 1) == Ok(true) {
                shared.added.fetch_add(1, SeqCst);
            }
            // A copy over a page's end; each half is one aligned word.
            let edge = Gpa(counter(n % COUNTERS).0 + PAGE_SIZE - 8);
            let mut pair = [0; 16];
            shared.memory.write(edge, &[n as u8; 16]).unwrap();
            shared.memory.read(edge, &mut pair).unwrap();
            let (a, b) = pair.split_at(8);
            assert!(a.iter().all(|x| *x == a[0]) && b.iter().all(|x| *x == b[0]));
        }
    }
    TestHost::run(Config::default(), |host| {
        let ram = host.ram(LargePages::Sometimes);
        let shared = host.share(Shared {
            memory: memory(host, &ram, 32 * LARGE).unwrap(),
            added: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let shared = shared.unwrap();
        let start = |body: fn(&Shared)| {
            let thread = host.thread(format_args!("t"), Some(CpuId(0))).unwrap();
            let shared = shared.clone();
            thread.start(move || body(&shared)).unwrap();
            thread
        };
        let adders = [0; 3].map(|_| start(|shared| add(shared, 2000, 100)));
        let revokers = [0; 2].map(|_| {
            start(|shared| {
                for i in (0..COUNTERS)
                    .cycle()
                    .take_while(|_| !shared.stop.load(SeqCst))
                {
                    let Gpa(from) = counter(i);
                    shared.memory.revoke(Gpa(from), i * PAGE_SIZE, &|| ());
                    std::thread::yield_now();
                }
            })
        });
        adders.iter().for_each(Thread::join);
        shared.stop.store(true, SeqCst);
        revokers.iter().for_each(Thread::join);
        let counted: u64 = (0..COUNTERS)
            .map(|i| word(&shared.memory, counter(i)))
            .sum();
        assert_eq!(counted, shared.added.load(SeqCst));
    });
}
