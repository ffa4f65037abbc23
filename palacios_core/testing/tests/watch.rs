// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watched pages: whoever writes one, the watcher is told, once.

use palacios_core::addr::{Gpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use palacios_core::host::{CpuId, Host, Thread};
use palacios_core::interfaces::GuestMemory;
use palacios_core::memory::walk::AccessKind;
use palacios_core::memory::{Memory, Pin, WriteWatcher};
use palacios_core::ram::RamLayout;
use palacios_testing::host::LargePages;
use palacios_testing::{formats, heap, map_page, Config, TestHost};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

const PAGES: u64 = 1024;

/// What the watcher was told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<u64>>>);

impl Told {
    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl WriteWatcher for Told {
    fn written(&self, page: u64) {
        heap::exempt(|| self.0.lock().unwrap().push(page));
    }
}

fn with_memory(large: LargePages, test: impl FnOnce(&TestHost, Memory<TestHost>, &Told)) {
    TestHost::run(Config::default(), |host| {
        let (ram, told) = (host.ram(large), Told::default());
        let layout = RamLayout::new(PAGES * PAGE_SIZE);
        let mut memory = Memory::new(host, ram, layout, formats::npt(4)).unwrap();
        memory.set_watcher(Box::new(told.clone()));
        test(host, memory, &told);
    });
}

fn at(page: u64) -> Gpa {
    Gpa(page * PAGE_SIZE + 0x100)
}

#[test]
fn each_kind_of_write_is_told_once() {
    for large in [LargePages::Always, LargePages::Never] {
        with_memory(large, |_, memory, told| {
            let write: [&dyn Fn(u64); 4] = [
                &|page| memory.write(at(page), &[1]).unwrap(),
                &|page| assert!(memory.compare_exchange(at(page), 8, 1, 1).unwrap()),
                &|page| drop(Pin::new(&memory, at(page), 8, true).unwrap()),
                &|page| {
                    map_page(&memory, at(page)).unwrap();
                },
            ];
            for (page, write) in [3, 700]
                .into_iter()
                .flat_map(|page| write.map(|write| (page, write)))
            {
                // Reads and writes to others, before and behind it.
                map_page(&memory, at(page)).unwrap();
                memory.watch(page, &|| ()).unwrap();
                memory.fault(at(page), AccessKind::Read, &|| ()).unwrap();
                memory.read(at(page), &mut [0]).unwrap();
                drop(Pin::new(&memory, at(page), 8, false).unwrap());
                map_page(&memory, at(page + 1)).unwrap();
                memory.write(at(page - 1), &[1]).unwrap();
                assert_eq!(told.take(), []);
                write(page);
                assert_eq!(told.take(), [page]);
                write(page);
                assert_eq!(told.take(), [], "it is watched no more");
            }
        });
    }
}

/// While one page of a large frame is watched, no leaf lets the guest write it unseen; others are written without a word.
#[test]
fn a_large_leaf_never_covers_a_watched_page() {
    with_memory(LargePages::Always, |_, memory, told| {
        memory.watch(5, &|| ()).unwrap();
        for page in 0..LARGE_PAGE_SIZE / PAGE_SIZE {
            memory.fault(at(page), AccessKind::Read, &|| ()).unwrap();
            if page != 5 {
                map_page(&memory, at(page)).unwrap();
            }
        }
        assert_eq!(told.take(), []);
        map_page(&memory, at(5)).unwrap();
        assert_eq!(told.take(), [5]);
    });
}

/// Two threads write without end. Whatever they do just then, a write that begins when a page is watched is told of.
#[test]
fn no_write_behind_a_watch_is_missed() {
    struct Shared {
        memory: Memory<TestHost>,
        over: AtomicBool,
        writes: AtomicU64,
    }
    with_memory(LargePages::Sometimes, |host, memory, told| {
        let shared = Shared {
            memory,
            over: AtomicBool::new(false),
            writes: AtomicU64::new(0),
        };
        let shared = host.share(shared).unwrap();
        let threads = [0, 1].map(|number| {
            let thread = host.thread(format_args!("writer"), Some(CpuId(0))).unwrap();
            let shared = shared.clone();
            let body = move || {
                for n in (0u64..).take_while(|_| !shared.over.load(SeqCst)) {
                    let page = n * 7 % PAGES;
                    match number {
                        0 => shared.memory.write(at(page), &[1]).unwrap(),
                        _ => {
                            map_page(&shared.memory, at(page)).unwrap();
                        }
                    }
                    shared.writes.fetch_add(1, SeqCst);
                }
            };
            thread.start(body).unwrap();
            thread
        });
        let goes_on = |round: &u64| *round < 2000 || shared.writes.load(SeqCst) < 1000;
        for round in (0..).take_while(goes_on) {
            let page = round * 13 % PAGES;
            shared.memory.watch(page, &|| ()).unwrap();
            told.take();
            shared.memory.watch(page, &|| ()).unwrap();
            shared.memory.write(at(page), &[2]).unwrap();
            // A writer that was faster may still be about to tell. It does so before it leaves the gate, and to watch waits for that.
            shared.memory.watch(page, &|| ()).unwrap();
            assert!(told.take().contains(&page), "round {round}");
        }
        shared.over.store(true, SeqCst);
        threads.iter().for_each(Thread::join);
    });
}
