// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends lines for a terminal in raw mode, which goes to the next line by `\n` and to its beginning by `\r` only.

/// Turns each `\n` into `\r\n`, unless there is an `\r` before it.
#[derive(Default)]
pub struct Newlines {
    after_return: bool,
}

impl Newlines {
    /// Appends `bytes` to `to`. They may come in any pieces.
    pub fn append(&mut self, bytes: &[u8], to: &mut Vec<u8>) {
        for &byte in bytes {
            if byte == b'\n' && !self.after_return {
                to.push(b'\r');
            }
            to.push(byte);
            self.after_return = byte == b'\r';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn translated(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut newlines, mut to) = (Newlines::default(), Vec::new());
        for piece in pieces {
            newlines.append(piece, &mut to);
        }
        to
    }

    #[test]
    fn a_bare_newline_gets_a_return_and_no_other_does() {
        assert_eq!(translated(&[b"a\nb"]), b"a\r\nb");
        assert_eq!(translated(&[b"a\r\nb\r\n"]), b"a\r\nb\r\n");
        assert_eq!(translated(&[b"\n\n"]), b"\r\n\r\n");
        assert_eq!(translated(&[b"a\r", b"\nb"]), b"a\r\nb");
        assert_eq!(translated(&[b"\r", b"", b"\n"]), b"\r\n");
        assert_eq!(translated(&[b"50%\rab\n"]), b"50%\rab\r\n");
    }

    proptest! {
        #[test]
        fn nothing_else_changes_however_it_is_cut(text in "[a\r\n]{0,40}", at in 0usize..40) {
            let bytes = text.as_bytes();
            let cut = bytes.split_at(at.min(bytes.len()));
            let whole = translated(&[bytes]);
            prop_assert_eq!(&translated(&[cut.0, cut.1]), &whole);
            prop_assert_eq!(&translated(&[&whole]), &whole);
            let unix = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace("\r\n", "\n");
            prop_assert_eq!(unix(&whole), unix(bytes));
        }
    }
}
