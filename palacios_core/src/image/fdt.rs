// SPDX-License-Identifier: MIT OR Apache-2.0
//! A reader of flattened device trees (Devicetree Specification 0.4, chapter 5): bounds-checked, without allocation.
//!
//! It is our own because no crate passes: `hermit-dtb`, `fdt` and `flat_device_tree` panic on malformed trees, `fdt-rs` was
//! last released in February 2024, and `dtoolkit` needs a newer compiler than the kernel's. [`Tree::parse`] walks the whole
//! tree once; what it accepts the other calls read without failing. A property is looked up in time linear in its node.
#![forbid(unsafe_code)]

use super::error::ImageError;

const MAGIC: u32 = 0xd00d_feed;
/// The version since which the strings' and structure's sizes are in the header.
const VERSION: u32 = 17;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
/// Names longer than this are refused. The specification allows 31, and a unit address; this bounds a comparison.
const MAX_NAME: usize = 63;
/// Nodes nested deeper than this are refused.
const MAX_DEPTH: u32 = 16;

/// A whole tree.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
}

/// One node.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its name with its unit address, such as `cpu@0`. The root's is empty.
    pub name: &'a str,
    cursor: Cursor<'a>,
}

/// One property.
#[derive(Clone, Copy, Debug)]
pub struct Property<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its raw value.
    pub value: &'a [u8],
}

impl<'a> Tree<'a> {
    /// Checks a tree from its header to its end.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let tree =
            Self::header(bytes).ok_or(bad("", "not a flattened device tree of version 17"))?;
        let mut cursor = tree.cursor();
        let mut depth = 0u32;
        let (mut node, mut had_child) = ("", false);
        loop {
            match cursor.next().ok_or(bad(node, "malformed there"))? {
                Token::Begin(name) => {
                    (node, had_child) = (name, false);
                    depth = depth.saturating_add(1);
                }
                // The specification puts all properties before the first child, and so `properties` stops there.
                Token::Property(_) if depth > 0 && !had_child => {}
                Token::EndNode if depth > 0 => {
                    had_child = true;
                    depth = depth.saturating_sub(1);
                }
                _ => return Err(bad(node, "tokens in a wrong order")),
            }
            if depth > MAX_DEPTH {
                return Err(bad(node, "nested too deeply"));
            }
            if depth == 0 {
                break;
            }
        }
        match cursor.next() {
            Some(Token::End) => Ok(tree),
            _ => Err(bad("", "more than one root")),
        }
    }

    fn header(bytes: &'a [u8]) -> Option<Self> {
        let field = |index: usize| {
            let at = bytes.get(index.checked_mul(4)?..)?;
            at.first_chunk().copied().map(u32::from_be_bytes)
        };
        let part = |offset: u32, len: u32| {
            let at = usize::try_from(offset).ok()?;
            bytes.get(at..)?.get(..usize::try_from(len).ok()?)
        };
        let current = field(5)? >= VERSION && field(6)? <= VERSION;
        (field(0)? == MAGIC && current).then_some(())?;
        Some(Tree {
            structure: part(field(2)?, field(9)?)?,
            strings: part(field(3)?, field(8)?)?,
        })
    }

    fn cursor(&self) -> Cursor<'a> {
        Cursor {
            rest: self.structure,
            strings: self.strings,
        }
    }

    /// The root.
    pub fn root(&self) -> Node<'a> {
        let mut cursor = self.cursor();
        cursor.next();
        Node { name: "", cursor }
    }
}

/// The children of a node. A type with a name: symbols of a kernel have a limit, and closures in closures exceed it.
pub struct Children<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Iterator for Children<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        loop {
            match self.cursor.next()? {
                Token::Begin(name) => {
                    let cursor = self.cursor;
                    self.cursor.skip_node();
                    return Some(Node { name, cursor });
                }
                Token::Property(_) => {}
                _ => return None,
            }
        }
    }
}

