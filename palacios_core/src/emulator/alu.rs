// SPDX-License-Identifier: MIT OR Apache-2.0
//! Integer arithmetic and its flags (SDM 1: 7.3; SDM 2), as pure functions.
//!
//! Values are the low `width` bytes (1, 2, 4 or 8) of a `u64`; what lies above is ignored in arguments and zero in
//! results. `flags` is RFLAGS before the instruction; results carry RFLAGS after it.

use super::instruction::{Binary, Shift};
use crate::state::rflags::{AF, CF, OF, PF, SF, ZF};

/// The flags that arithmetic sets.
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// A value and RFLAGS.
pub(super) type Outcome = (u64, u64);
/// Quotient and remainder; `None` is #DE.
pub(super) type Division = Option<(u64, u64)>;

/// Bits of a value of `width` bytes: at most 64.
const fn bits(width: u8) -> u32 {
    match width {
        1 => 8,
        2 => 16,
        4 => 32,
        _ => 64,
    }
}

/// All ones in `width` bytes.
pub(super) const fn mask(width: u8) -> u64 {
    u64::MAX.wrapping_shr(64 - bits(width))
}

/// The value, its sign bit copied into all bits above.
pub(super) const fn sign_extend(value: u64, width: u8) -> u64 {
    let unused = 64 - bits(width);
    ((value.wrapping_shl(unused) as i64).wrapping_shr(unused)) as u64
}

/// Bit `index` of `value`.
const fn bit(value: u64, index: u32) -> bool {
    value.wrapping_shr(index) & 1 != 0
}

const fn sign(value: u64, width: u8) -> bool {
    bit(value, bits(width) - 1)
}

const fn when(condition: bool, flag: u64) -> u64 {
    if condition {
        flag
    } else {
        0
    }
}

/// SF, ZF and PF of a result.
const fn result_flags(value: u64, width: u8) -> u64 {
    let value = value & mask(width);
    when(value == 0, ZF)
        | when(sign(value, width), SF)
        | when((value as u8).count_ones() % 2 == 0, PF)
}

/// A two-operand calculation.
pub(super) fn binary(op: Binary, width: u8, a: u64, b: u64, flags: u64) -> Outcome {
    let carry = flags & CF;
    let value = match op {
        Binary::Add => return add(width, a, b, 0, flags),
        Binary::Adc => return add(width, a, b, carry, flags),
        Binary::Sub => return subtract(width, a, b, 0, flags),
        Binary::Sbb => return subtract(width, a, b, carry, flags),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
    } & mask(width);
    (value, flags & !STATUS | result_flags(value, width))
}

fn add(width: u8, a: u64, b: u64, carry: u64, flags: u64) -> Outcome {
    let (a, b) = (a & mask(width), b & mask(width));
    let value = a.wrapping_add(b).wrapping_add(carry) & mask(width);
    // What was carried out of each bit.
    let carries = a & b | (a | b) & !value;
    let overflow = (a ^ value) & (b ^ value);
    (value, carry_flags(width, value, carries, overflow, flags))
}

fn subtract(width: u8, a: u64, b: u64, borrow: u64, flags: u64) -> Outcome {
    let (a, b) = (a & mask(width), b & mask(width));
    let value = a.wrapping_sub(b).wrapping_sub(borrow) & mask(width);
    // What was borrowed by each bit.
    let borrows = !a & b | (!a | b) & value;
    let overflow = (a ^ b) & (a ^ value);
    (value, carry_flags(width, value, borrows, overflow, flags))
}

fn carry_flags(width: u8, value: u64, carries: u64, overflow: u64, flags: u64) -> u64 {
    flags & !STATUS
        | result_flags(value, width)
        | when(sign(carries, width), CF)
        | when(bit(carries, 3), AF)
        | when(sign(overflow, width), OF)
}

/// RFLAGS after a comparison of `a` with `b`.
pub(super) fn compare(width: u8, a: u64, b: u64, flags: u64) -> u64 {
    subtract(width, a, b, 0, flags).1
}

