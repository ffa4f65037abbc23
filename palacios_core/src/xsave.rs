// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floating-point and vector registers as they lie in memory while a guest does not run: an XSAVE area in the standard format
//! (SDM 1: 13.4; APM 2: 11.5), or an FXSAVE area where the host has no XSAVE.
//!
//! A component whose bit in XSTATE_BV is clear is in its initial state, whatever its bytes say. Reads here honour that, and a
//! write first makes the bytes say so.
#![forbid(unsafe_code)]

use crate::alloc_ext::{NoMemory, TryPush};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::vec::Vec;

/// Where things stand in the legacy region (SDM 1: table 10-2).
const CONTROL_WORD: usize = 0;
const STATUS_WORD: usize = 2;
const TAG_BYTE: usize = 4;
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const X87_REGISTERS: usize = 32;
const XMM_REGISTERS: usize = 160;
const XMM_END: usize = 416;
/// Where the header begins: XSTATE_BV, which says what components are in use.
pub const HEADER: usize = 512;
/// The legacy region and the header.
pub const SMALLEST_AREA: u32 = 576;

/// State components (SDM 1: 13.1).
const X87: u32 = 0;
const SSE: u32 = 1;
const AVX: u32 = 2;
const ZMM_HIGH: u32 = 6;
/// Those in the legacy region.
const LEGACY_COMPONENTS: u64 = 1 << X87 | 1 << SSE;

/// x87's control word after FNINIT.
pub const INITIAL_CONTROL_WORD: u16 = 0x37f;
/// MXCSR after reset.
pub const INITIAL_MXCSR: u32 = 0x1f80;
/// Bits of MXCSR that may be set where the processor gives no mask (SDM 1: 11.6.6).
const DEFAULT_MXCSR_MASK: u32 = 0xffbf;

/// How an area is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XsaveLayout {
    /// There is a header: the area is XSAVE's.
    pub header: bool,
    /// Where the upper halves of YMM registers stand, if there are any.
    pub avx: Option<u32>,
    /// Where the upper halves of ZMM registers stand.
    pub zmm_high: Option<u32>,
}

/// One area, to be looked at and changed.
pub struct XsaveArea<'a> {
    bytes: &'a mut [u8],
    layout: XsaveLayout,
}

impl<'a> XsaveArea<'a> {
    /// At least [`SMALLEST_AREA`] long. What lies outside of it reads as zero, and cannot be written.
    pub fn new(bytes: &'a mut [u8], layout: XsaveLayout) -> Self {
        Self { bytes, layout }
    }

    /// The initial state of all components.
    pub fn clear(&mut self) {
        self.bytes.fill(0);
        // XSTATE_BV says it all, but FXRSTOR reads the control word, and both read MXCSR.
        self.put(CONTROL_WORD, &INITIAL_CONTROL_WORD.to_le_bytes());
        self.put(MXCSR, &INITIAL_MXCSR.to_le_bytes());
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut value = [0; N];
        copy(&mut value, self.bytes.get(at..).unwrap_or_default());
        value
    }
    fn put(&mut self, at: usize, value: &[u8]) {
        copy(self.bytes.get_mut(at..).unwrap_or_default(), value);
    }
    fn fill(&mut self, from: usize, to: usize) {
        self.bytes.get_mut(from..to).unwrap_or_default().fill(0);
    }

    /// A component is not in its initial state, or might not be.
    fn in_use(&self, component: u32) -> bool {
        let held = u64::from_le_bytes(self.get(HEADER));
        !self.layout.header || held.wrapping_shr(component) & 1 != 0
    }

    /// Makes a component's bytes count.
    fn use_component(&mut self, component: u32) {
        if self.in_use(component) {
            return;
        }
        match (component, self.layout.avx) {
            (X87, _) => {
                self.fill(0, MXCSR);
                self.fill(X87_REGISTERS, XMM_REGISTERS);
                self.put(CONTROL_WORD, &INITIAL_CONTROL_WORD.to_le_bytes());
            }
            (SSE, _) => self.fill(XMM_REGISTERS, XMM_END),
            (_, Some(at)) => self.fill(avx_at(at, 0), avx_at(at, 16)),
            _ => {}
        }
        let held = u64::from_le_bytes(self.get(HEADER)) | 1u64.wrapping_shl(component);
        self.put(HEADER, &held.to_le_bytes());
    }

