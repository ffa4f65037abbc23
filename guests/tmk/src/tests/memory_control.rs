// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is where in memory, changed by the device of test kernels while the guest runs: ROMs, shadowed RAM, a flash memory, a region that
//! moves, the dirty log, RAM that is discarded, and page tables in all of them.

use crate::io::inl;
use crate::paging::{self, PAGE};
use crate::smp::{self, count};
use crate::{check, check_eq, tests, Outcome};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};

tests!(; our_device: a_rom_stays_as_it_is, a_rom_shadows_ram, a_flash_is_a_rom_and_a_device, page_tables_in_a_rom, marks_in_a_rom_are_lost, page_tables_before_ram, page_tables_in_a_hole,
    regions_that_cannot_be, a_region_moves_under_others, the_dirty_log_is_exact, discarded_memory_is_zero);

const COMMAND: u16 = 0x2040;
/// "v3me".
const MAGIC: u32 = 0x656d_3376;
const ROM: u64 = 0xf_0000;
const ROM_BYTES: u64 = 0x1_0000;
/// No RAM is there.
pub const HOLE: u64 = 0xe000_0000;

/// Memory of the test device.
pub const FLASH: u64 = 0xff00_2000;

/// What a command does.
const SHOW: u64 = 1;
const HIDE: u64 = 2;
const DISCARD: u64 = 3;
const BEGIN_LOG: u64 = 4;
const TAKE_DIRTY: u64 = 5;
const END_LOG: u64 = 6;
const HIDE_AND_SHOW: u64 = 7;
/// Where writes go.
pub const ALLOWED: u64 = 0;
pub const DROPPED: u64 = 1;
pub const TO_DEVICE: u64 = 2;
pub const TO_PAGE: u64 = 3;

/// Whether this machine has the device of test kernels that our VMM makes.
pub fn is_there() -> bool {
    super::pc::has_test_device() && inl(COMMAND) == MAGIC
}

/// Gives a command; returns the answer.
fn command(what: u64, words: [u64; 6]) -> u64 {
    let [a, b, c, d, e, f] = words;
    let block = [what, a, b, c, d, e, f, u64::MAX];
    let at = (&raw const block).cast::<u64>();
    // SAFETY: the device reads the block and writes to it, and to what it names. (`outl` tells the compiler that no memory changes.)
    unsafe { asm!("out dx, eax", in("dx") COMMAND, in("eax") at as u32) };
    // SAFETY: the last word of the block, which the device has written.
    unsafe { at.add(7).read_volatile() }
}

/// Shows RAM pages at other addresses, in place of what is there if `hide`.
pub fn show(hide: bool, at: u64, bytes: u64, frame: u64, writes: u64, other: u64) -> Outcome {
    let what = if hide { HIDE_AND_SHOW } else { SHOW };
    check_eq!(
        command(what, [at, bytes, frame / PAGE, writes, other / PAGE, 0]),
        0
    );
    Ok(())
}

pub fn hide(at: u64, bytes: u64) -> Outcome {
    check_eq!(command(HIDE, [at, bytes, 0, 0, 0, 0]), 0);
    Ok(())
}

/// RAM is at the place of the ROM again.
fn ram_again() -> Outcome {
    show(true, ROM, ROM_BYTES, ROM, ALLOWED, 0)
}

pub fn read(at: u64) -> u64 {
    // SAFETY: mapped one to one; what is there is the test's.
    unsafe { (at as *const u64).read_volatile() }
}
pub fn write(at: u64, value: u64) {
    // SAFETY: as above.
    unsafe { (at as *mut u64).write_volatile(value) };
}

/// Frames for a ROM, filled with a pattern.
fn rom_frames() -> Result<u64, &'static str> {
    let frames = paging::frames(ROM_BYTES / PAGE)?;
    for at in (0..ROM_BYTES).step_by(8) {
        write(frames + at, pattern(at));
    }
    Ok(frames)
}

fn pattern(at: u64) -> u64 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn rom_is_whole() -> Outcome {
    check!((0..ROM_BYTES)
        .step_by(8)
        .all(|at| read(ROM + at) == pattern(at)));
    Ok(())
}

