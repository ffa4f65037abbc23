// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory, in hexadecimal and as text.

use crate::vcpu_report::Hex;
use crate::walk::Place;
use crate::{Error, Vm};
use serde::{Serialize, Serializer};
use std::fmt;

/// Pages end where this divides addresses.
const PAGE: u64 = 4096;
/// Bytes in a line.
const LINE: usize = 16;

/// Guest memory from an address on.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryDump {
    /// The first address.
    pub address: Hex,
    /// The virtual CPU by whose page tables it is read; none for guest-physical addresses.
    pub vcpu: Option<u32>,
    /// What is there, by ascending address.
    pub pieces: Vec<Piece>,
}

/// A part of it, of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// Its first address.
    pub at: Hex,
    /// How many bytes.
    pub len: u64,
    /// Its first guest-physical address; none if page tables lead to none.
    pub gpa: Option<Hex>,
    /// What it holds; empty where it cannot be read.
    #[serde(serialize_with = "as_hex")]
    pub bytes: Vec<u8>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// It reads as zeroes, as far as one can tell.
    #[serde(skip)]
    pub is_untouched: bool,
}

fn as_hex<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    to.serialize_str(&text)
}

impl Vm {
    /// Reads `len` bytes of its memory: at a linear address, by the page tables of the virtual CPU, or at a guest-physical one. What cannot be read
    /// is said in words.
    pub fn dump(&self, vcpu: Option<u32>, address: u64, len: u64) -> Result<MemoryDump, Error> {
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut at, mut left) = (address, len);
        while left > 0 {
            let part = left.min(PAGE - at % PAGE);
            let mut piece = self.dump_page(vcpu, at, part)?;
            piece.len = piece.len.clamp(1, part);
            left -= piece.len;
            let next = at.checked_add(piece.len);
            join(&mut pieces, piece);
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(MemoryDump {
            address: Hex(address),
            vcpu,
            pieces,
        })
    }

    /// A part that ends with its page.
    fn dump_page(&self, vcpu: Option<u32>, at: u64, len: u64) -> Result<Piece, Error> {
        let mut piece = Piece {
            at: Hex(at),
            len,
            gpa: None,
            bytes: Vec::new(),
            why: None,
            is_untouched: false,
        };
        let gpa = match vcpu {
            None => at,
            Some(vcpu) => {
                let walk = self.walk(vcpu, at)?;
                piece.why = walk.failure();
                match walk.gpa.filter(|_| piece.why.is_none()) {
                    Some(gpa) => gpa.0,
                    None => return Ok(piece),
                }
            }
        };
        piece.gpa = Some(Hex(gpa));
        let (place, len, bytes) = self.read_memory(gpa, len as usize)?;
        piece.len = len as u64;
        match place {
            Place::Memory => piece.bytes = bytes,
            place => {
                piece.is_untouched = place == Place::Untouched;
                piece.why = Some(place.to_string());
            }
        }
        Ok(piece)
    }
}

/// Adds a piece, to the last one if it only goes on with that.
fn join(pieces: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = pieces.last_mut() {
        let follows = match (last.gpa, piece.gpa) {
            (Some(last_gpa), Some(gpa)) => last_gpa.0.wrapping_add(last.len) == gpa.0,
            (None, None) => true,
            _ => false,
        };
        if follows && last.why == piece.why {
            last.len += piece.len;
            last.bytes.extend(piece.bytes);
            return;
        }
    }
    pieces.push(piece);
}

impl MemoryDump {
    /// Why nothing of it can be shown; `None` if something can.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        let shown = |piece: &Piece| piece.why.is_none() || piece.is_untouched;
        match self.pieces.iter().any(shown) {
            true => None,
            false => self.pieces.first()?.why.as_deref(),
        }
    }
}

