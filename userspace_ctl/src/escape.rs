// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way out of a console: a control key, then a letter.

/// What the user wants of this program, not of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To leave.
    Quit,
    /// To see the keys.
    Help,
}

/// Looks for escapes in what is typed.
pub struct Escape {
    key: u8,
    begun: bool,
}

impl Escape {
    /// `key` is the control character that begins an escape.
    pub fn new(key: u8) -> Self {
        Self { key, begun: false }
    }

    /// Its name, such as `Ctrl-]`.
    pub fn name(&self) -> String {
        let key = self.key | 0x40;
        format!("Ctrl-{}", char::from(key.to_ascii_lowercase()))
    }

    /// Moves `typed` to `guest`, except for escapes. What was typed after the wish to leave is lost.
    pub fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Option<Wish> {
        let mut wish = None;
        for &byte in typed {
            if !self.begun {
                self.begun = byte == self.key;
                if !self.begun {
                    guest.push(byte);
                }
                continue;
            }
            self.begun = false;
            match byte {
                b'q' | b'x' | b'.' => return Some(Wish::Quit),
                byte if byte == self.key => guest.push(byte),
                _ => wish = Some(Wish::Help),
            }
        }
        wish
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_in(pieces: &[&[u8]]) -> (Vec<u8>, Option<Wish>) {
        let mut escape = Escape::new(0x1d);
        let mut guest = Vec::new();
        let wish = pieces
            .iter()
            .find_map(|piece| escape.filter(piece, &mut guest));
        (guest, wish)
    }

    #[test]
    fn all_but_escapes_goes_to_the_guest() {
        assert_eq!(
            type_in(&[b"ls\r\x03\x01"]),
            (b"ls\r\x03\x01".to_vec(), None)
        );
        assert_eq!(type_in(&[b"a\x1d\x1db"]), (b"a\x1db".to_vec(), None));
    }

    #[test]
    fn an_escape_may_come_in_pieces() {
        assert_eq!(
            type_in(&[b"a\x1d", b"q", b"b"]),
            (b"a".to_vec(), Some(Wish::Quit))
        );
        assert_eq!(type_in(&[b"\x1dx"]).1, Some(Wish::Quit));
        assert_eq!(type_in(&[b"\x1d?ls"]), (b"ls".to_vec(), Some(Wish::Help)));
        assert_eq!(type_in(&[b"\x1d?\x1dq"]).1, Some(Wish::Quit));
        assert_eq!(type_in(&[b"\x1d"]), (vec![], None));
    }

    #[test]
    fn the_key_has_a_name() {
        assert_eq!(Escape::new(0x1d).name(), "Ctrl-]");
        assert_eq!(Escape::new(1).name(), "Ctrl-a");
    }
}