/// All that writes, writes nowhere.
fn a_rom_stays_as_it_is() -> Outcome {
    let frames = rom_frames()?;
    // `mov eax, 42; ret`.
    write(frames + 0x800, 0xc300_0000_2ab8);
    show(true, ROM, ROM_BYTES, frames, DROPPED, 0)?;
    let whole = write_in_many_ways();
    write_back(frames)?;
    ram_again()?;
    whole
}

fn write_in_many_ways() -> Outcome {
    let (rom, swapped, pushed): (u64, u64, u64);
    // SAFETY: writes to a ROM, which do nothing; a stack in it for two instructions, with interrupts off.
    unsafe {
        asm!("mov qword ptr [{0}], 0x55", "lock inc dword ptr [{0} + 8]", "mov byte ptr [{0} + 17], 3",
            "add word ptr [{0} + 24], 5", "bts qword ptr [{0} + 32], 7", in(reg) ROM);
        asm!("rep stosq", inout("rcx") 64u64 => _, inout("rdi") ROM + 256 => _, in("rax") 7u64);
        asm!("rep movsb", inout("rcx") 600u64 => _, inout("rdi") ROM + 1024 - 300 => _, inout("rsi") ROM + 4096 => _);
        asm!("xchg [{}], {}", in(reg) ROM + 40, inout(reg) 9u64 => swapped);
        asm!("mov {old}, rsp", "mov rsp, {at}", "push 5", "pop {value}", "mov rsp, {old}",
            at = in(reg) ROM + 56, old = out(reg) _, value = out(reg) pushed);
        rom = read(ROM + 48);
        asm!("movups [{}], xmm0", in(reg) ROM + 64);
        asm!("cmpxchg [{}], {}", in(reg) ROM + 80, in(reg) 1u64, inout("rax") pattern(80) => _);
    }
    check_eq!((swapped, pushed), (pattern(40), rom));
    let code: extern "C" fn() -> u32;
    // SAFETY: code that was written there.
    unsafe {
        code = core::mem::transmute::<u64, extern "C" fn() -> u32>(ROM + 0x800);
    }
    check_eq!(code(), 42);
    Ok(())
}

/// Behind it the frames are as they were, but for the code.
fn write_back(frames: u64) -> Outcome {
    for at in (0..ROM_BYTES).step_by(8).filter(|at| *at != 0x800) {
        check_eq!(read(frames + at), pattern(at));
    }
    write(frames + 0x800, pattern(0x800));
    rom_is_whole()
}

/// Reads come from the ROM, writes go to RAM behind it; then that is shown.
fn a_rom_shadows_ram() -> Outcome {
    let (frames, kept) = (rom_frames()?, paging::frames(ROM_BYTES / PAGE)?);
    // What the firmware left there: tables that others look for.
    copy(kept, ROM);
    let done = shadow(frames);
    copy(ROM, kept);
    done
}

fn copy(to: u64, from: u64) {
    (0..ROM_BYTES)
        .step_by(8)
        .for_each(|at| write(to + at, read(from + at)));
}

fn shadow(frames: u64) -> Outcome {
    show(true, ROM, ROM_BYTES, frames, TO_PAGE, ROM)?;
    for at in (0..ROM_BYTES).step_by(504) {
        write(ROM + (at & !7), !at);
    }
    rom_is_whole()?;
    ram_again()?;
    for at in (0..ROM_BYTES).step_by(504) {
        check_eq!(read(ROM + (at & !7)), !at);
    }
    Ok(())
}

/// While it is a ROM, writes go to the device; when it is hidden, the device answers.
fn a_flash_is_a_rom_and_a_device() -> Outcome {
    let frame = paging::frame()?;
    write(frame, 0x1111);
    write(FLASH, 0x2222);
    show(false, FLASH, PAGE, frame, TO_DEVICE, 0)?;
    let shown = read(FLASH);
    write(FLASH, 0x3333);
    let still = read(FLASH);
    hide(FLASH, PAGE)?;
    check_eq!(
        (shown, still, read(FLASH), read(frame)),
        (0x1111, 0x1111, 0x3333, 0x1111)
    );
    Ok(())
}