    fn x87_at(number: u8) -> usize {
        X87_REGISTERS + 16 * usize::from(number & 7)
    }
    fn xmm_at(number: u8) -> usize {
        XMM_REGISTERS + 16 * usize::from(number & 15)
    }

    /// A YMM register, 0 to 15; its lower half is the XMM register.
    pub fn ymm(&self, number: u8) -> [u8; 32] {
        let mut value = [0; 32];
        if self.in_use(SSE) {
            copy(&mut value, &self.get::<16>(Self::xmm_at(number)));
        }
        if let Some(at) = self.layout.avx.filter(|_| self.in_use(AVX)) {
            let high = self.get::<16>(avx_at(at, number & 15));
            value
                .iter_mut()
                .skip(16)
                .zip(high)
                .for_each(|(to, from)| *to = from);
        }
        value
    }

    /// Sets an XMM register, and leaves what is above it.
    pub fn set_xmm(&mut self, number: u8, value: &[u8; 16]) {
        self.use_component(SSE);
        self.put(Self::xmm_at(number), value);
    }

    /// Sets a YMM register, and clears what is above it.
    pub fn set_ymm(&mut self, number: u8, value: &[u8; 32]) {
        let (mut low, mut high) = ([0; 16], [0; 16]);
        copy(&mut low, value);
        copy(&mut high, value.get(16..).unwrap_or_default());
        self.set_xmm(number, &low);
        if let Some(at) = self.layout.avx {
            if self.in_use(AVX) || high != [0; 16] {
                self.use_component(AVX);
                self.put(avx_at(at, number & 15), &high);
            }
        }
        if let Some(at) = self.layout.zmm_high.filter(|_| self.in_use(ZMM_HIGH)) {
            let at = (at as usize).wrapping_add(32 * usize::from(number & 15));
            self.put(at, &[0; 32]);
        }
    }

    /// x87's control word.
    pub fn control_word(&self) -> u16 {
        match self.in_use(X87) {
            true => u16::from_le_bytes(self.get(CONTROL_WORD)),
            false => INITIAL_CONTROL_WORD,
        }
    }
    /// x87's status word.
    pub fn status_word(&self) -> u16 {
        match self.in_use(X87) {
            true => u16::from_le_bytes(self.get(STATUS_WORD)),
            false => 0,
        }
    }

    /// What every MMX instruction does but EMMS: the stack's top is register 0, and all registers hold values
    /// (SDM 1: 9.6.2).
    pub fn enter_mmx(&mut self) {
        const TOP: u16 = 7 << 11;
        self.use_component(X87);
        let status = self.status_word();
        let top = (status >> 11 & 7) as u8;
        // The area has them in the order of the stack.
        let registers = [0, 1, 2, 3, 4, 5, 6, 7].map(|n| self.get::<16>(Self::x87_at(n)));
        for (value, from_top) in registers.iter().zip(0u8..8) {
            self.put(Self::x87_at(from_top.wrapping_add(top)), value);
        }
        self.put(STATUS_WORD, &(status & !TOP).to_le_bytes());
        self.put(TAG_BYTE, &[0xff]);
    }

    /// An MMX register, 0 to 7.
    pub fn mmx(&self, number: u8) -> u64 {
        let top = (self.status_word() >> 11 & 7) as u8;
        match self.in_use(X87) {
            true => u64::from_le_bytes(self.get(Self::x87_at(number.wrapping_sub(top)))),
            false => 0,
        }
    }

    /// Sets an MMX register; what is left of the x87 register becomes ones (SDM 1: 9.6.2).
    pub fn set_mmx(&mut self, number: u8, value: u64) {
        self.enter_mmx();
        let at = Self::x87_at(number);
        self.put(at, &value.to_le_bytes());
        self.put(at + 8, &[0xff; 2]);
    }