/// INC, which leaves CF alone.
pub(super) fn increment(width: u8, value: u64, flags: u64) -> Outcome {
    let (value, after) = add(width, value, 1, 0, flags);
    (value, after & !CF | flags & CF)
}

/// DEC, which leaves CF alone.
pub(super) fn decrement(width: u8, value: u64, flags: u64) -> Outcome {
    let (value, after) = subtract(width, value, 1, 0, flags);
    (value, after & !CF | flags & CF)
}

/// NEG.
pub(super) fn negate(width: u8, value: u64, flags: u64) -> Outcome {
    subtract(width, 0, value, 0, flags)
}

/// A shift or rotation. A count of zero changes no flag. OF is computed for every count, though defined for 1 only.
pub(super) fn shift(op: Shift, width: u8, value: u64, count: u8, flags: u64) -> Outcome {
    let value = value & mask(width);
    let count = u32::from(count) & if width == 8 { 63 } else { 31 };
    if count == 0 {
        return (value, flags);
    }
    match op {
        Shift::Shl | Shift::Shr | Shift::Sar => shift_out(op, width, value, count, flags),
        Shift::Rol | Shift::Ror => rotate(op, width, value, count, flags),
        Shift::Rcl | Shift::Rcr => rotate_through_carry(op, width, value, count, flags),
    }
}

fn shift_out(op: Shift, width: u8, value: u64, count: u32, flags: u64) -> Outcome {
    // In 128 bits, so that a count beyond the width needs no case of its own.
    let (result, carry, overflow) = match op {
        Shift::Shl => {
            let wide = u128::from(value).wrapping_shl(count);
            let carry = wide.wrapping_shr(bits(width)) & 1 != 0;
            let result = wide as u64 & mask(width);
            (result, carry, sign(result, width) != carry)
        }
        Shift::Sar => {
            let extended = sign_extend(value, width) as i64;
            let carry = bit(extended.wrapping_shr(count.wrapping_sub(1)) as u64, 0);
            (
                extended.wrapping_shr(count) as u64 & mask(width),
                carry,
                false,
            )
        }
        _ => {
            let carry = bit(value.wrapping_shr(count.wrapping_sub(1)), 0);
            (value.wrapping_shr(count), carry, sign(value, width))
        }
    };
    let flags =
        flags & !STATUS | result_flags(result, width) | when(carry, CF) | when(overflow, OF);
    (result, flags)
}

fn rotate(op: Shift, width: u8, value: u64, count: u32, flags: u64) -> Outcome {
    let size = bits(width);
    let left = match op {
        Shift::Rol => count % size,
        _ => size.wrapping_sub(count % size) % size,
    };
    let doubled = u128::from(value) | u128::from(value).wrapping_shl(size);
    let result = doubled.wrapping_shr(size.wrapping_sub(left)) as u64 & mask(width);
    let top = sign(result, width);
    let (carry, overflow) = match op {
        Shift::Rol => (bit(result, 0), top != bit(result, 0)),
        _ => (top, top != bit(result, size.wrapping_sub(2))),
    };
    (
        result,
        flags & !(CF | OF) | when(carry, CF) | when(overflow, OF),
    )
}

fn rotate_through_carry(op: Shift, width: u8, value: u64, count: u32, flags: u64) -> Outcome {
    let size = bits(width);
    // CF stands above the value, and all of it turns.
    let whole = size.wrapping_add(1);
    let left = match op {
        Shift::Rcl => count.wrapping_rem(whole),
        _ => whole
            .wrapping_sub(count.wrapping_rem(whole))
            .wrapping_rem(whole),
    };
    let ring = u128::from(value) | u128::from(flags & CF).wrapping_shl(size);
    let turned = ring.wrapping_shl(left) | ring.wrapping_shr(whole.wrapping_sub(left));
    let result = turned as u64 & mask(width);
    let carry = turned.wrapping_shr(size) & 1 != 0;
    let overflow = match op {
        Shift::Rcl => sign(result, width) != carry,
        _ => sign(result, width) != bit(result, size.wrapping_sub(2)),
    };
    (
        result,
        flags & !(CF | OF) | when(carry, CF) | when(overflow, OF),
    )
}

