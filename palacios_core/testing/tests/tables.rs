// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nested tables against a model: a map from addresses to leaves.

use palacios_core::addr::{Gpa, Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use palacios_core::host::{NoMemory, PageSize};
use palacios_core::memory::nested::{Format, Leaf, Made, NestedTables};
use palacios_core::regions::Cache;
use palacios_testing::{formats, heap, Config, TestHost};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug)]
enum Op {
    Make(Gpa, PageSize, Rights),
    Forget(Gpa, u64),
    ForbidWrites(Gpa, u64),
    Split(Gpa),
}

#[derive(Clone, Copy, Debug)]
struct Rights {
    write: bool,
    execute: bool,
    cache: Cache,
}

/// Addresses that meet: a few large pages near the ends of tables of each level, and the first pages in each.
fn gpa() -> impl Strategy<Value = Gpa> {
    let anchor = prop_oneof![
        Just(0),
        Just(1 << 30),
        Just((1 << 39) - LARGE_PAGE_SIZE),
        Just(3 << 39),
        Just((1 << 48) - LARGE_PAGE_SIZE),
        Just(1 << 48),
        Just((1 << 57) - LARGE_PAGE_SIZE),
        Just(1 << 57),
        Just(!(LARGE_PAGE_SIZE - 1)),
    ];
    (
        anchor,
        0..3u64,
        prop_oneof![0..4u64, 508..512u64],
        0..PAGE_SIZE,
    )
        .prop_map(|(anchor, large, small, offset)| {
            Gpa(anchor.wrapping_add(large * LARGE_PAGE_SIZE + small * PAGE_SIZE + offset))
        })
}

