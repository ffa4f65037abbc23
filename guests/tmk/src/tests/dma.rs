// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device of test kernels that works by itself (`palacios_core/src/devices/test_dma.rs`): it copies guest memory when its doorbell rings, tells
//! a processor by a message-signalled interrupt (SDM 3A: 11.11), and has memory that the guest moves and switches off.

use super::hostile;
use super::interrupts::halt_until;
use super::local_apic::{errors, off_and_on, RECEIVE_ILLEGAL_VECTOR};
use super::memory_control::{
    beside_others, hide, read, show, write, ALLOWED, DROPPED, FLASH, HOLE, TO_DEVICE, TO_PAGE,
};
use crate::apic::{self, interrupts, let_in, Mode, INIT, STARTUP, XAPIC};
use crate::io::{cpuid, inl, mmio_read, mmio_write, outb, outl};
use crate::paging::{self, PAGE};
use crate::smp::{self, all, on, on_all, settle, until, wait_ms};
use crate::trap::{self, count_of, me, WAKE};
use crate::{acpi, check, check_eq, println, tests, Outcome};
use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

tests!(; our_device: dma_copies, dma_msi_to_a_chosen_cpu, dma_msi_in_x2apic_mode, dma_msi_to_nowhere, dma_msi_of_an_illegal_vector, dma_needs_the_bus,
    dma_into_what_is_no_memory, dma_over_the_end_of_ram, dma_and_roms, dma_follows_what_is_moved, dma_memory_moves, dma_memory_gives_way,
    dma_memory_moves_under_others, dma_doorbell_storm; named: dma_reset, dma_never_rests);

// The registers.
const FROM: u16 = 0x2060;
const TO: u16 = 0x2064;
const BYTES: u16 = 0x2068;
const MSI_ADDRESS: u16 = 0x206c;
const MSI_DATA: u16 = 0x2070;
const CONTROL: u16 = 0x2074;
const MEMORY: u16 = 0x2078;
const STATUS: u16 = 0x207c;
const DOORBELL: u16 = 0x2080;

// The control register.
const MASTER: u32 = 1 << 0;
const MEMORY_ON: u32 = 1 << 1;
const NEVER_RESTS: u32 = 1 << 2;

// How a copy ends.
const WHOLE: u32 = 0;
const NO_BUS: u32 = 1;
const NO_MEMORY: u32 = 2;

/// Bits of the address of an MSI.
const LOGICAL: u32 = 1 << 2;
const REDIRECTED: u32 = 1 << 3;
/// All local APICs.
const EVERYBODY: u32 = 0xff;
const VECTOR: u32 = 0x61;

const IOAPIC: u64 = 0xfec0_0000;

/// Has the device do what the control register says, and send this MSI at the end of a copy.
fn set_up(control: u32, address: u32, data: u32) {
    for (register, value) in [
        (MSI_ADDRESS, address),
        (MSI_DATA, data),
        (MEMORY, 0),
        (CONTROL, control),
    ] {
        outl(register, value);
    }
}

/// It may copy, and tells nobody.
fn set_up_silent() {
    set_up(MASTER, 0, 0);
}

/// The address of the MSI for a local APIC.
fn to_apic(id: u32) -> u32 {
    XAPIC as u32 | id << 12
}

/// How many copies have ended.
fn ended() -> u32 {
    inl(STATUS) & 0xff_ffff
}

fn ring() {
    // SAFETY: the device writes to memory that the test gave it. (`outl` tells the compiler that no memory changes.)
    unsafe { asm!("out dx, eax", in("dx") DOORBELL, in("eax") 1) };
}

/// Begins a copy.
fn begin(from: u64, to: u64, bytes: u64) {
    for (register, value) in [(FROM, from), (TO, to), (BYTES, bytes)] {
        outl(register, value as u32);
    }
    ring();
}

