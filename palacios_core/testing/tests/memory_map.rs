// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is where in a guest's memory, while it runs: ROMs, regions that come, move and go, the dirty log, pins, and providers that are
//! slow or want memory back.

use palacios_core::addr::{Gpa, Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use palacios_core::host::{Host, PageRequest, PageSize};
use palacios_core::interfaces::GuestMemory;
use palacios_core::memory::PAGES_PER_WORD;
use palacios_core::regions::{Cache, Change, Region, RegionError, Writes};
use palacios_core::stats::Counter;
use palacios_core::vm::{State, StopReason};
use palacios_testing::guests::{self, memory as kernels};
use palacios_testing::host::{LargePages, Record};
use palacios_testing::vm::{usual_config, Hypervisor, Spec, TestBackend, TestVm};
use palacios_testing::{on_all_backends, Config, TestHost};
use std::collections::BTreeSet;

const GOOD: StopReason = StopReason::Exit(1);
const ROM: u64 = 0xf_0000;
const ROM_BYTES: u64 = 0x1_0000;

fn on_host<B: TestBackend>(cpus: u32, test: impl Fn(&TestHost, &Hypervisor<B>)) {
    let config = Config {
        cpus,
        ..usual_config::<B>()
    };
    TestHost::run(config, |host| test(host, &Hypervisor::new(host)));
}

fn smp(kernel: Vec<u8>, vcpus: usize, large_pages: LargePages) -> Spec {
    Spec {
        large_pages,
        ..Spec::new(kernel).with_vcpus(vcpus)
    }
}

/// Pages of the host's with something in them.
struct Pages<'a> {
    host: &'a TestHost,
    at: Hpa,
    count: u32,
}

impl<'a> Pages<'a> {
    fn new(host: &'a TestHost, count: u32, contents: &[(usize, u32)]) -> Self {
        let at = host.alloc_pages(PageRequest::run(count)).unwrap();
        let words = host.phys_to_virt(at).cast::<u32>();
        for (offset, word) in contents {
            // SAFETY: an aligned word of pages that were given just now.
            unsafe { words.add(offset / 4).write(*word) };
        }
        Self { host, at, count }
    }
}

impl Drop for Pages<'_> {
    fn drop(&mut self) {
        // SAFETY: given with these, and taken out of the guest by the tests.
        unsafe { self.host.free_pages(self.at, PageRequest::run(self.count)) };
    }
}

fn change(vm: &TestVm, changes: &[Change]) -> Result<(), RegionError> {
    vm.with_memory(|memory, flush| memory.change(changes, flush))
}

/// Puts pages in place of the RAM at [`ROM`].
fn insert_rom(vm: &TestVm, page: u64, writes: Writes) {
    let rom = Region {
        writes,
        ..Region::ram(Gpa(ROM), ROM_BYTES, page)
    };
    let hole = Change::Remove {
        at: Gpa(ROM),
        bytes: ROM_BYTES,
    };
    change(vm, &[hole, Change::Add(rom)]).unwrap();
}

const MARK: u32 = 0x524f_4d21;
const SECOND: u32 = 0x524f_4d22;
const RET: u32 = 0xc3;

/// A guest writes to a ROM in all ways, and it stays as it is.
fn a_rom_stays_as_it_is<B: TestBackend>() {
    on_host::<B>(1, |host, hypervisor| {
        let contents = [(0, MARK), (4, SECOND), (0x100, RET)];
        let rom = Pages::new(host, 16, &contents);
        let vm = hypervisor
            .create(&Spec::new(kernels::rom_writer(&[MARK, SECOND])))
            .unwrap();
        for (at, count, why) in [
            (rom.at, 0, RegionError::Empty),
            (Hpa(rom.at.0 + 1), 1, RegionError::Unaligned),
            (Hpa((1 << 52) - PAGE_SIZE), 2, RegionError::OutOfReach),
            (rom.at, u64::MAX, RegionError::OutOfReach),
            (Hpa(0), 1 << 30, RegionError::NoSuchPages),
        ] {
            assert_eq!(vm.memory().add_pages(at, count), Err(why));
        }
        let page = vm.memory().add_pages(rom.at, 16).unwrap();
        insert_rom(&vm, page, Writes::Dropped);
        vm.launch();
        assert_eq!(vm.wait(), GOOD);
        let mut word = [0; 4];
        vm.memory().read(Gpa(ROM), &mut word).unwrap();
        assert_eq!(u32::from_le_bytes(word), MARK);
        assert!(
            vm.memory().write(Gpa(ROM), &[1]).is_err(),
            "nor does the VMM"
        );
        let still_shown = RegionError::Overlaps(Gpa(ROM));
        assert_eq!(vm.memory().remove_pages(page, 16), Err(still_shown));
        let hole = Change::Remove {
            at: Gpa(ROM),
            bytes: ROM_BYTES,
        };
        change(&vm, &[hole]).unwrap();
        assert_eq!(vm.memory().remove_pages(page, 16), Ok(()));
        assert_eq!(vm.memory().other_bytes(), 0);
    });
}