/// A copy of the page tables' root.
fn copy_of_root() -> Result<u64, &'static str> {
    let (frame, root) = (paging::frame()?, cr3());
    for entry in 0..512 {
        write(frame + 8 * entry, read((root & !0xfff) + 8 * entry));
    }
    Ok(frame)
}

fn cr3() -> u64 {
    let root;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) root) };
    root
}

/// Reads and writes through tables at `root`, and returns to those of before.
fn with_root(root: u64, word: u64) -> u64 {
    let before = cr3();
    let value;
    // SAFETY: these tables map what the others do.
    unsafe {
        asm!("mov cr3, {root}", "mov {value}, [{word}]", "add qword ptr [{word}], 1", "mov cr3, {before}",
            root = in(reg) root, word = in(reg) word, before = in(reg) before, value = out(reg) value);
    }
    value
}

/// The processor walks page tables in a ROM: what it marks as accessed there is lost, and it walks on.
fn page_tables_in_a_rom() -> Outcome {
    let frame = copy_of_root()?;
    // Not accessed yet.
    (0..512).for_each(|entry| write(frame + 8 * entry, read(frame + 8 * entry) & !0x20));
    let word = paging::frame()?;
    write(word, 7);
    show(false, HOLE, PAGE, frame, DROPPED, 0)?;
    let value = with_root(HOLE, word);
    hide(HOLE, PAGE)?;
    check_eq!((value, read(word)), (7, 8));
    Ok(())
}

/// And not only hidden: they are not in the frame that the ROM shows.
fn marks_in_a_rom_are_lost() -> Outcome {
    let frame = copy_of_root()?;
    (0..512).for_each(|entry| write(frame + 8 * entry, read(frame + 8 * entry) & !0x20));
    show(false, HOLE, PAGE, frame, DROPPED, 0)?;
    with_root(HOLE, paging::frame()?);
    hide(HOLE, PAGE)?;
    check!((0..512).all(|entry| read(frame + 8 * entry) & 0x20 == 0));
    Ok(())
}

/// The same where writes go to other pages: marks go nowhere, so those stay as they are.
fn page_tables_before_ram() -> Outcome {
    let (frame, behind) = (copy_of_root()?, paging::frame()?);
    (0..512).for_each(|entry| write(frame + 8 * entry, read(frame + 8 * entry) & !0x20));
    (0..512).for_each(|entry| write(behind + 8 * entry, entry));
    let word = paging::frame()?;
    write(word, 7);
    show(false, HOLE, PAGE, frame, TO_PAGE, behind)?;
    let value = with_root(HOLE, word);
    hide(HOLE, PAGE)?;
    check_eq!((value, read(word)), (7, 8));
    check!((0..512).all(|entry| read(behind + 8 * entry) == entry));
    Ok(())
}

/// Page tables that are shown where RAM is not.
fn page_tables_in_a_hole() -> Outcome {
    let frame = copy_of_root()?;
    let word = paging::frame()?;
    write(word, 7);
    show(false, HOLE, PAGE, frame, ALLOWED, 0)?;
    let value = with_root(HOLE, word);
    hide(HOLE, PAGE)?;
    check_eq!((value, read(word)), (7, 8));
    Ok(())
}

