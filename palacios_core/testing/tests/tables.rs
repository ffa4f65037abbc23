// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nested tables against a model: a map from addresses to leaves.

use palacios_core::addr::{Gpa, Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use palacios_core::host::{NoMemory, PageSize};
use palacios_core::memory::table::{Format, Leaf, SparePages, Tables};
use palacios_testing::{formats, heap, Config, TestHost};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug)]
enum Op {
    Map(Gpa, PageSize),
    Unmap(Gpa),
    Next(Gpa, u64),
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

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![2 => Just(PageSize::Small), 1 => Just(PageSize::Large)];
    prop_oneof![
        4 => (gpa(), size).prop_map(|(gpa, size)| Op::Map(gpa, size)),
        2 => gpa().prop_map(Op::Unmap),
        1 => (gpa(), prop_oneof![0..1u64 << 13, 0..1u64 << 32, Just(u64::MAX)])
            .prop_map(|(gpa, bytes)| Op::Next(gpa, bytes)),
    ]
}

/// What tables are to do.
struct Model {
    reach: u64,
    leaves: BTreeMap<u64, Leaf>,
    /// The large pages in which small ones are, or were: a table stays.
    split: BTreeSet<u64>,
}

impl Model {
    fn lookup(&self, gpa: Gpa) -> Option<Leaf> {
        let (_, leaf) = self.leaves.range(..=gpa.0).next_back()?;
        (gpa.0 - leaf.gpa.0 < leaf.size.bytes()).then_some(*leaf)
    }
    fn large_fits(&self, gpa: Gpa) -> bool {
        let large = gpa.0 & !(LARGE_PAGE_SIZE - 1);
        gpa.0 < self.reach && !self.split.contains(&large) && self.lookup(gpa).is_none()
    }
    fn map(&mut self, leaf: Leaf) -> bool {
        let fits = leaf.gpa.0 < self.reach
            && match leaf.size {
                PageSize::Small => self.lookup(leaf.gpa).is_none(),
                PageSize::Large => self.large_fits(leaf.gpa),
            };
        if fits {
            self.leaves.insert(leaf.gpa.0, leaf);
            if leaf.size == PageSize::Small {
                self.split.insert(leaf.gpa.0 & !(LARGE_PAGE_SIZE - 1));
            }
        }
        fits
    }
    fn next(&self, from: Gpa, end: Gpa) -> Option<Leaf> {
        let next = || {
            self.leaves
                .range(from.0..end.0)
                .next()
                .map(|(_, leaf)| *leaf)
        };
        (from < end).then(|| self.lookup(from).or_else(next))?
    }
}

/// The frame that a test maps at `gpa`.
fn leaf(gpa: Gpa, size: PageSize, n: usize) -> Leaf {
    Leaf {
        gpa: Gpa(gpa.0 & !(size.bytes() - 1)),
        frame: Hpa((n as u64 + 1) * LARGE_PAGE_SIZE),
        size,
    }
}

fn follows_model(format: Format, ops: &[Op]) {
    TestHost::run(Config::default(), |host| {
        let mut tables = Tables::new(host.clone(), format).unwrap();
        let mut spare = SparePages::new(host.clone());
        let mut model = Model {
            reach: 1 << (12 + 9 * u32::from(format.levels)),
            leaves: BTreeMap::new(),
            split: BTreeSet::new(),
        };
        for (n, op) in ops.iter().enumerate() {
            let at = match *op {
                Op::Map(gpa, size) => {
                    let leaf = leaf(gpa, size, n);
                    spare.top_up().unwrap();
                    assert_eq!(tables.map(leaf, &mut spare), Ok(model.map(leaf)));
                    gpa
                }
                Op::Unmap(gpa) => {
                    let expected = model.lookup(gpa);
                    expected.map(|leaf| model.leaves.remove(&leaf.gpa.0));
                    assert_eq!(tables.unmap(gpa), expected);
                    gpa
                }
                Op::Next(from, bytes) => {
                    let end = Gpa(from.0.saturating_add(bytes));
                    assert_eq!(tables.next_leaf(from, end), model.next(from, end));
                    from
                }
            };
            for gpa in [at, Gpa(at.0 ^ PAGE_SIZE), Gpa(at.0 ^ 1 << 48)] {
                assert_eq!(tables.lookup(gpa), model.lookup(gpa));
                assert_eq!(tables.large_fits(gpa), model.large_fits(gpa));
            }
        }
        let everything = std::iter::successors(tables.next_leaf(Gpa(0), Gpa(u64::MAX)), |leaf| {
            tables.next_leaf(Gpa(leaf.gpa.0 + leaf.size.bytes()), Gpa(u64::MAX))
        });
        assert!(everything.eq(model.leaves.values().copied()));
        drop(spare);
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

/// Without spare pages, mapping fails and nothing is mapped; with them it then works. Wherever memory ran out.
#[test]
fn memory_may_run_out_at_any_page() {
    for format in formats::ALL {
        TestHost::run(Config::default(), |host| {
            let build = |_| {
                let mut tables = Tables::new(host.clone(), format)?;
                let mut spare = SparePages::new(host.clone());
                let leaves = [0, 1 << 40, 3 << 30].map(Gpa);
                for (n, gpa) in leaves.into_iter().enumerate() {
                    let leaf = leaf(gpa, PageSize::Small, n);
                    if spare.top_up().is_err() {
                        let mapped = tables.map(leaf, &mut spare);
                        assert_eq!(tables.lookup(gpa).is_some(), mapped == Ok(true));
                    }
                    spare.top_up()?;
                    tables.map(leaf, &mut spare)?;
                    assert_eq!(tables.lookup(gpa), Some(leaf));
                }
                Ok::<(), NoMemory>(())
            };
            let allocations = heap::fail_each(|n| {
                let _ = build(n);
                host.check_all_returned();
            });
            assert!(allocations >= 8, "{allocations}");
        });
    }
}