/// Reads come from the ROM and writes go to the RAM behind it, until that is shown.
fn a_rom_shadows_ram<B: TestBackend>() {
    on_host::<B>(1, |host, hypervisor| {
        let rom = Pages::new(host, 16, &[(0, MARK)]);
        let vm = hypervisor
            .create(&Spec::new(kernels::shadowed(&[MARK])))
            .unwrap();
        let page = vm.memory().add_pages(rom.at, 16).unwrap();
        insert_rom(&vm, page, Writes::ToPage(ROM / PAGE_SIZE));
        vm.launch();
        vm.wait_until(|| vm.output().len() == 1);
        insert_rom(&vm, ROM / PAGE_SIZE, Writes::Allowed);
        assert_eq!(vm.memory().remove_pages(page, 16), Ok(()));
        vm.memory().write(Gpa(guests::GO), &[1]).unwrap();
        assert_eq!(vm.wait(), GOOD);
    });
}

/// A region moves while four vCPUs read it, where it was and where it comes: once a move is done, nobody reads it where it was.
fn a_region_moves_under_four_vcpus<B: TestBackend>() {
    const PLACES: [u64; 2] = [0x8000_0000, 0x9000_2000];
    on_host::<B>(2, |host, hypervisor| {
        let shared = Pages::new(host, 2, &[(0, MARK)]);
        let parameters = [4, MARK, PLACES[0] as u32, PLACES[1] as u32];
        let spec = smp(kernels::movers(&parameters), 4, LargePages::Sometimes);
        let vm = hypervisor.create(&spec).unwrap();
        let page = vm.memory().add_pages(shared.at, 2).unwrap();
        let region = |place: usize| Region::ram(Gpa(PLACES[place]), 2 * PAGE_SIZE, page);
        let word = |at: u64| {
            let mut bytes = [0; 4];
            vm.memory().read(Gpa(at), &mut bytes).unwrap();
            u32::from_le_bytes(bytes)
        };
        let say = |phase: u32| {
            vm.memory()
                .write(Gpa(kernels::PHASE), &phase.to_le_bytes())
                .unwrap()
        };
        change(&vm, &[Change::Add(region(0))]).unwrap();
        vm.launch();
        for moves in 0..100 / B::SLOWNESS {
            let before = word(kernels::LOOKS);
            vm.wait_until(|| word(kernels::LOOKS) >= before + 4);
            let (from, to) = (moves as usize % 2, (moves as usize + 1) % 2);
            // Each phase is told from all before it.
            say(moves << 2 | 1);
            let away = Change::Remove {
                at: Gpa(PLACES[from]),
                bytes: 2 * PAGE_SIZE,
            };
            change(&vm, &[away, Change::Add(region(to))]).unwrap();
            say(moves << 2 | (to as u32) << 1);
        }
        say(u32::MAX);
        assert_eq!(vm.wait(), GOOD);
        let places = PLACES.map(|place| vm.memory().region(Gpa(place)));
        assert_eq!(places.iter().flatten().count(), 1);
    });
}

/// What was written since the last look, and what is in it then: as a migration copies it.
struct Copy {
    memory: Vec<u8>,
    seen: BTreeSet<u64>,
}

impl Copy {
    fn new(bytes: u64) -> Self {
        let memory = vec![0; bytes as usize];
        Self {
            memory,
            seen: BTreeSet::new(),
        }
    }
    fn all(&mut self, vm: &TestVm) {
        vm.memory().read(Gpa(0), &mut self.memory).unwrap();
    }
    fn take(&mut self, vm: &TestVm) {
        let mut words = vec![0; self.memory.len() / PAGE_SIZE as usize / PAGES_PER_WORD as usize];
        vm.with_memory(|memory, flush| memory.take_dirty(0, &mut words, flush));
        for (n, word) in (0..).zip(words) {
            for bit in (0..PAGES_PER_WORD).filter(|bit| word >> bit & 1 != 0) {
                let page = n * PAGES_PER_WORD + bit;
                let at = page * PAGE_SIZE;
                let bytes = &mut self.memory[at as usize..][..PAGE_SIZE as usize];
                vm.memory().read(Gpa(at), bytes).unwrap();
                self.seen.insert(page);
            }
        }
    }
}

