// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a CPUID costs that a guest executes: the same guest code under v3vee and under KVM.
//!
//! `exit_cost kernel FILE` writes the guest as a Multiboot kernel; `exit_cost show FILE` reads what it sent to COM1;
//! `exit_cost kvm` runs it under KVM. On a host whose clock counts instructions, the figure is in instructions.

use std::arch::global_asm;
use std::fs::{self, File, OpenOptions};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd};

/// Rounds in a batch; the guest sends the quickest batch.
const ROUNDS: u32 = 100;
/// Where a Multiboot loader puts the kernel, header first, and where the code begins.
const LOAD: u32 = 0x10_0000;
const ENTRY: u32 = LOAD + 32;
const COM1: u16 = 0x3f8;
const TEST_EXIT: u16 = 0xf4;

// The guest: 64-bit with four levels of page tables, as a kernel is, and interrupts off. Once there it needs no stack: ESP
// counts rounds. EDI has the quickest batch.
macro_rules! measure {
    ($instruction:literal) => {
        concat!(
            "mov ebp, 50; mov edi, -1\n",
            "2: rdtsc; mov esi, eax; mov esp, 100\n",
            "3: xor eax, eax; ",
            $instruction,
            "; dec esp; jnz 3b\n",
            "rdtsc; sub eax, esi; cmp eax, edi; jae 4f; mov edi, eax\n",
            "4: dec ebp; jnz 2b\n",
            "mov edx, 0x3f8; mov ecx, 4\n",
            "5: mov eax, edi; out dx, al; shr edi, 8; dec ecx; jnz 5b\n",
        )
    };
}
global_asm!(
    ".pushsection .rodata",
    ".globl guest_begin, guest_end",
    "guest_begin:",
    ".code32",
    // The first 2 MiB, each at its own address.
    "mov dword ptr [0x180000], 0x181003",
    "mov dword ptr [0x181000], 0x182003",
    "mov dword ptr [0x182000], 0x83",
    "mov eax, 0x180000; mov cr3, eax",
    "mov eax, cr4; or eax, 0x20; mov cr4, eax",
    "mov ecx, 0xc0000080; rdmsr; or eax, 0x100; wrmsr",
    "mov eax, cr0; or eax, 0x80000001; mov cr0, eax",
    "mov esp, 0x1ff000; call 7f",
    ".quad 0, 0x00209b0000000000",
    // A descriptor of the table above; a far return into its only segment, to what follows the call.
    "7: push 0x000f0000; lgdt [esp + 2]",
    "push 8; call 8f",
    ".code64",
    measure!("nop"),
    measure!("cpuid"),
    "mov edx, 0xf4; xor eax, eax; out dx, al",
    "6: hlt; jmp 6b",
    ".code32",
    "8: retf",
    ".code64",
    "guest_end:",
    ".popsection",
);

fn guest() -> &'static [u8] {
    extern "C" {
        static guest_begin: u8;
        static guest_end: u8;
    }
    // SAFETY: the two labels stand around the guest's code above.
    unsafe {
        let (begin, end) = (&raw const guest_begin, &raw const guest_end);
        std::slice::from_raw_parts(begin, end.offset_from(begin) as usize)
    }
}

/// Header with load addresses, then the code (Multiboot 0.6.96: 3.1).
fn kernel() -> Vec<u8> {
    let (magic, flags) = (0x1bad_b002u32, 1 << 16);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, LOAD, LOAD, 0, 0, ENTRY];
    let mut kernel: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    kernel.extend(guest());
    kernel
}

/// What two batches tell: the loop with a NOP, and the same with a CPUID.
fn show(sent: &[u8]) -> Result<()> {
    let [a, b, c, d, e, f, g, h] = *sent else {
        return Err(Error::other(format!(
            "the guest sent {} bytes, not 8",
            sent.len()
        )));
    };
    let (nop, cpuid) = (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    );
    println!("{}", (cpuid - nop) / ROUNDS + 1);
    Ok(())
}

mod kvm {
    //! Just enough of `linux/kvm.h`.
    use super::*;
    use std::ffi::{c_int, c_ulong, c_void};

    pub const CREATE_VM: c_ulong = 0xae01;
    pub const GET_VCPU_MMAP_SIZE: c_ulong = 0xae04;
    pub const GET_SUPPORTED_CPUID: c_ulong = 0xc008_ae05;
    pub const CREATE_VCPU: c_ulong = 0xae41;
    pub const SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
    pub const RUN: c_ulong = 0xae80;
    pub const SET_REGS: c_ulong = 0x4090_ae82;
    pub const GET_SREGS: c_ulong = 0x8138_ae83;
    pub const SET_SREGS: c_ulong = 0x4138_ae84;
    pub const SET_CPUID2: c_ulong = 0x4008_ae90;
    pub const EXIT_IO: u32 = 2;

