// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a Linux guest can tell about the machine it runs on. One static program, one word a question.

mod smp;

use std::arch::asm;
use std::arch::x86_64::{__cpuid, CpuidResult};
use std::fs::OpenOptions;
use std::io::Error;
use std::num::ParseIntError;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

type Answer = Result<String, String>;

extern "C" {
    fn ioctl(file: i32, request: u64, ...) -> i32;
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer = match words[..] {
        ["hypervisor"] => hypervisor(),
        ["avx"] => avx(),
        ["clock"] => clock(),
        ["sleep"] => sleep_a_second(),
        ["spin"] => spin(),
        ["watch"] => watch(),
        ["load"] => smp::load_until_input(),
        ["load", rounds] => number(rounds).and_then(smp::load),
        ["clocks"] => smp::clocks(60),
        ["clocks", seconds] => number(seconds).and_then(smp::clocks),
        ["serial", port] => serial(port),
        ["exit", value] => number(value).and_then(test_exit),
        _ => Err(
            "usage: probe hypervisor | avx | clock | sleep | spin | watch | load [ROUNDS] | clocks [SECONDS] | serial TTY | exit N"
                .into(),
        ),
    };
    match answer {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn number<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: ParseIntError| e.to_string())
}

/// Has the driver look whether there is a serial port now: one that came after Linux looked for the last time.
fn serial(port: &str) -> Answer {
    const O_NOCTTY: i32 = 0o400;
    const O_NONBLOCK: i32 = 0o4000;
    const TIOCSERCONFIG: u64 = 0x5453;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let opened = options.custom_flags(O_NOCTTY | O_NONBLOCK).open(port);
    let file = opened.map_err(|e| format!("{port}: {e}"))?;
    // SAFETY: This request has no argument.
    match unsafe { ioctl(file.as_raw_fd(), TIOCSERCONFIG) } {
        0 => Ok(port.into()),
        _ => Err(format!("{port}: {}", Error::last_os_error())),
    }
}

/// CPUID. Older compilers call it unsafe, newer ones do not.
#[allow(unused_unsafe)]
fn cpuid(leaf: u32) -> CpuidResult {
    // SAFETY: every processor with 64-bit mode has the instruction.
    unsafe { __cpuid(leaf) }
}

/// The twelve letters of leaf 0x4000_0000, if leaf 1 says that there is a hypervisor.
fn hypervisor() -> Answer {
    if cpuid(1).ecx & 1 << 31 == 0 {
        return Ok("none".into());
    }
    let leaf = cpuid(0x4000_0000);
    let letters: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx]
        .iter()
        .flat_map(|r| r.to_le_bytes())
        .collect();
    Ok(String::from_utf8_lossy(&letters)
        .trim_end_matches('\0')
        .into())
}

/// Two threads keep different values in all of YMM0 across many switches.
fn avx() -> Answer {
    const ROUNDS: u32 = 2_000;
    if !std::arch::is_x86_feature_detected!("avx") {
        return Err("the processor has no AVX".into());
    }
    let keepers = [1u64, 2].map(|seed| {
        thread::spawn(move || (0..ROUNDS).all(|round| keeps_ymm0(seed << 32 | u64::from(round))))
    });
    let kept = keepers.map(|keeper| keeper.join().unwrap_or(false));
    if kept == [true, true] {
        Ok(format!("{ROUNDS} switches"))
    } else {
        Err("YMM0 changed across a switch of threads".into())
    }
}

/// Fills YMM0, yields the processor inside the same piece of assembly, and reads it back.
fn keeps_ymm0(value: u64) -> bool {
    const SCHED_YIELD: u64 = 24;
    let wrote = [
        value,
        !value,
        value.rotate_left(17),
        value ^ 0x5555_5555_5555_5555,
    ];
    let mut read = [0u64; 4];
    // SAFETY: AVX was detected; the two arrays are 32 bytes each; the call keeps all but RAX, RCX and R11.
    unsafe {
        asm!("vmovdqu ymm0, [{wrote}]", "syscall", "vmovdqu [{read}], ymm0",
            wrote = in(reg) wrote.as_ptr(), read = in(reg) read.as_mut_ptr(),
            inlateout("rax") SCHED_YIELD => _, out("rcx") _, out("r11") _, out("ymm0") _);
    }
    wrote == read
}