fn rights() -> impl Strategy<Value = Rights> {
    let caches = vec![Cache::WriteBack, Cache::WriteCombining, Cache::Uncached];
    (any::<bool>(), any::<bool>(), prop::sample::select(caches)).prop_map(
        |(write, execute, cache)| Rights {
            write,
            execute,
            cache,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop::sample::select(PageSize::ALL.to_vec());
    let bytes = || prop_oneof![1..1u64 << 13, 1..1u64 << 32, Just(u64::MAX)];
    prop_oneof![
        4 => (gpa(), size, rights()).prop_map(|(gpa, size, rights)| Op::Make(gpa, size, rights)),
        2 => (gpa(), bytes()).prop_map(|(gpa, bytes)| Op::Forget(gpa, bytes)),
        1 => (gpa(), bytes()).prop_map(|(gpa, bytes)| Op::ForbidWrites(gpa, bytes)),
        1 => gpa().prop_map(Op::Split),
    ]
}

/// What tables are to do.
struct Model {
    reach: u64,
    leaves: BTreeMap<u64, Leaf>,
    /// Pages of each size in which smaller ones are, or were: a table stays.
    split: BTreeSet<(u64, PageSize)>,
}

impl Model {
    fn find(&self, gpa: Gpa) -> Option<Leaf> {
        let (_, leaf) = self.leaves.range(..=gpa.0).next_back()?;
        (gpa.0 - leaf.gpa.0 < leaf.size.bytes()).then_some(*leaf)
    }
    fn make(&mut self, leaf: Leaf) -> Made {
        if leaf.gpa.0 >= self.reach {
            return Made::OutOfReach;
        }
        let covers = self.find(leaf.gpa).filter(|other| other.size > leaf.size);
        for size in [PageSize::Huge, PageSize::Large] {
            if size > leaf.size && covers.is_none_or(|other| other.size < size) {
                self.split.insert((leaf.gpa.0 & !(size.bytes() - 1), size));
            }
        }
        if covers.is_some() {
            return Made::Covered;
        }
        if self.split.contains(&(leaf.gpa.0, leaf.size)) {
            return Made::Split;
        }
        // What it replaces of the same frame keeps its rights.
        let same = self.find(leaf.gpa).filter(|old| old.frame == leaf.frame);
        let kept = Leaf {
            write: leaf.write || same.is_some_and(|old| old.write),
            execute: leaf.execute || same.is_some_and(|old| old.execute),
            ..leaf
        };
        match self.leaves.insert(leaf.gpa.0, kept) {
            Some(_) => Made::Changed,
            None => Made::New,
        }
    }
    /// Replaces the large leaf at `gpa` by a table.
    fn split(&mut self, gpa: Gpa) -> bool {
        let Some(leaf) = self.find(gpa).filter(|leaf| leaf.size != PageSize::Small) else {
            return false;
        };
        self.leaves.remove(&leaf.gpa.0);
        self.split.insert((leaf.gpa.0, leaf.size))
    }
    /// The leaves that have one of these addresses.
    fn overlapping(&self, from: Gpa, bytes: u64) -> Vec<u64> {
        let end = from.0.saturating_add(bytes);
        let overlaps = |leaf: &&Leaf| leaf.gpa.0 < end && from.0 < leaf.gpa.0 + leaf.size.bytes();
        let leaves = self.leaves.values().filter(overlaps);
        leaves.map(|leaf| leaf.gpa.0).collect()
    }
}

/// The leaf that a test makes at `gpa`.
fn leaf(gpa: Gpa, size: PageSize, n: usize, rights: Rights) -> Leaf {
    Leaf {
        gpa: Gpa(gpa.0 & !(size.bytes() - 1)),
        // Now and then the same frame again.
        frame: Hpa((n as u64 / 4 + 1) << 30),
        size,
        write: rights.write,
        execute: rights.execute,
        cache: rights.cache,
    }
}

/// Makes a leaf, with as many tables as it needs.
fn make(tables: &NestedTables<TestHost>, leaf: &Leaf) -> Result<Made, NoMemory> {
    let mut spare = tables.spare();
    loop {
        match tables.make(leaf, &mut spare) {
            Made::NeedsTable => spare.fill()?,
            made => return Ok(made),
        }
    }
}

fn follows_model(format: Format, ops: &[Op]) {
    TestHost::run(Config::default(), |host| {
        let tables = NestedTables::new(host, format).unwrap();
        let mut model = Model {
            reach: 1 << (12 + 9 * u32::from(format.levels)),
            leaves: BTreeMap::new(),
            split: BTreeSet::new(),
        };
        for (n, op) in ops.iter().enumerate() {
            let at = match *op {
                Op::Make(gpa, size, rights) => {
                    let leaf = leaf(gpa, size, n, rights);
                    assert_eq!(make(&tables, &leaf), Ok(model.make(leaf)));
                    gpa
                }
                Op::Forget(gpa, bytes) => {
                    let gone = model.overlapping(gpa, bytes);
                    gone.iter().for_each(|at| {
                        model.leaves.remove(at);
                    });
                    let range = gpa.0..gpa.0.saturating_add(bytes);
                    assert_eq!(tables.forget(&range), !gone.is_empty());
                    gpa
                }
                Op::ForbidWrites(gpa, bytes) => {
                    let mut changed = false;
                    for at in model.overlapping(gpa, bytes) {
                        let leaf = model.leaves.get_mut(&at).unwrap();
                        changed |= std::mem::replace(&mut leaf.write, false);
                    }
                    let range = gpa.0..gpa.0.saturating_add(bytes);
                    assert_eq!(tables.forbid_writes(&range), changed);
                    gpa
                }
                Op::Split(gpa) => {
                    let mut spare = tables.spare();
                    spare.fill().unwrap();
                    assert_eq!(tables.split(gpa, &mut spare), model.split(gpa));
                    gpa
                }
            };
            for gpa in [at, Gpa(at.0 ^ PAGE_SIZE), Gpa(at.0 ^ 1 << 48)] {
                assert_eq!(tables.find(gpa), model.find(gpa));
            }
        }
        for leaf in model.leaves.values() {
            assert_eq!(tables.find(leaf.gpa), Some(*leaf));
        }
        assert_eq!(tables.table_pages(), host.pages_in_use() as u64);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]
    #[test]
    fn any_sequence(ops in prop::collection::vec(op(), 1..60)) {
        for format in formats::ALL {
            follows_model(format, &ops);
        }
    }
}

const ALL: Rights = Rights {
    write: true,
    execute: true,
    cache: Cache::WriteBack,
};

/// Wherever memory ran out: nothing is there then, and it works when there is memory.
#[test]
fn memory_may_run_out_at_any_page() {
    for format in formats::ALL {
        TestHost::run(Config::default(), |host| {
            let build = || {
                let tables = NestedTables::new(host, format)?;
                let leaves = [0, 1 << 40, 3 << 30].map(Gpa);
                for (n, gpa) in leaves.into_iter().enumerate() {
                    let leaf = leaf(gpa, PageSize::Small, n, ALL);
                    let made = make(&tables, &leaf);
                    assert_eq!(tables.find(gpa).is_some(), made.is_ok());
                    made?;
                    assert_eq!(tables.find(gpa), Some(leaf));
                }
                Ok::<(), NoMemory>(())
            };
            let allocations = heap::fail_each(|_| {
                let _ = build();
                host.check_all_returned();
            });
            assert!(allocations >= 8, "{allocations}");
        });
    }
}
