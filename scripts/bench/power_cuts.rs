// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is left of a file system when the power fails. A log has all writes and flushes that a disk got, as the kernel's target log-writes of the
//! device mapper records them (the kernel's Documentation/admin-guide/device-mapper/log-writes.rst), and marks: mark N says that the guest was told
//! by then that record N is safe.
//!
//! `power_cuts BASE LOG DISK CUTS SEED MODE`: BASE is what the disk began as, LOG the log, DISK the disk in its last state. At each of CUTS places of
//! the log, an image is made of what a disk may have then, which is checked, and searched for the records. MODE is
//!   flushing   a disk that did each flush: all images must be whole, and hold the records that were acknowledged
//!   ignoring   a disk that said so of each flush, and did nothing: images must be found that do not hold them, or this program finds nothing
//!
//! It works in the current folder, where tools/ has e2fsck and debugfs with their libraries.

use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::process::{Command, ExitCode};
use std::time::Instant;

const SECTOR: usize = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1 << 0;
/// Writes that are to be done only when they can no longer be lost; discards. No disk is asked for these here, and the log puts the former before
/// older ones that they cover.
const NOT_HERE: u64 = 1 << 1 | 1 << 2;
const MARK: u64 = 1 << 3;
/// The mark that the target itself makes when it is removed.
const LAST_MARK: &str = "dm-log-writes-end";
/// How the guest writes its records: see guests/disk/steps.
const SLOTS: usize = 8;
const DIGITS: usize = 600;
/// How many writes a disk that ignores flushes has not done yet, at most. What is older, it has written back by itself.
const NOT_WRITTEN_BACK: usize = 64;
/// Of how many images it is said what is wrong with them.
const SHOWN: usize = 3;
const IMAGE: &str = "cut.img";

/// Random numbers that are the same again for the same seed (xorshift).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}

/// What happened to the disk. In the log, writes stand before the flush that covers them.
enum Event {
    Write { at: usize, data: Vec<u8> },
    Flush,
    Mark(usize),
}

fn field(bytes: &[u8], n: usize) -> u64 {
    u64::from_le_bytes(bytes[n * 8..][..8].try_into().unwrap())
}

/// Reads a log. One that the target did not end itself is none.
fn read_log(path: &str) -> io::Result<Vec<Event>> {
    let file = File::open(path)?;
    let mut head = [0; SECTOR];
    file.read_exact_at(&mut head, 0)?;
    if field(&head, 0) != MAGIC || field(&head, 3) as u32 as usize != SECTOR {
        return Err(io::Error::other("it is no log of sectors"));
    }
    let (mut events, mut at) = (Vec::new(), SECTOR as u64);
    for n in 0..field(&head, 2) {
        file.read_exact_at(&mut head, at)?;
        let (sector, sectors, flags) = (field(&head, 0), field(&head, 1), field(&head, 2));
        at += SECTOR as u64;
        if flags & MARK != 0 {
            let text = String::from_utf8_lossy(&head[32..][..field(&head, 3) as usize]);
            match text.parse() {
                Ok(record) => events.push(Event::Mark(record)),
                Err(_) if text == LAST_MARK => return Ok(events),
                Err(_) => return Err(io::Error::other(format!("entry {n} is the mark {text}"))),
            }
        }
        if flags & NOT_HERE != 0 {
            return Err(io::Error::other(format!(
                "entry {n} has the flags {flags:#x}"
            )));
        }
        if flags & FLUSH != 0 {
            events.push(Event::Flush);
        }
        if sectors != 0 {
            let mut data = vec![0; sectors as usize * SECTOR];
            file.read_exact_at(&mut data, at)?;
            at += data.len() as u64;
            let at = sector as usize * SECTOR;
            events.push(Event::Write { at, data });
        }
    }
    Err(io::Error::other(
        "it has no end: was there too little room?",
    ))
}

/// What an image was made of.
#[derive(Default)]
struct Made {
    /// The last record that was acknowledged.
    acknowledged: usize,
    whole: usize,
    torn: usize,
    dropped: usize,
}