    /// MXCSR. It is kept whether SSE is in its initial state or not.
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.get(MXCSR))
    }
    /// Sets MXCSR; `false` if the processor has not all of these bits.
    pub fn set_mxcsr(&mut self, value: u32) -> bool {
        let good = value & !self.mxcsr_mask() == 0;
        if good {
            self.put(MXCSR, &value.to_le_bytes());
            self.use_component(SSE);
        }
        good
    }
    fn mxcsr_mask(&self) -> u32 {
        match u32::from_le_bytes(self.get(MXCSR_MASK)) {
            0 => DEFAULT_MXCSR_MASK,
            mask => mask,
        }
    }

    /// Sixteen bytes of the legacy region, number `chunk` of 26, as FXSAVE stores them.
    pub fn legacy(&self, chunk: u8) -> [u8; 16] {
        let at = 16 * usize::from(chunk);
        let component = if at < XMM_REGISTERS { X87 } else { SSE };
        let mut value = match self.in_use(component) {
            true => self.get(at),
            false => [0; 16],
        };
        let tail = match at {
            0 => {
                copy(&mut value, &self.control_word().to_le_bytes());
                return value;
            }
            16 => u64::from(self.mxcsr_mask()) << 32 | u64::from(self.mxcsr()),
            _ => return value,
        };
        let behind = value.iter_mut().skip(MXCSR - 16);
        behind
            .zip(tail.to_le_bytes())
            .for_each(|(to, from)| *to = from);
        value
    }

    /// Sets sixteen bytes of the legacy region, as FXRSTOR loads them; but not MXCSR.
    pub fn set_legacy(&mut self, chunk: u8, value: &[u8; 16]) {
        let at = 16 * usize::from(chunk);
        let (component, bytes) = match at {
            16 => (X87, MXCSR - 16),
            at if at < XMM_REGISTERS => (X87, 16),
            at if at < XMM_END => (SSE, 16),
            _ => return,
        };
        self.use_component(component);
        self.put(at, value.get(..bytes).unwrap_or_default());
    }
}

/// Where a state component lies in an area (SDM 1: 13.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ComponentPlace {
    number: u8,
    at: usize,
    bytes: usize,
}

/// The places of the state components behind the header. A processor has few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComponentPlaces([Option<ComponentPlace>; 16]);

impl ComponentPlaces {
    /// Of those that `allowed` has, a mask as XCR0 is, by what CPUID says in leaf 0xd.
    pub fn new(allowed: u64, cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let mut all = [None; 16];
        let is_allowed = |number: &u8| allowed.wrapping_shr((*number).into()) & 1 != 0;
        let numbers = (AVX as u8..63).filter(is_allowed);
        for (slot, number) in all.iter_mut().zip(numbers) {
            let [bytes, at, _, _] = cpuid(0xd, number.into());
            *slot = Some(ComponentPlace {
                number,
                at: at as usize,
                bytes: bytes as usize,
            });
        }
        Self(all)
    }
    fn iter(&self) -> impl Iterator<Item = &ComponentPlace> {
        self.0.iter().flatten()
    }

    /// Writes them down: a guest has learnt them from CPUID, and its own areas look so.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u8(self.iter().count() as u8)?;
        self.iter().try_for_each(|place| {
            to.u8(place.number)?;
            to.u32(place.at as u32)?;
            to.u32(place.bytes as u32)
        })
    }
    /// Reads what [`ComponentPlaces::save`] wrote.
    pub fn read(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let (count, mut all) = (from.u8()?, [None; 16]);
        if usize::from(count) > all.len() {
            return Err(StateError::Value("xsave.components"));
        }
        for slot in all.iter_mut().take(count.into()) {
            *slot = Some(ComponentPlace {
                number: from.u8()?,
                at: from.u32()? as usize,
                bytes: from.u32()? as usize,
            });
        }
        Ok(Self(all))
    }
}

