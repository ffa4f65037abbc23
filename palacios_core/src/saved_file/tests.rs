// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use proptest::prelude::*;

fn state(to: &mut Vec<u8>, path: &str) {
    let path = SectionName::new(format_args!("{path}"));
    write_section(to, &path, "cpu", |to| to.u32(7)).unwrap();
}

fn ram(to: &mut Vec<u8>, page: u64, bytes: &[u8]) {
    write_ram(to, page, |to| to.bytes(bytes)).unwrap();
}

const IMAGE_BYTES: &[u8] = b"an image";

fn file() -> Vec<u8> {
    let mut file = Vec::new();
    write_begin(&mut file, IMAGE_BYTES).unwrap();
    file.extend_from_slice(IMAGE_BYTES);
    state(&mut file, "vcpu/0");
    state(&mut file, "moon");
    ram(&mut file, 3, &[1; 4096]);
    ram(&mut file, 0x1_0000, &[2; 8192]);
    write_end(&mut file, 5).unwrap();
    file
}

fn error(bytes: &[u8]) -> String {
    SavedFile::parse(bytes)
        .err()
        .expect("it is wrong")
        .to_string()
}

#[test]
fn what_was_written_is_read() {
    let bytes = file();
    assert!(SavedFile::recognises(&bytes));
    let file = SavedFile::parse(&bytes).unwrap();
    assert_eq!(file.image, IMAGE_BYTES);
    let mut expected = Vec::new();
    state(&mut expected, "vcpu/0");
    state(&mut expected, "moon");
    assert_eq!(file.state, expected);
    let pages: Vec<_> = file
        .ram()
        .map(|(page, bytes)| (page, bytes.len(), bytes[0]))
        .collect();
    assert_eq!(pages, [(3, 4096, 1), (0x1_0000, 8192, 2)]);
}

#[test]
fn a_cut_is_found_and_told() {
    let bytes = file();
    for len in 0..bytes.len() {
        let told = error(&bytes[..len]);
        let expected = if len < 8 {
            "no saved machine"
        } else {
            "cut off behind section"
        };
        assert!(told.contains(expected), "{len}: {told}");
    }
    assert!(error(&bytes[..bytes.len() - 1]).ends_with("ram/10000"));
    assert_eq!(
        error(&[&bytes[..], &bytes[8..]].concat()),
        "something follows its end"
    );
}

#[test]
fn what_is_out_of_place_is_refused() {
    let mut wrong: Vec<(Vec<u8>, &str)> = Vec::new();
    let begin = || {
        let mut file = Vec::new();
        write_begin(&mut file, IMAGE_BYTES).unwrap();
        file.extend_from_slice(IMAGE_BYTES);
        file
    };
    let mut late = begin();
    ram(&mut late, 0, &[1; 4096]);
    state(&mut late, "vcpu/0");
    wrong.push((late, "section vcpu/0 is damaged: section.order"));
    let mut first = MAGIC.to_vec();
    state(&mut first, "vcpu/0");
    wrong.push((first, "section vcpu/0 is damaged: section.order"));
    let mut short = begin();
    ram(&mut short, 0, &[1; 4095]);
    wrong.push((short, "section ram/0 is damaged: ram"));
    let mut far = begin();
    ram(&mut far, u64::MAX, &[1; 4096]);
    wrong.push((far, "section ram/ffffffffffffffff is damaged: ram"));
    let mut more = begin();
    write_end(&mut more, 2).unwrap();
    wrong.push((more, "section end is damaged: end.sections"));
    for (bytes, expected) in wrong {
        let told = error(&bytes);
        assert!(told.starts_with(expected), "{told}");
    }
}

proptest! {
    #[test]
    fn a_flipped_bit_is_found(bit in 0..file().len() * 8) {
        let mut bytes = file();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(SavedFile::parse(&bytes).is_err());
    }
}