/// Copies; gives how that ended.
fn copy(from: u64, to: u64, bytes: u64) -> Result<u32, &'static str> {
    let before = ended();
    begin(from, to, bytes);
    until(|| ended() != before).map_err(|_| "the copy does not end")?;
    Ok(inl(STATUS) >> 24)
}

fn byte(at: u64) -> u8 {
    // SAFETY: mapped one to one; what is there is the test's.
    unsafe { (at as *const u8).read_volatile() }
}
fn set_byte(at: u64, value: u8) {
    // SAFETY: as above.
    unsafe { (at as *mut u8).write_volatile(value) };
}

/// A byte of one of several patterns.
fn pattern(kind: u8, n: u64) -> u8 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ kind
}
fn fill(at: u64, bytes: u64, kind: u8) {
    (0..bytes).for_each(|n| set_byte(at + n, pattern(kind, n)));
}
/// Whether a part of what was filled is as it was.
fn holds(at: u64, part: Range<u64>, kind: u8) -> bool {
    part.into_iter().all(|n| byte(at + n) == pattern(kind, n))
}
/// Whether so many bytes are the same.
fn same(a: u64, b: u64, bytes: u64) -> bool {
    (0..bytes).all(|n| byte(a + n) == byte(b + n))
}

/// Memory to copy from, and to copy to.
struct Buffers {
    from: u64,
    to: u64,
}

impl Buffers {
    const BYTES: u64 = 4 * PAGE;
    const SOURCE: u8 = 0x11;
    const TARGET: u8 = 0xaa;

    fn new() -> Result<Self, &'static str> {
        let pages = Self::BYTES / PAGE;
        let (from, to) = (paging::frames(pages)?, paging::frames(pages)?);
        let buffers = Self { from, to };
        buffers.fill();
        Ok(buffers)
    }

    fn fill(&self) {
        fill(self.from, Self::BYTES, Self::SOURCE);
        fill(self.to, Self::BYTES, Self::TARGET);
    }

    /// Whether those bytes of the target were written, and nothing else.
    fn only_changed(&self, part: Range<u64>, from: u64) -> bool {
        same(self.to + part.start, from, part.end - part.start)
            && holds(self.to, 0..part.start, Self::TARGET)
            && holds(self.to, part.end..Self::BYTES, Self::TARGET)
            && holds(self.from, 0..Self::BYTES, Self::SOURCE)
    }

    fn are_untouched(&self) -> bool {
        self.only_changed(0..0, self.from)
    }
}

fn dma_copies() -> Outcome {
    apic::on();
    set_up(MASTER, to_apic(apic::id()), VECTOR);
    let (buffers, before) = (Buffers::new()?, ended());
    for (times, (from, to, bytes)) in (1..).zip([
        (3, 5, 10_000),
        (0, 0, Buffers::BYTES),
        (0, 0, 512),
        (7, 0, 513),
        (PAGE - 1, PAGE - 2, PAGE + 2),
        (9, 17, 1),
        (1, 2, 0),
    ]) {
        buffers.fill();
        begin(buffers.from + from, buffers.to + to, bytes);
        halt_until(VECTOR as u8, times);
        check_eq!(inl(STATUS), before + times);
        check!(buffers.only_changed(to..to + bytes, buffers.from + from));
        check_eq!(trap::count(VECTOR as u8), times, "one MSI for each");
    }
    set_up(0, 0, 0);
    Ok(())
}

/// All processors started, in that mode, and nothing set up for copies but MSIs.
fn set_up_for_msis(mode: Mode) -> Outcome {
    smp::start()?;
    set_up_silent();
    on_all(&|| {
        apic::set_mode(mode);
        apic::write(apic::SPURIOUS, 0x1ff);
        if mode == Mode::XApic {
            apic::write(apic::DFR, u32::MAX);
            apic::write(apic::LDR, logical_id(me()) << 24);
        }
        Ok(())
    })
}

