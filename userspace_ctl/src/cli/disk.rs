// SPDX-License-Identifier: MIT OR Apache-2.0
//! A disk as the command line says it: `FILE[,ro][,snapshot][,shared][,queues=N]`.

use palacios_core::devices::virtio::blk::MAX_QUEUES;
use std::path::PathBuf;
use v3_ctl::DiskRequest;

/// A disk, and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFile {
    /// A file, or a block device.
    pub path: PathBuf,
    /// Its guest may not write.
    pub is_read_only: bool,
    pub how: DiskRequest,
}

impl DiskFile {
    /// Its guest writes to the file.
    pub fn writes(&self) -> bool {
        !self.is_read_only && !self.how.is_snapshot
    }
}

/// Reads one. A comma in the path is written twice.
pub fn disk(text: &str) -> Result<DiskFile, String> {
    let (path, options) = path_and_options(text);
    if path.is_empty() {
        return Err("give the file or the block device of the disk".into());
    }
    let mut disk = DiskFile {
        path: path.into(),
        is_read_only: false,
        how: DiskRequest::default(),
    };
    for option in options {
        match option.split_once('=') {
            None if option == "ro" => disk.is_read_only = true,
            None if option == "snapshot" => disk.how.is_snapshot = true,
            None if option == "shared" => disk.how.is_shared = true,
            Some(("queues", count)) => disk.how.queues = Some(queues(count)?),
            _ => {
                return Err(format!(
                    "`{option}` is none of ro, snapshot, shared, queues=N; a comma in the path is written twice"
                ))
            }
        }
    }
    if disk.is_read_only && disk.how.is_snapshot {
        return Err("a disk is ro or a snapshot: to a snapshot the guest may write".into());
    }
    Ok(disk)
}

/// The path, with its commas, and what stands behind the first that is alone.
fn path_and_options(text: &str) -> (String, Vec<&str>) {
    let mut path = String::new();
    let mut rest = text;
    loop {
        let Some((piece, behind)) = rest.split_once(',') else {
            return (path + rest, Vec::new());
        };
        path += piece;
        match behind.strip_prefix(',') {
            Some(more) => {
                path.push(',');
                rest = more;
            }
            None => return (path, behind.split(',').collect()),
        }
    }
}

fn queues(count: &str) -> Result<u16, String> {
    let count = count.parse().ok();
    let count = count.filter(|count| (1..=MAX_QUEUES).contains(count));
    count.ok_or_else(|| format!("a disk has 1 to {MAX_QUEUES} queues"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_its_options() {
        let plain = disk("a/b.img").unwrap();
        assert_eq!(plain.path, PathBuf::from("a/b.img"));
        assert!(plain.writes() && plain.how == DiskRequest::default());
        let all = disk("x,,y,,.img,snapshot,shared,queues=16").unwrap();
        assert_eq!(all.path, PathBuf::from("x,y,.img"));
        let how = DiskRequest {
            is_shared: true,
            is_snapshot: true,
            queues: Some(16),
        };
        assert!(all.how == how && !all.writes() && !all.is_read_only);
        let read_only = disk("d,ro").unwrap();
        assert!(read_only.is_read_only && !read_only.writes());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (bad, words) in [
            ("", "give the file"),
            (",ro", "give the file"),
            ("d,", "`` is none of"),
            ("d,rw", "`rw` is none of"),
            ("d,ro=1", "`ro=1` is none of"),
            ("d,queues", "`queues` is none of"),
            ("d,queues=0", "1 to 16"),
            ("d,queues=17", "1 to 16"),
            ("d,ro,snapshot", "ro or a snapshot"),
        ] {
            let refused = disk(bad).unwrap_err();
            assert!(refused.contains(words), "{bad}: {refused}");
        }
    }
}
