// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest-physical memory as a running guest reaches it: through the TLB of the CPU it is on.

pub use super::tlb::Access;
use super::tlb::{Space, Tlb, Translation};
use super::{HostMachine, Processors};
use palacios_core::addr::{Gpa, PAGE_SIZE};
use palacios_core::backend::NestedFault;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering::SeqCst};

/// The way to guest memory.
pub struct Bus<'a> {
    pub host: &'a dyn HostMachine,
    pub processors: &'a Processors,
    pub tlb: &'a mut Tlb,
    pub space: Space,
}

/// A piece of an access, in one page.
struct Piece {
    gpa: Gpa,
    translation: Translation,
    bytes: usize,
}

impl Bus<'_> {
    /// Reads up to 8 bytes.
    pub fn read(&mut self, at: Gpa, size: usize, access: Access) -> Result<u64, NestedFault> {
        let mut value = [0; 8];
        let (first, second) = self.pieces(at, size, access)?;
        let mut rest = &mut value[..size];
        for piece in [first].into_iter().chain(second) {
            let (to, more) = rest.split_at_mut(piece.bytes);
            let word = self.update(&piece, |old| old);
            to.copy_from_slice(&word.to_le_bytes()[..piece.bytes]);
            rest = more;
        }
        Ok(u64::from_le_bytes(value))
    }

    /// Writes up to 8 bytes.
    pub fn write(&mut self, at: Gpa, size: usize, value: u64) -> Result<(), NestedFault> {
        let (first, second) = self.pieces(at, size, Access::Write)?;
        let mut rest = value;
        for piece in [first].into_iter().chain(second) {
            self.update(&piece, |_| rest);
            rest = rest.checked_shr(8 * piece.bytes as u32).unwrap_or(0);
        }
        Ok(())
    }

    /// Replaces up to 8 bytes in one page by what `f` makes of them, in one atomic step; gives what was there.
    pub fn exchange(
        &mut self,
        at: Gpa,
        size: usize,
        f: impl Fn(u64) -> u64,
    ) -> Result<u64, NestedFault> {
        let (piece, second) = self.pieces(at, size, Access::Write)?;
        assert!(second.is_none(), "a locked access at {at} crosses a page");
        Ok(self.update(&piece, f))
    }

    /// Both pages are there before either is touched.
    fn pieces(
        &mut self,
        at: Gpa,
        size: usize,
        access: Access,
    ) -> Result<(Piece, Option<Piece>), NestedFault> {
        let bytes = size.min((PAGE_SIZE - at.page_offset()) as usize);
        let first = self.piece(at, bytes, access)?;
        let second = (bytes < size)
            .then(|| self.piece(at.wrapping_add(bytes as u64), size - bytes, access))
            .transpose()?;
        Ok((first, second))
    }

    fn piece(&mut self, gpa: Gpa, bytes: usize, access: Access) -> Result<Piece, NestedFault> {
        let translation = self.tlb.translate(self.host, &self.space, gpa, access);
        let translation = translation.ok_or(NestedFault {
            gpa,
            write: access == Access::Write,
            fetch: access == Access::Fetch,
            table_walk: false,
        })?;
        Ok(Piece {
            gpa,
            translation,
            bytes,
        })
    }

    /// Before and after it is used, the translation must be good.
    fn update(&self, piece: &Piece, f: impl Fn(u64) -> u64) -> u64 {
        if let Err(violation) = piece.translation.check(self.host, piece.gpa) {
            self.processors.note(violation);
            return 0;
        }
        let at = self.host.phys_to_virt(piece.translation.at).as_ptr();
        let old = update_memory(at, piece.bytes, f);
        if let Err(violation) = piece.translation.check(self.host, piece.gpa) {
            self.processors.note(violation);
        }
        old
    }
}

/// Atomic where the size is a power of two and the address aligned to it; byte by byte otherwise.
fn update_memory(at: *mut u8, bytes: usize, f: impl Fn(u64) -> u64) -> u64 {
    macro_rules! atomically {
        ($atomic:ty, $word:ty) => {{
            // SAFETY: memory of a frame, aligned as just tested; guest and VMM access it by single instructions.
            let word = unsafe { <$atomic>::from_ptr(at.cast()) };
            let change = |old: $word| Some(f(old.into()) as $word);
            let (Ok(old) | Err(old)) = word.fetch_update(SeqCst, SeqCst, change);
            u64::from(old)
        }};
    }
    match bytes {
        1 => atomically!(AtomicU8, u8),
        2 if at.addr() % 2 == 0 => atomically!(AtomicU16, u16),
        4 if at.addr() % 4 == 0 => atomically!(AtomicU32, u32),
        8 if at.addr() % 8 == 0 => atomically!(AtomicU64, u64),
        _ => {
            let byte = |i: usize| at.wrapping_add(i);
            // SAFETY: bytes of a frame.
            let read = |i| unsafe { byte(i).read_volatile() };
            let old = (0..bytes)
                .rev()
                .fold(0, |word, i| word << 8 | u64::from(read(i)));
            for (i, new) in f(old).to_le_bytes().into_iter().take(bytes).enumerate() {
                // SAFETY: as above.
                unsafe { byte(i).write_volatile(new) };
            }
            old
        }
    }
}