/// The processors' logical ids: a bit each of the first eight.
fn logical_id(cpu: usize) -> u32 {
    1u32.checked_shl(cpu as u32).unwrap_or(0) & 0xff
}

/// All as other tests find them.
fn end_of_msis() -> Outcome {
    set_up(0, 0, 0);
    on_all(&|| {
        off_and_on();
        Ok(())
    })
}

/// Has the device send an MSI; behind it each processor has taken what came to it.
fn send(address: u32, data: u32) -> Outcome {
    trap::reset_counts();
    outl(MSI_ADDRESS, address);
    outl(MSI_DATA, data);
    check_eq!(copy(0, 0, 0)?, WHOLE);
    settle()
}

/// It comes by that vector to those processors, once, and nothing else comes to any.
fn expect(address: u32, data: u32, vector: u8, to: impl Fn(usize) -> bool) -> Outcome {
    send(address, data)?;
    for cpu in all() {
        for each in (0..=u8::MAX).filter(|each| *each != WAKE) {
            let (came, wanted) = (count_of(cpu, each), each == vector && to(cpu));
            if came != u32::from(wanted) {
                println!(
                    "  {address:#x} {data:#x}: vector {each:#x} came to CPU {cpu} {came} times"
                );
                return Err("not what the MSI says");
            }
        }
    }
    Ok(())
}

/// The same for one of those processors, whichever.
fn expect_one_of(address: u32, data: u32, of: impl Fn(usize) -> bool) -> Outcome {
    send(address, data)?;
    let came = |cpus: &dyn Fn(usize) -> bool| -> u32 {
        let cpus = all().filter(|cpu| cpus(*cpu));
        cpus.map(|cpu| count_of(cpu, data as u8)).sum()
    };
    check_eq!((came(&of), came(&|_| true)), (1, 1), "one of them takes it");
    Ok(())
}

fn dma_msi_to_a_chosen_cpu() -> Outcome {
    set_up_for_msis(Mode::XApic)?;
    each_and_all()?;
    let members = |of: &dyn Fn(usize) -> bool| {
        let members = all().filter(|cpu| of(*cpu));
        to_apic(members.fold(0, |to, cpu| to | logical_id(cpu))) | LOGICAL
    };
    let (odd, first_eight) = (|cpu| cpu < 8 && cpu % 2 == 1, |cpu| cpu < 8);
    expect(members(&odd), 0x64, 0x64, odd)?;
    expect(to_apic(EVERYBODY) | LOGICAL, 0x65, 0x65, |_| true)?;
    for vector in 0x70..0x78 {
        expect_one_of(members(&first_eight), 0x100 | vector, first_eight)?;
        expect_one_of(members(&first_eight) | REDIRECTED, vector, first_eight)?;
    }
    end_of_msis()
}

/// By their ids, and by the id of all: a vector, a vector that is a level, an NMI.
fn each_and_all() -> Outcome {
    for (data, vector) in [(0x62, 0x62), (0xc063, 0x63), (0x400, 2)] {
        for to in all() {
            expect(to_apic(smp::id(to)), data, vector, |cpu| cpu == to)?;
        }
        expect(to_apic(EVERYBODY), data, vector, |_| true)?;
    }
    Ok(())
}

fn dma_msi_in_x2apic_mode() -> Outcome {
    if cpuid(1, 0)[2] & 1 << 21 == 0 {
        return Ok(());
    }
    set_up_for_msis(Mode::X2Apic)?;
    each_and_all()?;
    end_of_msis()
}

