// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ioctl interface between `v3vee.ko` and user space.
//!
//! The structs and constants come from `host_linux/include/uapi/v3vee.h`, where each is described;
//! `regenerate` makes `v3vee.rs` of it. The same crate serves the module and programs, so it is
//! `no_std` and depends on nothing.
#![no_std]

/// C's types as this interface means them: strings are bytes.
#[allow(non_camel_case_types)]
mod ctypes {
    pub type c_char = u8;
    pub type c_uchar = u8;
    pub type c_ushort = u16;
    pub type c_int = i32;
    pub type c_uint = u32;
    pub type c_longlong = i64;
    pub type c_ulonglong = u64;
}

#[allow(non_camel_case_types)]
mod v3vee;
pub use v3vee::*;

/// A struct of the interface, which crosses it as plain bytes.
///
/// # Safety
///
/// The type is `repr(C)`, has no padding of its own, and every pattern of bits is a value of it.
pub unsafe trait Abi: Copy {
    /// A value of zeroes, from which every request starts.
    #[must_use]
    fn zeroed() -> Self {
        // SAFETY: Every pattern of bits is a value of an `Abi` type.
        unsafe { core::mem::zeroed() }
    }

    /// The bytes, as they go to the other side.
    fn as_bytes(&self) -> &[u8] {
        let data = core::ptr::from_ref(self).cast::<u8>();
        // SAFETY: The bytes lie in `self` and none of them is padding.
        unsafe { core::slice::from_raw_parts(data, size_of::<Self>()) }
    }

    /// The bytes, to be filled by what comes from the other side.
    fn as_bytes_mut(&mut self) -> &mut [u8] {
        let data = core::ptr::from_mut(self).cast::<u8>();
        // SAFETY: The bytes lie in `self`, and whatever is written there is a value of it.
        unsafe { core::slice::from_raw_parts_mut(data, size_of::<Self>()) }
    }
}

/// Implements [`Abi`] and pins the size. `tests/header.rs` has the C compiler look for padding.
macro_rules! abi {
    ($($name:ident: $size:literal,)*) => {$(
        // SAFETY: Made by bindgen of integers and arrays of integers, without padding.
        unsafe impl Abi for $name {}
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

abi! {
    v3_version: 104,
    v3_create: 104,
    v3_list: 16,
    v3_free: 8,
    v3_info: 352,
    v3_wait: 24,
    v3_stats: 16,
    v3_stat: 56,
    v3_stream: 32,
    v3_streams: 16,
    v3_feature: 160,
    v3_features: 16,
    v3_relocate: 16,
    v3_vcpu: 8,
    v3_exit: 32,
    v3_segment: 16,
    v3_vcpu_report: 1104,
    v3_descriptor: 16,
    v3_serial_options: 16,
    v3_pci_options: 16,
    v3_disk_options: 24,
    v3_attach: 104,
    v3_detach: 32,
    v3_resize: 56,
    v3_device_region: 24,
    v3_device: 264,
    v3_devices: 16,
    v3_memory_read: 24,
    v3_walk_entry: 24,
    v3_walk: 320,
    v3_local_apic: 192,
    v3_event: 16,
    v3_interrupts: 256,
    v3_load_ram: 24,
    v3_load: 32,
    v3_pic: 8,
    v3_chipset: 224,
}

/// Whether `name` may name a VM: see `v3_create.name` in the header.
#[must_use]
pub fn is_vm_name(name: &[u8]) -> bool {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
    name.len() < V3_NAME_LEN as usize
        && name.iter().all(allowed)
        && name.iter().any(|b| !b.is_ascii_digit())
}

/// The bytes of a string field before its NUL; `None` if there is no NUL.
#[must_use]
pub fn until_nul(field: &[u8]) -> Option<&[u8]> {
    let len = field.iter().position(|&b| b == 0)?;
    field.get(..len)
}

/// Puts `text` into a string field, cut to fit, with zeroes behind it.
pub fn put_text(field: &mut [u8], text: &[u8]) {
    let room = field.len().saturating_sub(1);
    let padded = text.iter().take(room).copied();
    let padded = padded.chain(core::iter::repeat(0));
    for (to, from) in field.iter_mut().zip(padded) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "vm-0", "7a", "A.b_c-9", "-"] {
            assert!(is_vm_name(good.as_bytes()), "{good}");
        }
        for bad in ["", "0", "42", "a b", "a/b", "ä", "a\0"] {
            assert!(!is_vm_name(bad.as_bytes()), "{bad}");
        }
        assert!(is_vm_name(&[b'x'; 63]));
        assert!(!is_vm_name(&[b'x'; 64]));
    }

    #[test]
    fn strings_are_cut_and_end_in_zeroes() {
        let mut field = [0xff; 4];
        put_text(&mut field, b"ab");
        assert_eq!(field, *b"ab\0\0");
        put_text(&mut field, b"abcdef");
        assert_eq!(field, *b"abc\0");
        assert_eq!(until_nul(&field), Some(&b"abc"[..]));
        assert_eq!(until_nul(b"abc"), None);
        put_text(&mut [], b"a");
    }

    #[test]
    fn bytes_round_trip() {
        let mut a = v3_relocate {
            gpa: 0x1122,
            len: 0x1000,
        };
        assert_eq!(&a.as_bytes()[..4], [0x22, 0x11, 0, 0]);
        a.as_bytes_mut()[8] = 7;
        assert_eq!(a.len, 0x1007);
        assert_eq!(v3_stat::zeroed().as_bytes(), [0; 56]);
    }
}