/// Guest and VMM write at random while the log is taken again and again: in the end a copy of just the logged pages is the memory, and no
/// page was logged that nobody wrote.
fn the_dirty_log_is_exact<B: TestBackend>() {
    const VCPUS: u32 = 4;
    const BYTES: u64 = 16 << 20;
    const PAGES: u32 = 1024;
    const VMMS_OWN: u64 = 0xc0_0000;
    for large in [LargePages::Always, LargePages::Never] {
        on_host::<B>(2, |host, hypervisor| {
            // 100,000 writes, but for a processor that takes long for each.
            let rounds = match palacios_testing::soaks() || B::FAST {
                true => 25_000,
                false => 2_500 / B::SLOWNESS,
            };
            let vm = hypervisor
                .create(&smp(
                    kernels::writers(&[VCPUS, rounds, PAGES - 1]),
                    VCPUS as usize,
                    large,
                ))
                .unwrap();
            let mut copy = Copy::new(BYTES);
            vm.with_memory(|memory, flush| memory.begin_log(flush))
                .unwrap();
            copy.all(&vm);
            vm.launch();
            let mut vmm_wrote = BTreeSet::new();
            while vm.state() == State::Running {
                for _ in 0..20 {
                    let random = host.random();
                    let page = [kernels::WRITTEN, VMMS_OWN][random as usize & 1] / PAGE_SIZE
                        + (random >> 8) % 700;
                    let at = Gpa(page * PAGE_SIZE + 0x800);
                    vm.memory().write(at, &random.to_le_bytes()).unwrap();
                    vmm_wrote.insert(page);
                }
                copy.take(&vm);
                // Some of the guest's writes find their page closed; others meanwhile find it open.
                let before = vm.count(Counter::RamFault);
                let running = || vm.state() == State::Running;
                vm.wait_until(|| !running() || vm.count(Counter::RamFault) >= before + 300);
            }
            assert_eq!(vm.wait(), GOOD);
            copy.take(&vm);
            let mut now = Copy::new(BYTES);
            now.all(&vm);
            let differ = (0..BYTES as usize).find(|at| copy.memory[*at] != now.memory[*at]);
            assert_eq!(differ, None, "a write was not logged");
            let guest_wrote = (0..u64::from(PAGES)).filter(|page| {
                let noted = |vcpu: u64| {
                    let at = kernels::NOTES + vcpu * PAGE_SIZE + page;
                    now.memory[at as usize] != 0
                };
                (0..u64::from(VCPUS)).any(noted)
            });
            let first = kernels::WRITTEN / PAGE_SIZE;
            let written = guest_wrote
                .map(|page| first + page)
                .chain(vmm_wrote)
                .collect::<BTreeSet<_>>();
            let logged = copy
                .seen
                .into_iter()
                .filter(|page| *page >= first)
                .collect::<BTreeSet<_>>();
            assert_eq!(logged, written);
            vm.with_memory(|memory, flush| memory.end_log(flush));
        });
    }
}

/// One page takes long to come. Who wants it waits; the other vCPU goes on.
fn a_slow_page_delays_only_who_wants_it<B: TestBackend>() {
    const SLOW: u64 = 0xa0_0000;
    on_host::<B>(2, |_, hypervisor| {
        let kernel = kernels::one_waits(&[SLOW as u32, 300]);
        let vm = hypervisor
            .create(&smp(kernel, 2, LargePages::Never))
            .unwrap();
        vm.ram.withhold(SLOW / PAGE_SIZE);
        vm.launch();
        vm.wait_until(|| vm.output().len() == 1);
        let mut word = [0; 4];
        vm.memory().read(Gpa(0x7000), &mut word).unwrap();
        assert_eq!(u32::from_le_bytes(word), 1, "the other waits");
        vm.ram.give_all();
        assert_eq!(vm.wait(), GOOD);
    });
}

/// A host takes half of a guest's memory, whose contents it does not need, and gives it back as it is touched.
fn memory_is_discarded_and_comes_back<B: TestBackend>() {
    const PAGES: u64 = 2048;
    for large in [LargePages::Always, LargePages::Never] {
        on_host::<B>(1, |_, hypervisor| {
            let spec = Spec {
                large_pages: large,
                ..Spec::new(kernels::finds_zeroes(&[PAGES as u32]))
            };
            let vm = hypervisor.launch(&spec);
            vm.wait_until(|| vm.output().len() == 1);
            vm.memory().write(Gpa(guests::GO), &[0]).unwrap();
            let before = vm.memory().resident_bytes();
            let half = PAGES / 2 * PAGE_SIZE;
            // A page more than whole large pages: of a large frame no part is discarded.
            let size = if large == LargePages::Always {
                LARGE_PAGE_SIZE
            } else {
                PAGE_SIZE
            };
            let bytes = half + PAGE_SIZE * u64::from(size == LARGE_PAGE_SIZE);
            let gone =
                vm.with_memory(|memory, flush| memory.discard(Gpa(kernels::WRITTEN), bytes, flush));
            assert_eq!(gone * size, half);
            assert_eq!(vm.memory().resident_bytes(), before - half);
            assert_eq!(vm.ram.kept(), 0);
            vm.memory().write(Gpa(guests::GO), &[1]).unwrap();
            assert_eq!(vm.wait(), GOOD);
            assert_eq!(vm.output()[1..], (PAGES as u16 / 2).to_le_bytes());
            assert_eq!(vm.memory().resident_bytes(), before);
        });
    }
}