/// The clock never steps back, and ticks.
fn clock() -> Answer {
    const READS: u32 = 20_000;
    let start = Instant::now();
    let mut last = start;
    for _ in 0..READS {
        let now = Instant::now();
        if now < last {
            return Err(format!("stepped back by {} ns", (last - now).as_nanos()));
        }
        last = now;
    }
    if last == start {
        return Err(format!("stood still over {READS} reads"));
    }
    let source =
        std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    Ok(format!(
        "{READS} reads, {}",
        source.unwrap_or_default().trim()
    ))
}

/// Keeps every processor busy for ever, and says how much of their time was stolen, in milliseconds.
fn spin() -> Answer {
    let cpus = thread::available_parallelism().map_err(|e| format!("{e}"))?;
    let say = |line: String| std::fs::write("/dev/console", line).map_err(|e| format!("{e}"));
    for _ in 0..cpus.get() {
        thread::spawn(|| loop {
            std::hint::black_box(());
        });
    }
    say(format!("guest: spinning {cpus}\n"))?;
    loop {
        thread::sleep(Duration::from_secs(1));
        let stat = std::fs::read_to_string("/proc/stat").map_err(|e| format!("{e}"))?;
        // cpu user nice system idle iowait irq softirq steal, in hundredths of a second.
        let steal = stat
            .split_whitespace()
            .nth(8)
            .and_then(|n| n.parse::<u64>().ok());
        say(format!(
            "guest: steal {}\n",
            steal.ok_or("no steal time")? * 10
        ))?;
    }
}

/// Six seconds in which the host pauses the machine, between two lines on the console: no clock steps back, and they agree.
fn watch() -> Answer {
    const WATCH: Duration = Duration::from_secs(6);
    const AGREE: Duration = Duration::from_millis(50);
    std::fs::write("/dev/console", "guest: watching\n").map_err(|e| format!("{e}"))?;
    let (start, day) = (Instant::now(), SystemTime::now());
    let (mut last, mut last_tsc, mut reads) = (start, 0, 0u64);
    while last - start < WATCH {
        // SAFETY: every processor with 64-bit mode has the instruction.
        let tsc = unsafe { std::arch::x86_64::_rdtsc() };
        let now = Instant::now();
        if now < last || tsc < last_tsc {
            return Err(format!(
                "stepped back after {:?}, {reads} reads",
                now - start
            ));
        }
        (last, last_tsc, reads) = (now, tsc, reads + 1);
    }
    let day = day.elapsed().map_err(|e| format!("{e}"))?;
    match start.elapsed().abs_diff(day) {
        apart if apart > AGREE => Err(format!("the clocks went {apart:?} apart")),
        _ => Ok(format!("{reads} reads")),
    }
}

/// A timer of one second takes a second by the running clock and by the clock of the day.
fn sleep_a_second() -> Answer {
    const LATEST: Duration = Duration::from_millis(1_500);
    let (start, day) = (Instant::now(), SystemTime::now());
    thread::sleep(Duration::from_secs(1));
    let slept = start.elapsed();
    let day = day
        .elapsed()
        .map_err(|e| format!("the clock of the day stepped back: {e}"))?;
    let apart = slept.abs_diff(day);
    if slept >= LATEST || apart > Duration::from_millis(100) {
        return Err(format!(
            "took {slept:?}, and {day:?} by the clock of the day"
        ));
    }
    Ok(format!("{} ms", slept.as_millis()))
}

/// Ends the machine through its test port: the exit status is the value times two, plus one.
fn test_exit(value: u8) -> Answer {
    const TEST_EXIT_PORT: u16 = 0xf4;
    const IOPERM: i64 = 173;
    let mut status = IOPERM;
    // SAFETY: ioperm(port, 1, 1) touches no memory.
    unsafe {
        asm!("syscall", inlateout("rax") status, in("rdi") u64::from(TEST_EXIT_PORT), in("rsi") 1u64, in("rdx") 1u64,
            out("rcx") _, out("r11") _);
    }
    if status != 0 {
        return Err(format!("no permission for the port: error {}", -status));
    }
    // SAFETY: the port was opened to this thread; the machine ends here, or nobody listens.
    unsafe { asm!("out dx, al", in("dx") TEST_EXIT_PORT, in("al") value) };
    Err("the machine went on".into())
}
