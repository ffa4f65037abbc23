// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ports, model-specific registers, memory-mapped registers, and the console.

use core::arch::asm;
use core::fmt::{self, Write};

/// The port whose write ends the VM, with status `value * 2 + 1`.
const TEST_EXIT: u16 = 0xf4;
const COM1: u16 = 0x3f8;

macro_rules! port {
    ($read:ident, $write:ident, $type:ty, $reg:tt) => {
        pub fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: the machine is ours alone.
            unsafe { asm!(concat!("in ", $reg, ", dx"), in("dx") port, out($reg) value, options(nomem, nostack)) };
            value
        }
        pub fn $write(port: u16, value: $type) {
            // SAFETY: the machine is ours alone.
            unsafe { asm!(concat!("out dx, ", $reg), in("dx") port, in($reg) value, options(nomem, nostack)) };
        }
    };
}
port!(inb, outb, u8, "al");
port!(inw, outw, u16, "ax");
port!(inl, outl, u32, "eax");

pub fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: a fault is caught by the test.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

pub fn wrmsr(index: u32, value: u64) {
    // SAFETY: the machine is ours alone.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    };
}

pub fn rdtsc() -> u64 {
    // SAFETY: no effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe)]
    // SAFETY: every 64-bit CPU has it.
    let r = unsafe { core::arch::x86_64::__cpuid_count(leaf, subleaf) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Whether the processor is Intel's. Each vendor has its own instruction for hypercalls, and knows the other's not.
pub fn is_intel() -> bool {
    let [_, vendor, ..] = cpuid(0, 0);
    vendor.to_le_bytes() == *b"Genu"
}

pub fn mmio_read(at: u64) -> u32 {
    let value: u32;
    // SAFETY: a device register.
    unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) at, options(nostack)) };
    value
}

pub fn mmio_write(at: u64, value: u32) {
    // SAFETY: a device register.
    unsafe { asm!("mov [{}], {:e}", in(reg) at, in(reg) value, options(nostack)) };
}

/// Ends the VM. `0` is success: the tool that ran us exits with `value * 2 + 1`.
pub fn exit(value: u32) -> ! {
    outl(TEST_EXIT, value);
    loop {
        // SAFETY: nothing is left to do.
        unsafe { asm!("cli", "hlt") };
    }
}

pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while inb(COM1 + 5) & 0x20 == 0 {}
            outb(COM1, byte);
        }
        Ok(())
    }
}

#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::io::Console, $($arg)*);
    }};
}