/// SHLD: shifts `value` left and fills it from the top of `from`. For 16-bit operands and a count above 16 the result is
/// architecturally undefined; here the bits come from `value` again.
pub(super) fn shift_left_double(
    width: u8,
    value: u64,
    from: u64,
    count: u8,
    flags: u64,
) -> Outcome {
    let size = bits(width);
    let (value, from) = (value & mask(width), from & mask(width));
    let count = u32::from(count) & if width == 8 { 63 } else { 31 };
    if count == 0 {
        return (value, flags);
    }
    let pair = u128::from(value).wrapping_shl(size) | u128::from(from);
    let (pair, size_of_pair) = match width {
        2 => (pair.wrapping_shl(16) | u128::from(value), 48),
        _ => (pair, size.wrapping_mul(2)),
    };
    let kept = size_of_pair.wrapping_sub(count);
    let result = pair.wrapping_shr(kept.wrapping_sub(size)) as u64 & mask(width);
    let carry = pair.wrapping_shr(kept) & 1 != 0;
    (result, double_flags(width, value, result, carry, flags))
}

/// SHRD: shifts `value` right and fills it from the bottom of `from`; as [`shift_left_double`].
pub(super) fn shift_right_double(
    width: u8,
    value: u64,
    from: u64,
    count: u8,
    flags: u64,
) -> Outcome {
    let size = bits(width);
    let (value, from) = (value & mask(width), from & mask(width));
    let count = u32::from(count) & if width == 8 { 63 } else { 31 };
    if count == 0 {
        return (value, flags);
    }
    let pair = u128::from(from).wrapping_shl(size) | u128::from(value);
    let pair = match width {
        2 => u128::from(value).wrapping_shl(32) | pair,
        _ => pair,
    };
    let result = pair.wrapping_shr(count) as u64 & mask(width);
    let carry = pair.wrapping_shr(count.wrapping_sub(1)) & 1 != 0;
    (result, double_flags(width, value, result, carry, flags))
}

fn double_flags(width: u8, before: u64, after: u64, carry: bool, flags: u64) -> u64 {
    flags & !STATUS
        | result_flags(after, width)
        | when(carry, CF)
        | when(sign(before ^ after, width), OF)
}

/// The low and the high half of a product, and RFLAGS. CF and OF say that the high half counts.
pub(super) fn multiply(width: u8, a: u64, b: u64, flags: u64) -> (u64, u64, u64) {
    let product = u128::from(a & mask(width)).wrapping_mul(u128::from(b & mask(width)));
    let (low, high) = halves(width, product);
    (low, high, product_flags(width, low, high != 0, flags))
}

/// The signed product, as [`multiply`].
pub(super) fn multiply_signed(width: u8, a: u64, b: u64, flags: u64) -> (u64, u64, u64) {
    let extend = |value| i128::from(sign_extend(value, width) as i64);
    let product = extend(a).wrapping_mul(extend(b));
    let (low, high) = halves(width, product as u128);
    (
        low,
        high,
        product_flags(width, low, extend(low) != product, flags),
    )
}

fn halves(width: u8, product: u128) -> (u64, u64) {
    let high = product.wrapping_shr(bits(width)) as u64;
    (product as u64 & mask(width), high & mask(width))
}

fn product_flags(width: u8, low: u64, carry: bool, flags: u64) -> u64 {
    flags & !STATUS | result_flags(low, width) | when(carry, CF | OF)
}

