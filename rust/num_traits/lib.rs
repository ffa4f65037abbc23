// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stands in for `num-traits` in the kernel module.
//!
//! The real crate parses floats, which the kernel's `core` has not; `yaxpeax-arch` needs only these few traits of
//! integers. Elsewhere, the real crate is used.
#![no_std]

use core::ops::{Add, Mul, Sub};

pub trait Zero: Sized + Add<Self, Output = Self> {
    fn zero() -> Self;
    fn is_zero(&self) -> bool;
}

pub trait One: Sized + Mul<Self, Output = Self> {
    fn one() -> Self;
}

pub trait Bounded {
    fn min_value() -> Self;
    fn max_value() -> Self;
}

pub trait CheckedAdd: Sized + Add<Self, Output = Self> {
    fn checked_add(&self, other: &Self) -> Option<Self>;
}

pub trait WrappingAdd: Sized + Add<Self, Output = Self> {
    fn wrapping_add(&self, other: &Self) -> Self;
}

pub trait WrappingSub: Sized + Sub<Self, Output = Self> {
    fn wrapping_sub(&self, other: &Self) -> Self;
}

pub mod identities {
    pub use super::{One, Zero};
}

macro_rules! for_integers {
    ($($int:ty)*) => {$(
        impl Zero for $int {
            #[inline]
            fn zero() -> Self {
                0
            }
            #[inline]
            fn is_zero(&self) -> bool {
                *self == 0
            }
        }

        impl One for $int {
            #[inline]
            fn one() -> Self {
                1
            }
        }

        impl Bounded for $int {
            #[inline]
            fn min_value() -> Self {
                <$int>::MIN
            }
            #[inline]
            fn max_value() -> Self {
                <$int>::MAX
            }
        }

        impl CheckedAdd for $int {
            #[inline]
            fn checked_add(&self, other: &Self) -> Option<Self> {
                <$int>::checked_add(*self, *other)
            }
        }

        impl WrappingAdd for $int {
            #[inline]
            fn wrapping_add(&self, other: &Self) -> Self {
                <$int>::wrapping_add(*self, *other)
            }
        }

        impl WrappingSub for $int {
            #[inline]
            fn wrapping_sub(&self, other: &Self) -> Self {
                <$int>::wrapping_sub(*self, *other)
            }
        }
    )*};
}
for_integers!(u8 u16 u32 u64 usize);
