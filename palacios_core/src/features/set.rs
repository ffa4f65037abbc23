// SPDX-License-Identifier: MIT OR Apache-2.0
//! A set of features.

use super::table::{Feature, TABLE};

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet([u64; 4]);

const _: () = assert!(TABLE.len() <= 256);

impl FeatureSet {
    /// Adds one.
    pub fn insert(&mut self, feature: Feature) {
        let number = feature as usize;
        if let Some(bits) = self.0.get_mut(number / 64) {
            *bits |= 1 << (number % 64);
        }
    }
    /// Whether it is in.
    pub fn contains(&self, feature: Feature) -> bool {
        let number = feature as usize;
        let bits = self.0.get(number / 64).copied().unwrap_or(0);
        bits >> (number % 64) & 1 != 0
    }
    /// All that are in, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = Feature> + '_ {
        let all = TABLE.iter().map(|row| row.feature);
        all.filter(|feature| self.contains(*feature))
    }
}