impl XsaveArea<'_> {
    /// Writes down what it holds.
    pub fn record(&self, places: &ComponentPlaces) -> Result<FpuRecord, NoMemory> {
        let legacy = self.record_legacy()?;
        let in_use = match self.layout.header {
            true => u64::from_le_bytes(self.get(HEADER)),
            false => LEGACY_COMPONENTS,
        };
        let mut record = FpuRecord {
            legacy,
            in_use: in_use & LEGACY_COMPONENTS,
            components: Vec::new(),
        };
        for place in places.iter() {
            let mask = 1u64.wrapping_shl(place.number.into());
            if in_use & mask != 0 {
                let end = place.at.saturating_add(place.bytes);
                let bytes = try_copy(self.bytes.get(place.at..end).unwrap_or_default())?;
                record.components.try_push((place.number, bytes))?;
                record.in_use |= mask;
            }
        }
        Ok(record)
    }

    /// The legacy region up to the last XMM register, without the mask of MXCSR, which is the processor's.
    fn record_legacy(&self) -> Result<Vec<u8>, NoMemory> {
        let mut legacy = Vec::new();
        if self.bytes.is_empty() {
            return Ok(legacy);
        }
        for chunk in 0..(XMM_END / 16) as u8 {
            let bytes = self.legacy(chunk);
            let at = 16 * usize::from(chunk);
            for (at, byte) in (at..).zip(bytes) {
                let masked = (MXCSR_MASK..X87_REGISTERS).contains(&at);
                legacy.try_push(if masked { 0 } else { byte })?;
            }
        }
        Ok(legacy)
    }

    /// Takes what was written down. A component that has no place here is refused. On an error the area is in its initial state.
    pub fn restore(
        &mut self,
        record: &FpuRecord,
        places: &ComponentPlaces,
    ) -> Result<(), StateError> {
        self.clear();
        let restored = self.restore_cleared(record, places);
        if restored.is_err() {
            self.clear();
        }
        restored
    }

    fn restore_cleared(
        &mut self,
        record: &FpuRecord,
        places: &ComponentPlaces,
    ) -> Result<(), StateError> {
        let from = XsaveFields(&record.legacy);
        if !self.set_mxcsr(from.mxcsr()) {
            return Err(StateError::Value("cpu.fpu.mxcsr"));
        }
        if record.in_use & 1 << X87 != 0 {
            self.put(0, from.part(0, MXCSR));
            self.put(X87_REGISTERS, from.part(X87_REGISTERS, XMM_REGISTERS));
        }
        if record.in_use & 1 << SSE != 0 {
            self.put(XMM_REGISTERS, from.part(XMM_REGISTERS, XMM_END));
        }
        for (number, bytes) in &record.components {
            let place = places
                .iter()
                .find(|place| place.number == *number && self.layout.header);
            let place = place.filter(|place| place.bytes == bytes.len());
            let place = place.ok_or(StateError::Value("cpu.fpu.component"))?;
            self.put(place.at, bytes);
        }
        if self.layout.header {
            self.put(HEADER, &record.in_use.to_le_bytes());
        }
        Ok(())
    }
}

/// The legacy region of a record.
struct XsaveFields<'a>(&'a [u8]);

impl XsaveFields<'_> {
    fn part(&self, from: usize, to: usize) -> &[u8] {
        self.0.get(from..to).unwrap_or_default()
    }
    fn mxcsr(&self) -> u32 {
        let bytes = self.part(MXCSR, MXCSR_MASK).first_chunk();
        bytes.map_or(INITIAL_MXCSR, |bytes| u32::from_le_bytes(*bytes))
    }
}

/// Floating-point and vector registers, written down in no processor's layout.
#[derive(Debug, PartialEq, Eq)]
pub struct FpuRecord {
    /// The legacy region up to the last XMM register, as FXSAVE has it; empty where there is none.
    legacy: Vec<u8>,
    /// The components that are not in their initial state, a mask as XSTATE_BV is.
    in_use: u64,
    /// Of those the ones behind the header, by their numbers.
    components: Vec<(u8, Vec<u8>)>,
}