/// Quotient and remainder of `high:low` by `divisor`, `None` where the quotient does not fit (#DE). Flags are undefined
/// after a division; ours stay.
pub(super) fn divide(width: u8, high: u64, low: u64, divisor: u64) -> Division {
    let (high, low) = (high & mask(width), low & mask(width));
    let divisor = divisor & mask(width);
    if high >= divisor {
        return None;
    }
    if width < 8 {
        let dividend = high.wrapping_shl(bits(width)) | low;
        return Some((
            dividend.checked_div(divisor)?,
            dividend.checked_rem(divisor)?,
        ));
    }
    // 128 by 64 bits, bit by bit: a kernel has no library call for it.
    let (mut quotient, mut rest) = (low, high);
    for _ in 0..64 {
        let carry = bit(rest, 63);
        rest = rest.wrapping_shl(1) | quotient.wrapping_shr(63);
        quotient = quotient.wrapping_shl(1);
        if carry || rest >= divisor {
            rest = rest.wrapping_sub(divisor);
            quotient |= 1;
        }
    }
    Some((quotient, rest))
}

/// The signed division, rounding towards zero; as [`divide`].
pub(super) fn divide_signed(width: u8, high: u64, low: u64, divisor: u64) -> Division {
    let dividend_negative = sign(high, width);
    let divisor_negative = sign(divisor, width);
    let (high, low) = if dividend_negative {
        let low = (low & mask(width)).wrapping_neg() & mask(width);
        let carry = u64::from(low == 0);
        ((!high).wrapping_add(carry), low)
    } else {
        (high, low)
    };
    let magnitude = sign_extend(divisor, width) as i64;
    let (quotient, rest) = divide(width, high, low, magnitude.unsigned_abs())?;
    let negative = dividend_negative != divisor_negative;
    let smallest = mask(width) ^ mask(width).wrapping_shr(1);
    let most = if negative {
        smallest
    } else {
        smallest.wrapping_sub(1)
    };
    if quotient > most {
        return None;
    }
    let with_sign = |value: u64, negative: bool| {
        (if negative {
            value.wrapping_neg()
        } else {
            value
        }) & mask(width)
    };
    Some((
        with_sign(quotient, negative),
        with_sign(rest, dividend_negative),
    ))
}

/// A count of bits: of `width` bytes of a value, under RFLAGS.
pub(super) type Count = fn(u8, u64, u64) -> Outcome;

/// POPCNT.
pub(super) fn count_ones(_: u8, value: u64, flags: u64) -> Outcome {
    let zero = when(value == 0, ZF);
    (value.count_ones().into(), flags & !STATUS | zero)
}

/// LZCNT.
pub(super) fn leading_zeros(width: u8, value: u64, flags: u64) -> Outcome {
    let above = 64u32.wrapping_sub(bits(width));
    zeros(width, value.leading_zeros().wrapping_sub(above), flags)
}

/// TZCNT.
pub(super) fn trailing_zeros(width: u8, value: u64, flags: u64) -> Outcome {
    zeros(width, value.trailing_zeros().min(bits(width)), flags)
}

fn zeros(width: u8, count: u32, flags: u64) -> Outcome {
    let (carry, zero) = (when(count == bits(width), CF), when(count == 0, ZF));
    (count.into(), flags & !(CF | ZF) | carry | zero)
}

/// CRC32: the checksum of iSCSI, continued over `width` bytes.
pub(super) fn crc32(width: u8, before: u32, value: u64) -> u32 {
    const REFLECTED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let bytes = value.to_le_bytes().into_iter().take(width.into());
    bytes.fold(before, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            let polynomial = if crc & 1 != 0 {
                REFLECTED_POLYNOMIAL
            } else {
                0
            };
            crc >> 1 ^ polynomial
        })
    })
}

/// Whether the condition numbered `code`, as instructions encode it, holds (SDM 1: appendix B).
pub(super) fn condition(code: u8, flags: u64) -> bool {
    let is = |flag: u64| flags & flag != 0;
    let less = is(SF) != is(OF);
    let holds = match code >> 1 & 7 {
        0 => is(OF),
        1 => is(CF),
        2 => is(ZF),
        3 => is(CF) || is(ZF),
        4 => is(SF),
        5 => is(PF),
        6 => less,
        _ => less || is(ZF),
    };
    holds != (code & 1 != 0)
}
