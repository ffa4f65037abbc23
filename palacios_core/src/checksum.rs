// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checksum of this project's file formats: CRC-32C, by the `crc` crate. It is `no_std`, needs neither allocation nor a build script nor wide registers
//! (which a kernel may not touch), and makes its tables at compile time.
#![forbid(unsafe_code)]

static CRC_32C: crc::Crc<u32, crc::Table<16>> =
    crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// CRC-32C of `data`.
pub fn checksum(data: &[u8]) -> u32 {
    CRC_32C.checksum(data)
}

/// The same of pieces that follow each other.
pub fn checksum_of(pieces: &[&[u8]]) -> u32 {
    let mut digest = CRC_32C.digest();
    pieces.iter().for_each(|piece| digest.update(piece));
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720: B.4, and the check value of the algorithm.
    #[test]
    fn known_values() {
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        assert_eq!(checksum_of(&[b"1234", b"56789"]), 0xe306_9283);
    }
}
