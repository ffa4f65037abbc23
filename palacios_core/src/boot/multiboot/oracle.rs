// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads a Multiboot information with the `multiboot` crate, as a kernel does. Apart from the rest of `boot`, which
//! forbids the unsafe code that the crate asks for.

use multiboot::information::{MemoryManagement, MemoryType, Multiboot, PAddr};

/// What a kernel is told.
#[derive(Debug, Default)]
pub struct Told {
    pub command_line: String,
    pub loader_name: String,
    /// Start, end, command line.
    pub modules: Vec<(u64, u64, String)>,
    /// Start, length, whether it is RAM.
    pub memory_map: Vec<(u64, u64, bool)>,
    /// KiB below 1 MiB, and from there to the first hole.
    pub bounds: (u32, u32),
}

/// Guest memory as the crate wants it: copies that live on.
struct View<F>(F);

impl<F: Fn(u64, usize) -> Vec<u8>> MemoryManagement for View<F> {
    unsafe fn paddr_to_slice(&self, at: PAddr, len: usize) -> Option<&'static [u8]> {
        // The crate casts the slice to structures of 4-byte fields.
        let words = Vec::leak(vec![0u64; len.div_ceil(8)]);
        // SAFETY: the words have at least `len` bytes, and live on.
        let bytes =
            unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), len) };
        bytes.copy_from_slice(&(self.0)(at, len));
        Some(bytes)
    }
    unsafe fn allocate(&mut self, _: usize) -> Option<(PAddr, &mut [u8])> {
        None
    }
    unsafe fn deallocate(&mut self, _: PAddr) {}
}

/// Reads the information at `at` of the memory that `bytes` copies.
pub fn read(at: u64, bytes: impl Fn(u64, usize) -> Vec<u8>) -> Option<Told> {
    let mut view = View(bytes);
    // SAFETY: the crate asks `view` for every byte, and gets copies.
    let info = unsafe { Multiboot::from_ptr(at, &mut view) }?;
    let modules = info.modules()?;
    let map = info.memory_regions()?;
    Some(Told {
        command_line: info.command_line()?.into(),
        loader_name: info.boot_loader_name()?.into(),
        modules: modules
            .map(|m| (m.start, m.end, m.string.unwrap_or("").into()))
            .collect(),
        memory_map: map
            .map(|r| {
                (
                    r.base_address(),
                    r.length(),
                    r.memory_type() == MemoryType::Available,
                )
            })
            .collect(),
        bounds: (info.lower_memory_bound()?, info.upper_memory_bound()?),
    })
}