fn dma_msi_to_nowhere() -> Outcome {
    set_up_for_msis(Mode::XApic)?;
    let first = to_apic(smp::id(0));
    for (address, data) in [
        (0, VECTOR),
        (0xfed0_0000, VECTOR),
        (0xfedf_f000, VECTOR),
        (0xfef0_0000, VECTOR),
        (0x0ee0_0000, VECTOR),
        (u32::MAX, VECTOR),
        // Nobody has these ids.
        (to_apic(0x7e), VECTOR),
        (to_apic(0xfe), VECTOR),
        (to_apic(0xfe), 0x400),
        (to_apic(0) | LOGICAL, VECTOR),
        // A reserved way of delivery, a start-up message, a level that is not asserted.
        (first, 0x300 | VECTOR),
        (first, STARTUP | 6),
        (to_apic(EVERYBODY), STARTUP | 6),
        (first, 0x8000 | VECTOR),
    ] {
        expect(address, data, 0, |_| false)?;
    }
    // Behind all of them it can still send.
    expect(first, VECTOR, VECTOR as u8, |cpu| cpu == 0)?;
    if smp::count() > 1 {
        nobody_starts()?;
    }
    end_of_msis()
}

/// Not even who waits for a start-up message: those come from processors alone.
fn nobody_starts() -> Outcome {
    let (before, _) = smp::starts(1);
    apic::send(smp::id(1), INIT);
    outl(MSI_ADDRESS, to_apic(smp::id(1)));
    outl(MSI_DATA, STARTUP | u32::from(smp::START_PAGE));
    check_eq!(copy(0, 0, 0)?, WHOLE);
    wait_ms(20);
    let (after, _) = smp::starts(1);
    smp::start()?;
    check_eq!(after, before);
    Ok(())
}

/// The receiver notes an error for each of the first 16 vectors (SDM 3A: 10.5.3), and goes on.
fn dma_msi_of_an_illegal_vector() -> Outcome {
    set_up_for_msis(Mode::XApic)?;
    on_all(&|| {
        errors();
        Ok(())
    })?;
    for vector in 0..16 {
        let to = vector as usize % smp::count();
        expect(to_apic(smp::id(to)), vector, 0, |_| false)?;
        for cpu in all() {
            let wanted = if cpu == to { RECEIVE_ILLEGAL_VECTOR } else { 0 };
            on(cpu, &|| {
                check_eq!((errors(), errors()), (wanted, 0));
                Ok(())
            })?;
        }
    }
    expect(to_apic(EVERYBODY), VECTOR, VECTOR as u8, |_| true)?;
    end_of_msis()
}

fn dma_needs_the_bus() -> Outcome {
    let buffers = Buffers::new()?;
    for _ in 0..2 {
        set_up(MEMORY_ON, 0, 0);
        check_eq!(copy(buffers.from, buffers.to, 1000)?, NO_BUS);
        check!(buffers.are_untouched());
        set_up_silent();
        check_eq!(copy(buffers.from, buffers.to, 1000)?, WHOLE);
        check!(buffers.only_changed(0..1000, buffers.from));
        buffers.fill();
    }
    set_up(0, 0, 0);
    Ok(())
}

/// Neither a device's memory is, its own included, nor is what nobody answers at.
fn dma_into_what_is_no_memory() -> Outcome {
    const OWN: u64 = HOLE + 0x10_0000;
    let buffers = Buffers::new()?;
    set_up(MASTER | MEMORY_ON, 0, 0);
    outl(MEMORY, OWN as u32);
    write(FLASH, 0x2222);
    let version = apic::read(apic::VERSION);
    for at in [HOLE, OWN, FLASH, XAPIC, IOAPIC, 0xffff_ff00] {
        check_eq!(copy(buffers.from, at, 300)?, NO_MEMORY);
        check_eq!(copy(at, buffers.to, 300)?, NO_MEMORY);
        check!(buffers.are_untouched());
    }
    check_eq!((read(FLASH), apic::read(apic::VERSION)), (0x2222, version));
    check_eq!((read(HOLE), read(OWN)), (u64::MAX, 0));
    set_up(0, 0, 0);
    Ok(())
}