fn regions_that_cannot_be() -> Outcome {
    const UNALIGNED: u64 = 1;
    const EMPTY: u64 = 2;
    const OUT_OF_REACH: u64 = 3;
    const OVERLAPS: u64 = 4;
    const NO_SUCH_PAGES: u64 = 5;
    const NOT_THERE: u64 = 6;
    const TOO_MANY: u64 = 7;
    for (at, bytes, page, answer) in [
        (HOLE + 1, PAGE, 0, UNALIGNED),
        (HOLE, PAGE - 1, 0, UNALIGNED),
        (HOLE, 0, 0, EMPTY),
        (0u64.wrapping_sub(PAGE), PAGE, 0, OUT_OF_REACH),
        (0u64.wrapping_sub(PAGE), 2 * PAGE, 0, OUT_OF_REACH),
        (1 << 60, PAGE, 0, OUT_OF_REACH),
        (0, PAGE, 0, OVERLAPS),
        (0x10_0000, 64 * PAGE, 0, OVERLAPS),
        (HOLE, PAGE, 1 << 50, NO_SUCH_PAGES),
        (HOLE, PAGE, u64::MAX, NO_SUCH_PAGES),
    ] {
        check_eq!(command(SHOW, [at, bytes, page, 0, 0, 0]), answer);
    }
    check_eq!(
        command(SHOW, [HOLE, PAGE, 0, TO_PAGE, u64::MAX, 0]),
        NO_SUCH_PAGES
    );
    check_eq!(command(HIDE, [HOLE, PAGE, 0, 0, 0, 0]), NOT_THERE);
    check_eq!(command(HIDE, [HOLE, 0, 0, 0, 0, 0]), EMPTY);
    let shown = (0..100)
        .take_while(|n| command(SHOW, [HOLE + 2 * n * PAGE, PAGE, 0, 0, 0, 0]) == 0)
        .count() as u64;
    let next = command(SHOW, [HOLE + 2 * shown * PAGE, PAGE, 0, 0, 0, 0]);
    hide(HOLE, 200 * PAGE)?;
    check!((32..64).contains(&shown));
    check_eq!(next, TOO_MANY);
    // Nothing of that has changed anything.
    check_eq!(read(HOLE), u64::MAX);
    Ok(())
}

/// Where the region is: bit 0: it is moved just now; bit 1: it is at the second place.
static PHASE: AtomicU32 = AtomicU32::new(0);
static LOOKS: AtomicU64 = AtomicU64::new(0);
static OVER: AtomicBool = AtomicBool::new(false);
const MARK: u64 = 0x6d61_726b;
const PLACES: [u64; 2] = [HOLE, HOLE + 0x40_2000];

/// It is just where it is said to be.
fn look() -> Outcome {
    let before = PHASE.load(SeqCst);
    let seen = PLACES.map(read);
    if PHASE.load(SeqCst) != before || before & 1 != 0 {
        return Ok(());
    }
    LOOKS.fetch_add(1, SeqCst);
    let at = (before as usize >> 1) & 1;
    check_eq!((seen[at], seen[1 - at]), (MARK, u64::MAX));
    Ok(())
}

fn a_region_moves_under_others() -> Outcome {
    let frames = paging::frames(2)?;
    write(frames, MARK);
    OVER.store(false, SeqCst);
    PHASE.store(0, SeqCst);
    show(false, PLACES[0], 2 * PAGE, frames, ALLOWED, 0)?;
    let done = beside_others(
        &|| {
            while !OVER.load(SeqCst) {
                look()?;
            }
            Ok(())
        },
        || {
            let moved = move_often(frames);
            OVER.store(true, SeqCst);
            moved
        },
    );
    hide(PLACES[PHASE.load(SeqCst) as usize >> 1 & 1], 2 * PAGE)?;
    done
}

fn move_often(frames: u64) -> Outcome {
    for n in 1..50u32 {
        let looks = LOOKS.load(SeqCst);
        while count() > 1 && LOOKS.load(SeqCst) < looks + 10 {
            core::hint::spin_loop();
        }
        let (from, to) = (PLACES[(n as usize + 1) & 1], PLACES[n as usize & 1]);
        PHASE.store(n << 2 | 1, SeqCst);
        hide(from, 2 * PAGE)?;
        show(false, to, 2 * PAGE, frames, ALLOWED, 0)?;
        PHASE.store(n << 2 | (n & 1) << 1, SeqCst);
        look()?;
    }
    Ok(())
}

/// Does `others` on all other processors, if there are some, and `own` here.
pub fn beside_others(
    others: &(dyn Fn() -> Outcome + Sync),
    own: impl FnOnce() -> Outcome,
) -> Outcome {
    match count() {
        1 => own(),
        _ => smp::start().and_then(|()| smp::with_others(others, own)),
    }
}

const LOGGED_PAGES: u64 = 1024;

/// Frames that begin where a large page does, behind what other tests use.
fn large_frames(pages: u64) -> Result<u64, &'static str> {
    let first = paging::UNTOUCHED.end;
    match first + pages * PAGE <= paging::ram_end() {
        true => Ok(first),
        false => Err("no memory is left: give the machine 176 MiB"),
    }
}