    extern "C" {
        fn ioctl(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int;
        fn mmap(
            at: *mut c_void,
            len: usize,
            protection: c_int,
            flags: c_int,
            fd: c_int,
            offset: i64,
        ) -> *mut c_void;
    }

    /// # Safety
    ///
    /// `argument` is what the request asks for.
    pub unsafe fn call(file: &File, request: c_ulong, argument: c_ulong) -> Result<c_int> {
        // SAFETY: as promised by the caller.
        match unsafe { ioctl(file.as_raw_fd(), request, argument) } {
            -1 => Err(Error::last_os_error()),
            result => Ok(result),
        }
    }

    /// Shared memory: of a file, or anonymous. It stays until the end of the program.
    pub fn map(len: usize, file: Option<&File>) -> Result<&'static mut [u8]> {
        const READ_WRITE: c_int = 3;
        const SHARED: c_int = 1;
        const ANONYMOUS: c_int = 0x20;
        let (flags, fd) = file.map_or((SHARED | ANONYMOUS, -1), |file| (SHARED, file.as_raw_fd()));
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { mmap(std::ptr::null_mut(), len, READ_WRITE, flags, fd, 0) };
        if at as isize == -1 {
            return Err(Error::last_os_error());
        }
        // SAFETY: just mapped, for this slice alone.
        Ok(unsafe { std::slice::from_raw_parts_mut(at.cast(), len) })
    }

    /// `struct kvm_segment`.
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct Segment {
        pub base: u64,
        pub limit: u32,
        pub selector: u16,
        /// Type, present, DPL, default size, S, L, granularity, available, unusable, padding.
        pub attributes: [u8; 10],
    }

    /// `struct kvm_sregs`, as far as it is used here.
    #[repr(C)]
    pub struct Sregs {
        /// CS, DS, ES, FS, GS, SS, TR, LDTR.
        pub segments: [Segment; 8],
        pub tables: [u64; 4],
        pub cr0: u64,
        pub rest: [u64; 10],
    }
    const _: () = assert!(size_of::<Sregs>() == 0x138);
}

/// Runs the guest under KVM; returns what it sent to COM1.
fn under_kvm() -> Result<Vec<u8>> {
    const MEMORY_BYTES: usize = 2 << 20;
    let control = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let memory = kvm::map(MEMORY_BYTES, None)?;
    let image = kernel();
    memory[LOAD as usize..][..image.len()].copy_from_slice(&image);
    // Slot 0, no flags, from address 0.
    let region = [0u64, 0, MEMORY_BYTES as u64, memory.as_ptr() as u64];
    // SAFETY: each request gets the argument that linux/kvm.h names; the descriptors are new.
    let vcpu = unsafe {
        let vm = File::from_raw_fd(kvm::call(&control, kvm::CREATE_VM, 0)?);
        kvm::call(&vm, kvm::SET_USER_MEMORY_REGION, region.as_ptr() as u64)?;
        let vcpu = File::from_raw_fd(kvm::call(&vm, kvm::CREATE_VCPU, 0)?);
        let mut features = vec![0u32; 2 + 10 * 256];
        features[0] = 256;
        kvm::call(
            &control,
            kvm::GET_SUPPORTED_CPUID,
            features.as_mut_ptr() as u64,
        )?;
        kvm::call(&vcpu, kvm::SET_CPUID2, features.as_ptr() as u64)?;
        set_state(&vcpu)?;
        vcpu
    };
    // SAFETY: the request has no argument.
    let len = unsafe { kvm::call(&control, kvm::GET_VCPU_MMAP_SIZE, 0)? };
    let run = kvm::map(len as usize, Some(&vcpu))?;
    let mut sent = Vec::new();
    loop {
        // SAFETY: the request has no argument.
        unsafe { kvm::call(&vcpu, kvm::RUN, 0)? };
        // struct kvm_run: exit_reason at 8; for I/O, from 32: direction, size, port, count, and where the data lies.
        let field = |at: usize, len: usize| {
            run[at..at + len]
                .iter()
                .rev()
                .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        match (field(8, 4) as u32, field(34, 2) as u16) {
            (kvm::EXIT_IO, COM1) => sent.push(run[field(40, 8) as usize]),
            (kvm::EXIT_IO, TEST_EXIT) => return Ok(sent),
            (reason, port) => return Err(Error::other(format!("exit {reason}, port {port:#x}"))),
        }
    }
}

/// Flat 32-bit protected mode at the guest's entry.
///
/// # Safety
///
/// `vcpu` is a virtual CPU of KVM.
unsafe fn set_state(vcpu: &File) -> Result<()> {
    const PROTECTED: u64 = 1;
    let segment = |kind| kvm::Segment {
        base: 0,
        limit: !0,
        selector: 8,
        attributes: [kind, 1, 0, 1, 1, 0, 1, 0, 0, 0],
    };
    // SAFETY: all zeroes is a state; the two requests read and write one of this layout.
    unsafe {
        let mut sregs: kvm::Sregs = std::mem::zeroed();
        kvm::call(vcpu, kvm::GET_SREGS, &raw mut sregs as u64)?;
        sregs.segments[..6].fill(segment(3));
        sregs.segments[0] = segment(11);
        sregs.cr0 |= PROTECTED;
        kvm::call(vcpu, kvm::SET_SREGS, &raw const sregs as u64)?;
        // struct kvm_regs: 16 general registers, RIP, RFLAGS.
        let mut regs = [0u64; 18];
        regs[16] = u64::from(ENTRY);
        regs[17] = 2;
        kvm::call(vcpu, kvm::SET_REGS, regs.as_ptr() as u64)?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["kernel", file] => fs::write(file, kernel()),
        ["show", file] => show(&fs::read(file)?),
        ["kvm"] => show(&under_kvm()?),
        _ => Err(Error::other(
            "usage: exit_cost kernel FILE | show FILE | kvm",
        )),
    }
}