/// What is before the end is copied as far as the piece that crosses it.
fn dma_over_the_end_of_ram() -> Outcome {
    const BEFORE: u64 = 700;
    let (buffers, kept) = (Buffers::new()?, paging::frame()?);
    let (page, at) = (paging::ram_end() - PAGE, paging::ram_end() - BEFORE);
    set_up_silent();
    fill(kept, PAGE, 0);
    (0..PAGE).for_each(|n| set_byte(kept + n, byte(page + n)));
    let done = cross_the_end(&buffers, at).and_then(|()| {
        check!(same(page, kept, PAGE - BEFORE));
        Ok(())
    });
    (0..PAGE).for_each(|n| set_byte(page + n, byte(kept + n)));
    set_up(0, 0, 0);
    done
}

fn cross_the_end(buffers: &Buffers, at: u64) -> Outcome {
    check_eq!(copy(buffers.from, at, 1024)?, NO_MEMORY);
    check!(same(at, buffers.from, 512));
    check_eq!(copy(at, buffers.to, 1024)?, NO_MEMORY);
    check!(buffers.only_changed(0..512, at));
    Ok(())
}

/// What the device writes goes where a processor's writes go: nowhere, or to the pages behind. Nowhere is no memory.
fn dma_and_roms() -> Outcome {
    let (buffers, frames, behind) = (Buffers::new()?, paging::frames(2)?, paging::frame()?);
    set_up_silent();
    fill(frames, 2 * PAGE, 1);
    fill(behind, PAGE, 2);
    show(false, HOLE, PAGE, frames, DROPPED, 0)?;
    let rom = with_rom(&buffers, HOLE);
    hide(HOLE, PAGE)?;
    rom?;
    show(false, FLASH, PAGE, frames, TO_DEVICE, 0)?;
    let flash = with_rom(&buffers, FLASH);
    hide(FLASH, PAGE)?;
    flash?;
    show(false, HOLE, PAGE, frames, TO_PAGE, behind)?;
    let shadow = with_shadow(&buffers, behind);
    hide(HOLE, PAGE)?;
    shadow?;
    // From RAM into a ROM behind it.
    show(false, HOLE, PAGE, behind, ALLOWED, 0)?;
    show(false, HOLE + PAGE, PAGE, frames + PAGE, DROPPED, 0)?;
    let half = copy(buffers.from, HOLE + PAGE - 100, 300);
    hide(HOLE, 2 * PAGE)?;
    check_eq!(half?, NO_MEMORY);
    check!(holds(frames, 0..2 * PAGE, 1), "no ROM was written");
    set_up(0, 0, 0);
    Ok(())
}

/// A ROM of a page with the first pattern.
fn with_rom(buffers: &Buffers, rom: u64) -> Outcome {
    check_eq!(copy(buffers.from, rom + 100, 300)?, NO_MEMORY);
    check!(holds(rom, 0..PAGE, 1));
    check_eq!(copy(rom, buffers.to + 1, PAGE)?, WHOLE);
    check!(buffers.only_changed(1..1 + PAGE, rom));
    buffers.fill();
    Ok(())
}

/// It shows the first pattern, before a page with the second.
fn with_shadow(buffers: &Buffers, behind: u64) -> Outcome {
    check_eq!(copy(buffers.from, HOLE + 100, 300)?, WHOLE);
    check!(holds(HOLE, 0..PAGE, 1));
    check!(same(behind + 100, buffers.from, 300));
    check!(holds(behind, 0..100, 2) && holds(behind, 400..PAGE, 2));
    Ok(())
}

/// Memory that was moved is at the new address, and no more at the old one.
fn dma_follows_what_is_moved() -> Outcome {
    let (buffers, frame) = (Buffers::new()?, paging::frame()?);
    set_up_silent();
    fill(frame, PAGE, 1);
    let places = [HOLE, HOLE + 0x40_2000, HOLE + PAGE];
    for at in places {
        show(false, at, PAGE, frame, ALLOWED, 0)?;
        let copied = only_at(&buffers, frame, &places, at);
        hide(at, PAGE)?;
        copied?;
    }
    check_eq!(copy(HOLE, buffers.to, 300)?, NO_MEMORY);
    check!(buffers.are_untouched());
    set_up(0, 0, 0);
    Ok(())
}

