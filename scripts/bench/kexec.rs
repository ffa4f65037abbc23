// SPDX-License-Identifier: MIT OR Apache-2.0
//! The next kernel: `kexec load KERNEL INITRD CMDLINE` takes it in, `kexec panic …` does for the day when this one panics,
//! `kexec go` starts the loaded one.

use std::ffi::{c_int, c_long, CString};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

const SYS_REBOOT: c_long = 169;
const SYS_KEXEC_FILE_LOAD: c_long = 320;
const KEXEC_FILE_ON_CRASH: u64 = 2;
const REBOOT_MAGIC1: u64 = 0xfee1_dead;
const REBOOT_MAGIC2: u64 = 672_274_793;
const REBOOT_KEXEC: u64 = 0x4558_4543;

extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

fn answer(result: c_long) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

fn load(kernel: &str, initrd: &str, cmdline: &str, flags: u64) -> Result<()> {
    let (kernel, initrd) = (File::open(kernel)?, File::open(initrd)?);
    let cmdline = CString::new(cmdline)?;
    let (kernel, initrd): (c_int, c_int) = (kernel.as_raw_fd(), initrd.as_raw_fd());
    let len = cmdline.as_bytes_with_nul().len();
    // SAFETY: two open files, and a string of that length.
    answer(unsafe {
        syscall(
            SYS_KEXEC_FILE_LOAD,
            kernel,
            initrd,
            len,
            cmdline.as_ptr(),
            flags,
        )
    })
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["load", kernel, initrd, cmdline] => load(kernel, initrd, cmdline, 0),
        ["panic", kernel, initrd, cmdline] => load(kernel, initrd, cmdline, KEXEC_FILE_ON_CRASH),
        // SAFETY: returns only if nothing is loaded.
        ["go"] => {
            answer(unsafe { syscall(SYS_REBOOT, REBOOT_MAGIC1, REBOOT_MAGIC2, REBOOT_KEXEC, 0u64) })
        }
        _ => Err(Error::other(
            "kexec load|panic KERNEL INITRD CMDLINE, or kexec go",
        )),
    }
}
