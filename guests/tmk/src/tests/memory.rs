// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's own paging, code that changes and code that crosses pages, and what the boot loader says of memory.

use crate::io::cpuid;
use crate::paging::{self, NO_CACHE, PAGE, PRESENT, WRITE};
use crate::{boot_info, check, check_eq, println, tests, Outcome};
use core::arch::asm;

tests!(
    multiboot_info,
    multiboot_memory_map,
    untouched_memory_is_zero,
    invlpg_forgets,
    cr3_write_forgets,
    global_pages_stay_until_told,
    accessed_and_dirty,
    code_that_changes,
    code_across_pages,
    exit_across_pages,
    mmio_across_code_pages,
    fxsave_across_untouched_pages; named: memory_above_4_gib, boot_protocol, pages_to_look_at
);

fn multiboot_info() -> Outcome {
    let info = boot_info::info();
    let (low_kib, high_kib) = info.bounds_kib.ok_or("no bounds of the memory")?;
    check!(high_kib > 1024 && (512..=640).contains(&low_kib));
    if let Some(wanted) = boot_info::argument("module") {
        let module = info.modules().first().ok_or("no module")?;
        check!(module.cmdline().contains(wanted));
        check_eq!(
            module.start % 4096,
            0,
            "flag 0 of the header asks for whole pages"
        );
        let text = core::str::from_utf8(module.data()).unwrap_or("?").trim();
        println!("module {} bytes: {text}", module.data().len());
        println!("command line: {}", info.cmdline());
    }
    Ok(())
}

/// What each protocol brings: `protocol=` is its name, `module=` what the only module begins with.
fn boot_protocol() -> Outcome {
    let info = boot_info::info();
    check_eq!(Some(info.protocol), boot_info::argument("protocol"));
    let [module] = info.modules() else {
        return Err("not one module");
    };
    let wanted = boot_info::argument("module").unwrap_or("?");
    check!(module.data().starts_with(wanted.as_bytes()));
    check_eq!(module.start % 4096, 0);
    multiboot_memory_map()
}

/// For somebody who looks in from outside: a page with text in it, one that nobody touches, and one that is not there. Says where they are, as
/// its own tables have it, and waits.
fn pages_to_look_at() -> Outcome {
    const TEXT: &[u8] = b"what the guest wrote";
    let (written, frame) = (paging::window(1), paging::frame()?);
    paging::map(written, frame, PRESENT | WRITE)?;
    for (at, byte) in (written..).zip(TEXT) {
        // SAFETY: just mapped.
        unsafe { (at as *mut u8).write_volatile(*byte) };
    }
    let (untouched, far) = (paging::window(1), paging::untouched()?);
    paging::map(untouched, far, PRESENT)?;
    for (name, at, frame) in [("written", written, frame), ("untouched", untouched, far)] {
        let entry = paging::entry(at)?;
        // SAFETY: our own tables.
        let value = unsafe { entry.read_volatile() };
        let entry = entry as u64;
        println!("{name} {at:#018x} is at {frame:#x} by {entry:#014x} {value:#018x}");
    }
    println!("absent {:#x}", paging::window(1));
    loop {
        core::hint::spin_loop();
    }
}

fn multiboot_memory_map() -> Outcome {
    let (mut total, mut end) = (0, 0);
    for region in boot_info::info().memory_map() {
        let (start, length, kind) = *region;
        check!(length > 0 && start >= end, "ascending, without overlap");
        end = start + length;
        if kind == 1 {
            total += length;
            check!(!(0xa_0000..0x10_0000).contains(&start));
        }
    }
    check!(total >= paging::ram_end() - (1 << 20));
    if let Some(mib) = boot_info::number("mib") {
        let missing = (mib << 20)
            .checked_sub(total)
            .ok_or("more RAM than there is")?;
        check!(missing < 1 << 20, "but for the holes of a PC");
    }
    Ok(())
}

fn untouched_memory_is_zero() -> Outcome {
    for _ in 0..4 {
        let at = paging::untouched_page()?;
        // SAFETY: mapped RAM.
        let page = unsafe { core::slice::from_raw_parts(at as *const u64, 512) };
        check!(
            page.iter().all(|word| *word == 0),
            "nothing of the host's, nor of another guest's"
        );
    }
    Ok(())
}