fn only_at(buffers: &Buffers, frame: u64, places: &[u64], at: u64) -> Outcome {
    for other in places.iter().filter(|other| **other != at) {
        check_eq!(copy(*other, buffers.to, 300)?, NO_MEMORY);
        check_eq!(copy(buffers.from, *other, 300)?, NO_MEMORY);
    }
    check!(buffers.are_untouched() && holds(frame, 0..PAGE, 1));
    check_eq!(copy(at + 9, buffers.to + 3, 1000)?, WHOLE);
    check!(buffers.only_changed(3..1003, frame + 9));
    check_eq!(copy(buffers.from, at + 9, 1000)?, WHOLE);
    check!(same(frame + 9, buffers.from, 1000));
    buffers.fill();
    fill(frame, PAGE, 1);
    Ok(())
}

/// The device answers there, at all widths.
fn memory_is_at(at: u64) -> Outcome {
    for offset in [0, 4, 0x7fc, 0xffc] {
        check_eq!(u64::from(mmio_read(at + offset)), offset);
    }
    write(at + 8, 5);
    check_eq!((read(at + 8), byte(at + 12), byte(at + 1)), (8, 12, 0xff));
    Ok(())
}

fn nobody_is_at(at: u64) -> Outcome {
    check_eq!([at, at + 0x800, at + 0xffc].map(mmio_read), [u32::MAX; 3]);
    Ok(())
}

fn dma_memory_moves() -> Outcome {
    let places = [
        HOLE,
        HOLE + PAGE,
        0xd000_0000,
        IOAPIC - PAGE,
        IOAPIC + PAGE,
        0xffff_f000,
        HOLE,
    ];
    set_up(0, 0, 0);
    outl(MEMORY, HOLE as u32);
    nobody_is_at(HOLE)?;
    outl(CONTROL, MEMORY_ON);
    for (before, at) in places.into_iter().zip(places.into_iter().skip(1)) {
        memory_is_at(before)?;
        // Lower bits of the address say nothing.
        outl(MEMORY, at as u32 | 0x123);
        nobody_is_at(before)?;
        memory_is_at(at)?;
    }
    outl(CONTROL, 0);
    nobody_is_at(HOLE)?;
    outl(CONTROL, MEMORY_ON);
    memory_is_at(HOLE)?;
    set_up(0, 0, 0);
    nobody_is_at(HOLE)
}

/// Others were there first: RAM, local APICs, devices. When they go, or it does, all is as before.
fn dma_memory_gives_way() -> Outcome {
    let (frame, hpet) = (paging::frame()?, acpi::hpet().ok_or("no HPET")?);
    apic::set_mode(Mode::XApic);
    apic::on();
    set_up(MEMORY_ON, 0, 0);
    write(frame, 0x72_616d);
    write(FLASH, 0x2222);
    let seen = || {
        mmio_write(IOAPIC, 1);
        let ioapic = [mmio_read(IOAPIC), mmio_read(IOAPIC + 0x10) >> 16];
        let apic = [
            mmio_read(XAPIC + apic::VERSION),
            mmio_read(XAPIC + apic::ID),
        ];
        (ioapic, apic, [hpet, FLASH, frame].map(read))
    };
    let before = seen();
    check_eq!((before.0, before.2[2]), ([1, 23], 0x72_616d));
    for at in [IOAPIC, XAPIC, hpet, FLASH, frame, 0] {
        outl(MEMORY, at as u32);
        check_eq!(seen(), before);
    }
    // The HPET does not need all of its page.
    outl(MEMORY, hpet as u32);
    check_eq!(mmio_read(hpet + 0xffc), 0xffc);
    outl(MEMORY, HOLE as u32);
    show(false, HOLE, PAGE, frame, ALLOWED, 0)?;
    let ram = read(HOLE);
    hide(HOLE, PAGE)?;
    check_eq!(ram, 0x72_616d);
    memory_is_at(HOLE)?;
    set_up(0, 0, 0);
    check_eq!(seen(), before);
    Ok(())
}