impl fmt::Display for MemoryDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.pieces {
            if let Some(why) = &piece.why {
                let last = piece.at.0.saturating_add(piece.len - 1);
                writeln!(f, "{:#018x}-{last:#x}  {why}", piece.at.0)?;
            }
            let lines = piece.bytes.chunks(LINE).enumerate();
            for (n, bytes) in lines {
                let at = piece.at.0.wrapping_add((n * LINE) as u64);
                writeln!(f, "{at:#018x}  {}", line(bytes))?;
            }
        }
        Ok(())
    }
}

/// Bytes in hexadecimal, and as text where they are.
fn line(bytes: &[u8]) -> String {
    let halves = bytes.chunks(LINE / 2).map(|half| {
        let bytes: Vec<String> = half.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(" ")
    });
    let hex = halves.collect::<Vec<_>>().join("  ");
    let text = bytes.iter().map(|byte| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '.',
    });
    format!("{hex:48}  |{}|", text.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(at: u64, gpa: Option<u64>, bytes: &[u8], why: Option<&str>) -> Piece {
        Piece {
            at: Hex(at),
            len: if bytes.is_empty() {
                4096
            } else {
                bytes.len() as u64
            },
            gpa: gpa.map(Hex),
            bytes: bytes.into(),
            why: why.map(String::from),
            is_untouched: false,
        }
    }

    fn dump(pieces: Vec<Piece>) -> MemoryDump {
        MemoryDump {
            address: pieces[0].at,
            vcpu: None,
            pieces,
        }
    }

    #[test]
    fn lines_have_bytes_and_text() {
        let text = dump(vec![piece(
            0xff8,
            Some(0xff8),
            b"Hello, world!\n\x00\xff~~",
            None,
        )])
        .to_string();
        let expected = "\
0x0000000000000ff8  48 65 6c 6c 6f 2c 20 77  6f 72 6c 64 21 0a 00 ff  |Hello, world!...|
0x0000000000001008  7e 7e                                             |~~|
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_goes_on_is_one_piece() {
        let mut pieces = Vec::new();
        join(&mut pieces, piece(0, Some(0), &[1; 4096], None));
        join(&mut pieces, piece(4096, Some(4096), &[2; 8], None));
        assert_eq!((pieces.len(), pieces[0].len), (1, 4104));
        join(&mut pieces, piece(4104, Some(0), &[2; 8], None));
        assert_eq!(pieces.len(), 2, "elsewhere in memory");
        for at in [8192, 12288] {
            join(
                &mut pieces,
                piece(at, None, &[], Some("not present at level 3")),
            );
        }
        join(
            &mut pieces,
            piece(16384, None, &[], Some("not present at level 2")),
        );
        assert_eq!(pieces.len(), 4);
        let text = dump(pieces).to_string();
        assert!(
            text.contains(
                "\n0x0000000000002000-0x3fff  not present at level 3\n0x0000000000004000-"
            ),
            "{text}"
        );
    }

    #[test]
    fn it_fails_only_if_nothing_is_shown() {
        let nothing = piece(0, None, &[], Some("no memory is there"));
        assert_eq!(
            dump(vec![nothing.clone()]).failure(),
            Some("no memory is there")
        );
        let some = piece(4096, Some(0), &[1], None);
        assert_eq!(dump(vec![nothing.clone(), some]).failure(), None);
        let untouched = Piece {
            is_untouched: true,
            ..nothing
        };
        assert_eq!(dump(vec![untouched]).failure(), None);
    }

    #[test]
    fn json_has_bytes_in_hexadecimal() {
        let all = dump(vec![
            piece(0, Some(16), &[1, 0xab], None),
            piece(2, None, &[], Some("no")),
        ]);
        let json = serde_json::to_value(all).unwrap();
        let expected = serde_json::json!({
            "address": "0x0", "vcpu": null, "pieces": [
                {"at": "0x0", "len": 2, "gpa": "0x10", "bytes": "01ab"},
                {"at": "0x2", "len": 4096, "gpa": null, "bytes": "", "why": "no"},
            ],
        });
        assert_eq!(json, expected);
    }
}