/// Random numbers (Marsaglia).
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// Pages that were written, a bit for each.
type Set = [AtomicU64; LOGGED_PAGES as usize / 64];
const fn empty() -> Set {
    [const { AtomicU64::new(0) }; LOGGED_PAGES as usize / 64]
}
static WRITTEN: Set = empty();
static LOGGED: Set = empty();

/// Takes what was logged, and adds it to [`LOGGED`].
fn take(frames: u64) -> Outcome {
    let words = [0u64; LOGGED_PAGES as usize / 64];
    let to = (&raw const words).cast::<u64>();
    check_eq!(
        command(
            TAKE_DIRTY,
            [0, 0, frames / PAGE, 0, to as u64, words.len() as u64]
        ),
        0
    );
    for (n, set) in LOGGED.iter().enumerate() {
        // SAFETY: a word of the array, which the device has written.
        set.fetch_or(unsafe { to.add(n).read_volatile() }, SeqCst);
    }
    Ok(())
}

/// Writes to random pages, each to a word of its own, and notes which.
fn scribble(frames: u64, seed: u64, rounds: u64) -> Outcome {
    let mut random = seed | 1;
    for _ in 0..rounds {
        let page = next(&mut random) % LOGGED_PAGES;
        WRITTEN[page as usize / 64].fetch_or(1 << (page % 64), SeqCst);
        write(frames + page * PAGE + 8 * (seed % 512), random);
    }
    Ok(())
}

fn the_dirty_log_is_exact() -> Outcome {
    // Whole words of the log, and large pages where there are some.
    let frames = large_frames(LOGGED_PAGES)?;
    // Half of them have frames already.
    (0..LOGGED_PAGES / 2).for_each(|page| write(frames + page * PAGE, 1));
    WRITTEN
        .iter()
        .chain(&LOGGED)
        .for_each(|word| word.store(0, SeqCst));
    check_eq!(command(BEGIN_LOG, [0; 6]), 0);
    check!(command(BEGIN_LOG, [0; 6]) != 0);
    let logged = log_under_writes(frames);
    check_eq!(command(END_LOG, [0; 6]), 0);
    logged?;
    // Reads are no writes, and behind the log nothing is logged.
    for (written, logged) in WRITTEN.iter().zip(&LOGGED) {
        check_eq!(logged.load(SeqCst), written.load(SeqCst));
    }
    Ok(())
}

fn log_under_writes(frames: u64) -> Outcome {
    (0..LOGGED_PAGES).for_each(|page| {
        read(frames + page * PAGE);
    });
    take(frames)?;
    check!(LOGGED.iter().all(|word| word.load(SeqCst) == 0), "reads");
    beside_others(
        &|| scribble(frames, 1 + crate::trap::me() as u64, 2000),
        || {
            for n in 0..20 {
                scribble(frames, 100 + n, 50)?;
                take(frames)?;
            }
            Ok(())
        },
    )?;
    take(frames)
}

/// Some of it goes back to the host, and is zero when it is touched again; the rest stays.
fn discarded_memory_is_zero() -> Outcome {
    const PAGES: u64 = 1536;
    let frames = large_frames(PAGES)?;
    let half = frames + 512 * PAGE;
    let all = || (0..PAGES).map(|page| frames + page * PAGE);
    all().for_each(|at| write(at, at));
    let gone = command(DISCARD, [half, 512 * PAGE, 0, 0, 0, 0]);
    check!(gone == 1 || gone == 512, "frames of 2 MiB or 4 KiB");
    for at in all() {
        let wanted = if (half..half + 512 * PAGE).contains(&at) {
            0
        } else {
            at
        };
        check_eq!(read(at), wanted);
    }
    all().for_each(|at| write(at, !at));
    check!(all().all(|at| read(at) == !at));
    // Nothing is there.
    check_eq!(command(DISCARD, [HOLE, 512 * PAGE, 0, 0, 0, 0]), 0);
    check_eq!(command(DISCARD, [half, 0, 0, 0, 0, 0]), 0);
    Ok(())
}