fn apply(image: &mut [u8], at: usize, data: &[u8]) {
    image[at..][..data.len()].copy_from_slice(data);
}

/// What may be on the disk behind the first events. What no flush covers is there, is there in part, or is not there, and in any order.
fn make(image: &mut [u8], events: &[Event], flushes: bool, dice: &mut Dice) -> Made {
    let (mut made, mut pending) = (Made::default(), Vec::new());
    let most = match flushes {
        true => usize::MAX,
        false => 1 + dice.below(NOT_WRITTEN_BACK),
    };
    for event in events {
        match event {
            Event::Mark(record) => made.acknowledged = *record,
            Event::Flush if flushes => pending
                .drain(..)
                .for_each(|(at, data)| apply(image, at, data)),
            Event::Flush => {}
            Event::Write { at, data } => pending.push((*at, data)),
        }
        if pending.len() > most {
            let (at, data) = pending.remove(0);
            apply(image, at, data);
        }
    }
    while !pending.is_empty() {
        let (at, data) = pending.swap_remove(dice.below(pending.len()));
        match dice.below(3) {
            0 => made.dropped += 1,
            1 => {
                made.whole += 1;
                apply(image, at, data);
            }
            _ => {
                made.torn += 1;
                for (n, sector) in data.chunks(SECTOR).enumerate() {
                    if dice.below(2) == 0 {
                        apply(image, at + n * SECTOR, sector);
                    }
                }
            }
        }
    }
    made
}