fn read(at: u64) -> u64 {
    // SAFETY: mapped RAM.
    unsafe { (at as *const u64).read_volatile() }
}
fn write(at: u64, value: u64) {
    // SAFETY: mapped RAM.
    unsafe { (at as *mut u64).write_volatile(value) };
}

/// Two frames that hold 1 and 2, and a page that shows the first.
fn two_frames() -> Result<(u64, u64, u64), &'static str> {
    let (first, second, at) = (
        paging::untouched()?,
        paging::untouched()?,
        paging::window(1),
    );
    write(first, 1);
    write(second, 2);
    paging::map(at, first, PRESENT | WRITE)?;
    Ok((at, first, second))
}

fn invlpg_forgets() -> Outcome {
    let (at, first, second) = two_frames()?;
    for _ in 0..100 {
        check_eq!(read(at), 1);
        paging::map(at, second, PRESENT | WRITE)?;
        check_eq!(read(at), 2);
        paging::map(at, first, PRESENT | WRITE)?;
    }
    Ok(())
}

fn reload_cr3() {
    // SAFETY: the same tables.
    unsafe { asm!("mov {t}, cr3", "mov cr3, {t}", t = out(reg) _) };
}

fn cr3_write_forgets() -> Outcome {
    let (at, first, second) = two_frames()?;
    let entry = paging::entry(at)?;
    for _ in 0..100 {
        for (frame, value) in [(second, 2), (first, 1)] {
            // SAFETY: our own tables.
            unsafe { entry.write_volatile(frame | PRESENT | WRITE) };
            reload_cr3();
            check_eq!(read(at), value);
        }
    }
    Ok(())
}

/// A change of CR4.PGE forgets global pages too (APM 2: 5.5.2).
fn global_pages_stay_until_told() -> Outcome {
    const PGE: u64 = 1 << 7;
    let (at, first, second) = two_frames()?;
    let cr4: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) cr4) };
    // SAFETY: more bits for the TLB.
    unsafe { asm!("mov cr4, {}", in(reg) cr4 | PGE) };
    let entry = paging::entry(at)?;
    // SAFETY: our own tables.
    unsafe { entry.write_volatile(first | PRESENT | WRITE | 1 << 8) };
    let before = read(at);
    // SAFETY: as above; a toggle of PGE forgets all.
    unsafe {
        entry.write_volatile(second | PRESENT | WRITE | 1 << 8);
        asm!("mov cr4, {}", in(reg) cr4);
    }
    let after = read(at);
    check_eq!((before, after), (1, 2));
    Ok(())
}

fn accessed_and_dirty() -> Outcome {
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    let (at, _, _) = two_frames()?;
    let entry = paging::entry(at)?;
    // SAFETY: our own tables.
    let bits = || unsafe { entry.read_volatile() } & (ACCESSED | DIRTY);
    check_eq!(bits(), 0);
    read(at);
    check_eq!(bits(), ACCESSED);
    write(at, 3);
    check_eq!(bits(), ACCESSED | DIRTY);
    // The same by an instruction that a VMM executes: a device register read into memory.
    let (at, _, _) = two_frames()?;
    let entry = paging::entry(at)?;
    // SAFETY: a read of the task priority.
    unsafe { asm!("movsd", inout("rsi") 0xfee0_0080u64 => _, inout("rdi") at => _) };
    // SAFETY: our own tables.
    check_eq!(
        unsafe { entry.read_volatile() } & (ACCESSED | DIRTY),
        ACCESSED | DIRTY
    );
    Ok(())
}

const RET: u8 = 0xc3;

/// Calls `code`, which keeps all but RAX, RCX and RDX; gives EAX.
fn call(code: u64, rdi: u64) -> u32 {
    let value: u64;
    // SAFETY: the tests' own code.
    unsafe {
        asm!("push rbx", "call {code}", "pop rbx", code = in(reg) code,
            in("rdi") rdi, inout("rax") 0u64 => value, out("rcx") _, out("rdx") _)
    };
    value as u32
}

fn place(at: u64, code: &[u8]) {
    for (at, byte) in (at..).zip(code) {
        // SAFETY: mapped RAM.
        unsafe { (at as *mut u8).write_volatile(*byte) };
    }
}