/// A page is touched for the first time without a lock of the VM's, and without a flush.
fn a_first_touch_takes_no_lock<B: TestBackend>() {
    for large in [LargePages::Always, LargePages::Never] {
        let config = Config {
            cpus: 1,
            ..usual_config::<B>()
        };
        let usages = TestHost::run(config, |host| {
            let hypervisor = Hypervisor::<B>::new(host);
            let vm = hypervisor.launch(&smp(kernels::first_touches(&[600]), 1, large));
            assert_eq!(vm.wait(), GOOD);
            drop(vm);
            let marks = |record: &Record| match record.marks.as_slice() {
                [(1, begin), (2, end)] => end.since(begin),
                marks => panic!("{marks:?}"),
            };
            host.records().iter().map(marks).collect::<Vec<_>>()
        });
        for usage in usages {
            assert_eq!(
                (usage.locks.len(), usage.flushes),
                (0, 0),
                "{:?}",
                usage.locks
            );
        }
    }
}

/// The owner takes away the memory in which the kernel lies: the guest stops, and the address is named.
fn a_kernel_whose_memory_went_is_named<B: TestBackend>() {
    on_host::<B>(1, |_, hypervisor| {
        let vm = hypervisor.create(&Spec::new(guests::spin(&[]))).unwrap();
        let kernel = u64::from(guests::BASE)..u64::from(guests::BASE) + 4 * PAGE_SIZE;
        let hole = Change::Remove {
            at: Gpa(kernel.start),
            bytes: 4 * PAGE_SIZE,
        };
        change(&vm, &[hole]).unwrap();
        vm.launch();
        match vm.wait() {
            StopReason::NoMemoryAt { gpa, .. } => assert!(kernel.contains(&gpa), "{gpa:#x}"),
            other => panic!("{other:?}"),
        }
    });
}

/// Regions are added and removed as fast as it goes while vCPUs use other memory, and pages are revoked: nothing is lost.
fn a_storm_of_changes_disturbs_nobody<B: TestBackend>() {
    on_host::<B>(2, |host, hypervisor| {
        let shared = Pages::new(host, 8, &[]);
        let rounds = (60 / B::SLOWNESS).max(5);
        let vm = hypervisor
            .create(&smp(
                guests::workers(&[3, rounds, 30, 0x1f000]),
                3,
                LargePages::Sometimes,
            ))
            .unwrap();
        let page = vm.memory().add_pages(shared.at, 8).unwrap();
        vm.launch();
        while vm.state() == State::Running {
            let random = host.random();
            let at = Gpa(0x8000_0000 + (random % 16) * PAGE_SIZE);
            let region = Region {
                cache: [Cache::WriteBack, Cache::WriteCombining, Cache::Uncached]
                    [(random >> 8) as usize % 3],
                ..Region::ram(at, (1 + (random >> 16) % 8) * PAGE_SIZE, page)
            };
            let bytes = region.bytes;
            change(&vm, &[Change::Add(region)]).unwrap();
            let _ = vm.with_memory(|memory, flush| {
                memory.fault(at, palacios_core::memory::walk::AccessKind::Write, flush)
            });
            vm.revoke(Gpa(random >> 20 & 0xff_f000), random >> 44 & 0xf_ffff);
            change(&vm, &[Change::Remove { at, bytes }]).unwrap();
        }
        assert_eq!(vm.wait(), GOOD);
        assert_eq!(vm.memory().frames(PageSize::Huge), 0);
    });
}

on_all_backends! {
    a_rom_stays_as_it_is,
    a_rom_shadows_ram,
    a_region_moves_under_four_vcpus,
    the_dirty_log_is_exact,
    a_slow_page_delays_only_who_wants_it,
    memory_is_discarded_and_comes_back,
    a_storm_of_changes_disturbs_nobody,
    a_first_touch_takes_no_lock,
    a_kernel_whose_memory_went_is_named,
}