impl<'a> Node<'a> {
    /// Its properties, in order.
    pub fn properties(&self) -> impl Iterator<Item = Property<'a>> {
        let mut cursor = self.cursor;
        core::iter::from_fn(move || match cursor.next()? {
            Token::Property(property) => Some(property),
            _ => None,
        })
    }

    /// Its children, in order.
    pub fn children(&self) -> Children<'a> {
        Children {
            cursor: self.cursor,
        }
    }

    /// The child of this full name, such as `cpus`.
    pub fn child(&self, name: &str) -> Option<Node<'a>> {
        self.children().find(|child| child.name == name)
    }

    /// The raw value of a property.
    pub fn property(&self, name: &str) -> Option<&'a [u8]> {
        let found = self.properties().find(|property| property.name == name)?;
        Some(found.value)
    }

    /// A property that is one 32-bit cell.
    pub fn u32(&self, name: &str) -> Result<Option<u32>, ImageError> {
        self.typed(name, "is not one cell", |value| {
            Some(u32::from_be_bytes(value.try_into().ok()?))
        })
    }

    /// A property that is one 64-bit number of two cells.
    pub fn u64(&self, name: &str) -> Result<Option<u64>, ImageError> {
        self.typed(name, "is not one number of two cells", |value| {
            Some(u64::from_be_bytes(value.try_into().ok()?))
        })
    }

    /// A property that is a pair of 64-bit numbers of two cells each, such as a `reg` of address and size.
    pub fn u64_pair(&self, name: &str) -> Result<Option<(u64, u64)>, ImageError> {
        self.typed(name, "is not two numbers of two cells each", |value| {
            let (first, second) = value.split_first_chunk::<8>()?;
            Some((
                u64::from_be_bytes(*first),
                u64::from_be_bytes(second.try_into().ok()?),
            ))
        })
    }

    /// A property that is one string.
    pub fn str(&self, name: &str) -> Result<Option<&'a str>, ImageError> {
        self.typed(name, "is not one string", |value| {
            let (nul, text) = value.split_last()?;
            let one = *nul == 0 && !text.contains(&0);
            one.then(|| core::str::from_utf8(text).ok()).flatten()
        })
    }

    /// A property that is a list of strings; an empty list if there is no such property.
    pub fn strings(&self, name: &str) -> Result<impl Iterator<Item = &'a str>, ImageError> {
        let all = self.typed(name, "is not a list of strings", |value| {
            core::str::from_utf8(value).ok()
        })?;
        Ok(all.unwrap_or("").split_terminator('\0'))
    }

    fn typed<T>(
        &self,
        name: &str,
        why: &'static str,
        read: impl Fn(&'a [u8]) -> Option<T>,
    ) -> Result<Option<T>, ImageError> {
        let Some(value) = self.property(name) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or(ImageError::BadProperty {
            node: self.name.into(),
            property: name.into(),
            why,
        })
    }
}

fn bad(node: &str, why: &'static str) -> ImageError {
    ImageError::BadTree {
        node: node.into(),
        why,
    }
}

enum Token<'a> {
    Begin(&'a str),
    EndNode,
    Property(Property<'a>),
    End,
}

/// A place in the structure block.
#[derive(Clone, Copy, Debug)]
struct Cursor<'a> {
    rest: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// The next token that is no NOP; `None` where there is no well-formed one.
    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            match self.cell()? {
                NOP => continue,
                BEGIN_NODE => {
                    let name = name_at(self.rest)?;
                    self.skip(name.len().checked_add(1)?)?;
                    return Some(Token::Begin(name));
                }
                END_NODE => return Some(Token::EndNode),
                END => return Some(Token::End),
                PROP => {
                    let len = usize::try_from(self.cell()?).ok()?;
                    let name = usize::try_from(self.cell()?).ok()?;
                    let name = name_at(self.strings.get(name..)?)?;
                    let value = self.rest.get(..len)?;
                    self.skip(len)?;
                    return Some(Token::Property(Property { name, value }));
                }
                _ => return None,
            }
        }
    }

    /// Past the end of the node whose beginning was just taken.
    fn skip_node(&mut self) {
        let mut depth = 1u32;
        while depth > 0 {
            match self.next() {
                Some(Token::Begin(_)) => depth = depth.saturating_add(1),
                Some(Token::EndNode) => depth = depth.saturating_sub(1),
                Some(Token::Property(_)) => {}
                Some(Token::End) | None => return,
            }
        }
    }

    fn cell(&mut self) -> Option<u32> {
        let (cell, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_be_bytes(*cell))
    }

    /// Past `len` bytes and the padding to the next cell.
    fn skip(&mut self, len: usize) -> Option<()> {
        self.rest = self.rest.get(len.checked_next_multiple_of(4)?..)?;
        Some(())
    }
}

/// The zero-terminated name at the beginning of `bytes`.
fn name_at(bytes: &[u8]) -> Option<&str> {
    let window = bytes.get(..=MAX_NAME).unwrap_or(bytes);
    let len = window.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(window.get(..len)?).ok()
}

/// A property of a node is not as it should be.
pub(super) fn wrong(node: &Node<'_>, property: &str, why: &'static str) -> ImageError {
    ImageError::BadProperty {
        node: node.name.into(),
        property: property.into(),
        why,
    }
}

/// A node lacks a property.
pub(super) fn missing(node: &Node<'_>, property: &str) -> ImageError {
    wrong(node, property, "is missing")
}