/// An exit's instruction is what lies there now, not what lay there before.
fn code_that_changes() -> Outcome {
    let at = paging::untouched_page()?;
    for round in 0..50 {
        // mov eax, ROUND; ret. Then: xor eax, eax; cpuid; ret. Then: in eax, dx with DX 0; ret.
        place(at, &[0xb8, round, 0, 0, 0, RET]);
        check_eq!(call(at, 0), u32::from(round));
        place(at, &[0x31, 0xc0, 0x0f, 0xa2, RET]);
        check_eq!(call(at, 0), cpuid(0, 0)[0]);
        place(at, &[0x66, 0xba, 0x78, 0x56, 0xed, RET]);
        check_eq!(call(at, 0), u32::MAX);
        // mov eax, [rdi]; ret, on a device and then on memory.
        place(at, &[0x8b, 0x07, RET]);
        check_eq!(call(at, 0xfee0_0030), crate::io::mmio_read(0xfee0_0030));
        check_eq!(call(at, at), read(at) as u32);
    }
    Ok(())
}

/// Two pages whose frames lie apart and were never touched. Gives the address of the border.
fn border() -> Result<u64, &'static str> {
    let at = paging::window(2);
    let (second, first) = (paging::untouched()?, paging::untouched()?);
    paging::map(at, first, PRESENT | WRITE)?;
    paging::map(at + PAGE, second, PRESENT | WRITE)?;
    Ok(at + PAGE)
}

/// Runs `code` with a border between two pages before each of its bytes.
fn at_every_border(code: &[u8], rdi: u64, expected: u32) -> Outcome {
    let border = border()?;
    for before in 1..code.len() {
        let start = border - before as u64;
        place(start, code);
        check_eq!(call(start, rdi), expected);
    }
    Ok(())
}

fn code_across_pages() -> Outcome {
    at_every_border(&[0xb8, 0x78, 0x56, 0x34, 0x12, RET], 0, 0x1234_5678)
}

fn exit_across_pages() -> Outcome {
    // xor eax, eax; cpuid; ret — mov dx, 0x5678; in eax, dx; ret — in eax, 0x78; ret — mov ecx, 0x1b; rdmsr; ret
    at_every_border(&[0x31, 0xc0, 0x0f, 0xa2, RET], 0, cpuid(0, 0)[0])?;
    at_every_border(&[0x66, 0xba, 0x78, 0x56, 0xed, RET], 0, u32::MAX)?;
    let base = crate::io::rdmsr(0x1b) as u32;
    at_every_border(&[0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, RET], 0, base)
}

fn mmio_across_code_pages() -> Outcome {
    let version = crate::io::mmio_read(0xfee0_0030);
    // mov eax, [rdi + 0x10]; ret — mov eax, [rdi + disp32 0]; ret
    at_every_border(&[0x8b, 0x47, 0x10, RET], 0xfee0_0020, version)?;
    at_every_border(&[0x8b, 0x87, 0x10, 0, 0, 0, RET], 0xfee0_0020, version)?;
    // mov eax, moffs64; ret
    at_every_border(&[0xa1, 0x30, 0, 0xe0, 0xfe, 0, 0, 0, 0, RET], 0, version)
}

/// One instruction with two untouched pages: 512 bytes across a border.
fn fxsave_across_untouched_pages() -> Outcome {
    let at = border()? - 256;
    // SAFETY: mapped RAM, 16-byte aligned.
    unsafe { asm!("fninit", "fxsave64 [{}]", in(reg) at) };
    check_eq!(read(at) & 0xffff, 0x37f, "FCW");
    check_eq!(read(at + 24) as u32, 0x1f80, "MXCSR");
    Ok(())
}

/// RAM above 4 GiB is as good as any; `mib=` says how much the machine has.
fn memory_above_4_gib() -> Outcome {
    let mut seen = 0;
    for (start, length, kind) in boot_info::info().memory_map().iter().copied() {
        if kind != 1 || start < 1 << 32 {
            continue;
        }
        for frame in [
            start,
            (start + length / 2) & !(PAGE - 1),
            start + length - PAGE,
        ] {
            let at = paging::window(1);
            paging::map(at, frame, PRESENT | WRITE)?;
            check_eq!(read(at), 0);
            write(at + 8, frame);
            paging::map(at, frame, PRESENT | NO_CACHE)?;
            check_eq!(read(at + 8), frame);
            seen += 1;
        }
    }
    check!(seen > 0, "the memory map has none");
    Ok(())
}