impl FpuRecord {
    /// Writes it down.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(self.legacy.len() as u32)?;
        to.bytes(&self.legacy)?;
        to.u64(self.in_use)?;
        for (number, bytes) in &self.components {
            to.u8(*number)?;
            to.u32(bytes.len() as u32)?;
            to.bytes(bytes)?;
        }
        Ok(())
    }

    /// Reads what [`FpuRecord::save`] wrote.
    pub fn read(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let legacy = from.u32()? as usize;
        if legacy != XMM_END && legacy != 0 {
            return Err(StateError::Value("cpu.fpu.legacy"));
        }
        let legacy = try_copy(from.slice(legacy)?)?;
        let in_use = from.u64()?;
        let mut components = Vec::new();
        for number in AVX as u8..64 {
            if in_use.wrapping_shr(number.into()) & 1 == 0 {
                continue;
            }
            let (found, len) = (from.u8()?, from.u32()?);
            if found != number {
                return Err(StateError::Value("cpu.fpu.component"));
            }
            components.try_push((number, try_copy(from.slice(len as usize)?)?))?;
        }
        Ok(Self {
            legacy,
            in_use,
            components,
        })
    }
}

fn try_copy(from: &[u8]) -> Result<Vec<u8>, NoMemory> {
    let mut to = Vec::new();
    to.try_reserve_exact(from.len()).map_err(|_| NoMemory)?;
    for byte in from {
        to.try_push(*byte)?;
    }
    Ok(to)
}

fn copy(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

/// Where the upper half of YMM register `number` stands.
fn avx_at(first: u32, number: u8) -> usize {
    (first as usize).wrapping_add(16 * usize::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: XsaveLayout = XsaveLayout {
        header: true,
        avx: Some(576),
        zmm_high: Some(1152),
    };

    /// An area of noise in which no component is in use.
    fn unused() -> Vec<u8> {
        let mut bytes = vec![0x5a; 2048];
        bytes[HEADER..HEADER + 8].fill(0);
        bytes[MXCSR..MXCSR + 8].copy_from_slice(&[0x80, 0x1f, 0, 0, 0xff, 0xff, 2, 0]);
        bytes
    }

    #[test]
    fn what_is_not_in_use_is_initial() {
        let mut bytes = unused();
        let area = XsaveArea::new(&mut bytes, LAYOUT);
        assert_eq!(area.ymm(3), [0; 32]);
        assert_eq!(
            (area.control_word(), area.status_word(), area.mmx(3)),
            (0x37f, 0, 0)
        );
        assert_eq!(area.mxcsr(), INITIAL_MXCSR);
        let mut first = [0; 16];
        first[..2].copy_from_slice(&INITIAL_CONTROL_WORD.to_le_bytes());
        assert_eq!((area.legacy(0), area.legacy(5)), (first, [0; 16]));
        assert_eq!(area.legacy(1)[8..], [0x80, 0x1f, 0, 0, 0xff, 0xff, 2, 0]);
    }

    #[test]
    fn a_write_takes_its_component_into_use() {
        let mut bytes = unused();
        let mut area = XsaveArea::new(&mut bytes, LAYOUT);
        area.set_xmm(3, &[1; 16]);
        assert_eq!(
            (area.ymm(3)[..16].to_vec(), area.ymm(4)),
            (vec![1; 16], [0; 32])
        );
        // Zeroes above keep AVX as it was; others do not.
        area.set_ymm(5, &[0; 32]);
        assert_eq!(area.get::<1>(HEADER), [0b010]);
        area.set_ymm(6, &[2; 32]);
        area.set_mmx(1, 7);
        assert_eq!(area.get::<1>(HEADER), [0b111]);
        assert_eq!((area.ymm(6), area.ymm(7)), ([2; 32], [0; 32]));
        assert_eq!((area.mmx(1), area.mmx(2)), (7, 0));
    }

    #[test]
    fn an_area_that_is_too_short_is_left_alone() {
        let mut area = XsaveArea::new(&mut [], LAYOUT);
        area.clear();
        area.set_ymm(15, &[1; 32]);
        area.set_mmx(7, 1);
        assert_eq!((area.ymm(15), area.mmx(7)), ([0; 32], 0));
    }
}
