// SPDX-License-Identifier: MIT OR Apache-2.0
#![no_std]
#![no_main]

mod console;
mod machine;
#[path = "../../../tmk/src/mem.rs"]
mod mem;
mod multiboot;

core::arch::global_asm!(include_str!("start.s"));

#[no_mangle]
extern "C" fn kernel_main(magic: u32, info: u32) {
    console::init();
    let Some(line) = multiboot::command_line(magic, info) else {
        println!("no Multiboot loader started me");
        return;
    };
    println!("Hello from Rust!\nmy command line: {line}");
    if let Some(status) = option(line, "exit=") {
        machine::test_exit(status);
    }
    machine::power_off();
}

/// The number behind `name` in `line`.
fn option(line: &str, name: &str) -> Option<u8> {
    line.split(' ')
        .find_map(|word| word.strip_prefix(name)?.parse().ok())
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    machine::test_exit(99);
    loop {}
}