/// Whoever looks meanwhile finds it, or finds nobody.
fn dma_memory_moves_under_others() -> Outcome {
    const PLACES: [u64; 2] = [HOLE, HOLE + 0x40_2000];
    set_up(MEMORY_ON, 0, 0);
    let over = AtomicBool::new(false);
    let look = || {
        while !over.load(SeqCst) {
            for seen in PLACES.map(|at| mmio_read(at + 0x234)) {
                check!([0x234, u32::MAX].contains(&seen));
            }
        }
        Ok(())
    };
    let done = beside_others(&look, || {
        let moved = (0..200).try_for_each(|n| {
            let (at, other) = (PLACES[n % 2], PLACES[(n + 1) % 2]);
            outl(MEMORY, at as u32);
            memory_is_at(at)?;
            nobody_is_at(other)
        });
        over.store(true, SeqCst);
        moved
    });
    set_up(0, 0, 0);
    done
}

/// All ring while it copies: some rings are one, but none is forgotten.
fn dma_doorbell_storm() -> Outcome {
    const RINGS: u32 = 10_000;
    let buffers = Buffers::new()?;
    let storm = || {
        (0..RINGS).for_each(|_| ring());
        Ok(())
    };
    smp::start()?;
    set_up(MASTER, to_apic(apic::id()), VECTOR);
    outl(FROM, buffers.from as u32);
    outl(TO, buffers.to as u32);
    outl(BYTES, 1);
    let before = ended();
    interrupts(true);
    let raged = smp::with_others(&storm, storm);
    interrupts(false);
    raged?;
    until(|| ended() != before)?;
    for n in 0..=u8::MAX {
        set_byte(buffers.from, n);
        ring();
        until(|| byte(buffers.to) == n).map_err(|_| "a ring was not heard")?;
    }
    // A last MSI is taken while its handler is still there to end it.
    set_up(0, 0, 0);
    let_in();
    let (came, ends) = (trap::count(VECTOR as u8), ended() - before);
    check!((1..=smp::count() as u32 * RINGS + 256).contains(&ends));
    check!((1..=ends).contains(&came));
    set_byte(buffers.from, pattern(Buffers::SOURCE, 0));
    check!(holds(buffers.to, 1..Buffers::BYTES, Buffers::TARGET));
    Ok(())
}

/// Resets in the middle of a copy, and when the doorbell has just rung: nothing of that is left behind them. Behind each, and at the beginning,
/// the device is as new; so no other test runs before this one.
fn dma_reset() -> Outcome {
    const LONG: u64 = 64 * PAGE;
    let (from, to) = (paging::frames(LONG / PAGE)?, paging::frames(LONG / PAGE)?);
    apic::on();
    fill(to, LONG, 1);
    interrupts(true);
    wait_ms(20);
    interrupts(false);
    check_eq!(trap::count(VECTOR as u8), 0);
    check!(holds(to, 0..LONG, 1));
    for register in (FROM..=STATUS).step_by(4) {
        check_eq!(inl(register), 0);
    }
    nobody_is_at(HOLE)?;
    fill(from, LONG, 2);
    hostile::often(8, |round| {
        set_up(MASTER | MEMORY_ON, to_apic(apic::id()), VECTOR);
        outl(MEMORY, HOLE as u32);
        if round % 2 == 0 {
            begin(from, to, LONG);
            return until(|| byte(to) == pattern(2, 0));
        }
        begin(from, to, 1);
        Ok(())
    })
}

/// A reset waits for it, and not for ever.
fn dma_never_rests() -> Outcome {
    set_up(NEVER_RESTS, 0, 0);
    hostile::once(|| outb(0x64, 0xfe))
}