/// Runs a program of tools/. Gives its status, and all that it said.
fn run(program: &str, words: &[&str]) -> io::Result<(i32, String)> {
    let done = Command::new("tools/lib64/ld-linux-x86-64.so.2")
        .args(["--library-path", "tools/lib/x86_64-linux-gnu"])
        .arg(format!("tools/bin/{program}"))
        .args(words)
        .output()?;
    let said = [done.stdout, done.stderr].concat();
    Ok((
        done.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

/// What is wrong with an image.
enum Fault {
    Broken(String),
    Lost(String),
}

/// A look at an image as at a disk after the power came back.
///
/// Its journal is to be replayed before anything can be said of it, and inodes that were about to be freed are freed then: `e2fsck -p` does both,
/// as it does at each boot. It repairs nothing else as long as it says that the file system is clean. Behind that, a full check must find nothing.
fn look(acknowledged: usize) -> io::Result<Option<Fault>> {
    let (status, said) = run("e2fsck", &["-p", IMAGE])?;
    if status > 1 || !said.contains(": clean,") {
        let why = format!("e2fsck -p ended with {status}:\n{said}");
        return Ok(Some(Fault::Broken(why)));
    }
    let (status, said) = run("e2fsck", &["-fn", IMAGE])?;
    if status != 0 {
        let why = format!("e2fsck -fn ended with {status}:\n{said}");
        return Ok(Some(Fault::Broken(why)));
    }
    let names: Vec<_> = (0..SLOTS)
        .map(|slot| format!("slot.{slot}"))
        .chain(["records".into()])
        .collect();
    let mut commands = String::new();
    for name in &names {
        let _ = fs::remove_file(name);
        writeln!(commands, "dump /{name} {name}").unwrap();
    }
    fs::write("commands", commands)?;
    let (status, said) = run("debugfs", &["-f", "commands", IMAGE])?;
    if status != 0 {
        return Err(io::Error::other(format!(
            "debugfs ended with {status}:\n{said}"
        )));
    }
    Ok(records_are_there(acknowledged).err().map(Fault::Lost))
}

fn record(number: usize) -> String {
    format!("{number:0DIGITS$}\n")
}

/// The file `records` has them all, in order. Slot N has the last one whose number is N modulo [`SLOTS`], which took the place of the one before by
/// a rename; the one that came behind the last acknowledged one may be there already.
fn records_are_there(acknowledged: usize) -> Result<(), String> {
    let text = fs::read("records").unwrap_or_default();
    let lines: Vec<_> = text.chunks(DIGITS + 1).collect();
    for number in 1..=acknowledged {
        if lines.get(number - 1) != Some(&record(number).as_bytes()) {
            return Err(format!("record {number} is not in the file"));
        }
        let name = format!("slot.{}", number % SLOTS);
        if number + SLOTS > acknowledged {
            let text = fs::read(&name).unwrap_or_default();
            let next =
                number + SLOTS == acknowledged + 1 && text == record(number + SLOTS).as_bytes();
            if text != record(number).as_bytes() && !next {
                return Err(format!("record {number} is not in {name}"));
            }
        }
    }
    Ok(())
}

/// Cuts the log in so many places. Whether the images are as the mode says.
fn cut(base: &[u8], events: &[Event], cuts: usize, seed: u64, flushes: bool) -> io::Result<bool> {
    let (mut all, mut lost, mut broken, begin) = (Made::default(), 0, 0, Instant::now());
    for n in 0..cuts {
        let dice = &mut Dice::new(seed.wrapping_add(n as u64));
        // One place in each of so many parts of the log.
        let place = (n * events.len() + dice.below(events.len())) / cuts + 1;
        let mut image = base.to_vec();
        let made = make(&mut image, &events[..place], flushes, dice);
        fs::write(IMAGE, &image)?;
        let fault = look(made.acknowledged)?;
        match &fault {
            Some(Fault::Lost(_)) => lost += 1,
            Some(Fault::Broken(_)) => broken += 1,
            None => {}
        }
        if let (Some(Fault::Lost(why) | Fault::Broken(why)), true) =
            (fault, flushes && lost + broken <= SHOWN)
        {
            let record = made.acknowledged;
            println!("cut {n}, behind event {place}, record {record} acknowledged: {why}");
        }
        all.whole += made.whole;
        all.torn += made.torn;
        all.dropped += made.dropped;
    }
    println!(
        "{cuts} cuts of {} events, {:.1} s, seed {seed}",
        events.len(),
        begin.elapsed().as_secs_f32()
    );
    println!(
        "of the writes that no flush covered {} were there, {} torn, {} dropped",
        all.whole, all.torn, all.dropped
    );
    println!("{lost} images have lost records, {broken} are no whole file systems");
    // A log in which nothing ever waits for a flush says nothing.
    let is_telling = all.whole > 0 && all.torn > 0 && all.dropped > 0;
    let is_right = match flushes {
        true => lost + broken == 0,
        false => lost > 0,
    };
    Ok(is_telling && is_right)
}

/// With all writes of the log, the base is the disk.
fn is_complete(base: &[u8], events: &[Event], disk: &str) -> Result<(), String> {
    let (mut image, mut last) = (base.to_vec(), vec![0; base.len()]);
    for event in events {
        if let Event::Write { at, data } = event {
            apply(&mut image, *at, data);
        }
    }
    let read = File::open(disk).and_then(|file| file.read_exact_at(&mut last, 0));
    read.map_err(|e| format!("{disk}: {e}"))?;
    match image == last {
        true => Ok(()),
        false => Err(format!("{disk} has something that the log has not")),
    }
}

fn answer(words: &[String]) -> Result<bool, String> {
    let [base, log, disk, cuts, seed, mode] = words else {
        return Err("usage: power_cuts BASE LOG DISK CUTS SEED flushing|ignoring".into());
    };
    let flushes = match mode.as_str() {
        "flushing" => true,
        "ignoring" => false,
        _ => return Err(format!("{mode} is no mode")),
    };
    let cuts: usize = cuts.parse().map_err(|e| format!("{cuts}: {e}"))?;
    let seed: u64 = seed.parse().map_err(|e| format!("{seed}: {e}"))?;
    let told = |name: &str, e: io::Error| format!("{name}: {e}");
    let base = fs::read(base).map_err(|e| told(base, e))?;
    let events = read_log(log).map_err(|e| told(log, e))?;
    is_complete(&base, &events, disk)?;
    if events.len() < cuts {
        return Err(format!("{log} has only {} events", events.len()));
    }
    cut(&base, &events, cuts, seed, flushes).map_err(|e| told(IMAGE, e))
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    match answer(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            println!("power_cuts: {why}");
            ExitCode::from(2)
        }
    }
}
