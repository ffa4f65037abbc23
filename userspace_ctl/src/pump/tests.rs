// SPDX-License-Identifier: MIT OR Apache-2.0
//! A socket stands in for the guest, another for the user.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

/// The pump's ends and the far ends of them.
struct Ends {
    stream: UnixStream,
    guest: UnixStream,
    terminal: UnixStream,
    user: UnixStream,
    signals: Signals,
}

fn ends() -> Ends {
    let (stream, guest) = UnixStream::pair().unwrap();
    let (terminal, user) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    Ends {
        stream,
        guest,
        terminal,
        user,
        signals: Signals::new().unwrap(),
    }
}

impl Ends {
    fn pump(&self) -> Pump<'_> {
        let stream = Some(self.stream.as_fd());
        let mut pump = Pump::new(stream, self.terminal.as_fd(), &self.signals);
        pump.input = Some(self.terminal.as_fd());
        pump.escape = Some(Escape::new(0x1d));
        pump
    }
}

#[test]
fn bytes_go_both_ways_until_the_guest_ends() {
    let ends = ends();
    let (mut guest, mut user) = (
        ends.guest.try_clone().unwrap(),
        ends.user.try_clone().unwrap(),
    );
    let far = thread::spawn(move || {
        user.write_all(b"uname\r").unwrap();
        let mut got = [0; 6];
        guest.read_exact(&mut got).unwrap();
        guest.write_all(b"Linux\r\n").unwrap();
        guest.shutdown(std::net::Shutdown::Both).unwrap();
        (got, user)
    });
    assert_eq!(ends.pump().run(), Ok(End::Stopped));
    let (got, mut user) = far.join().unwrap();
    assert_eq!(&got, b"uname\r");
    let mut seen = [0; 7];
    user.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"Linux\r\n");
}

#[test]
fn all_output_is_shown_to_a_slow_reader() {
    const LEN: usize = 1 << 20;
    let ends = ends();
    let mut guest = ends.guest.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let bytes: Vec<u8> = (0..LEN).map(|i| (i / 7) as u8).collect();
        guest.write_all(&bytes).unwrap();
        guest.shutdown(std::net::Shutdown::Both).unwrap();
        bytes
    });
    let mut user = ends.user.try_clone().unwrap();
    let reader = thread::spawn(move || {
        let mut seen = vec![0; LEN];
        user.read_exact(&mut seen).unwrap();
        seen
    });
    assert_eq!(ends.pump().run(), Ok(End::Stopped));
    assert!(sender.join().unwrap() == reader.join().unwrap());
}

#[test]
fn the_escape_leaves_and_what_came_before_it_is_not_lost() {
    let mut ends = ends();
    ends.user.write_all(b"\x1dq").unwrap();
    assert_eq!(ends.pump().run(), Ok(End::Quit));
}

#[test]
fn without_an_escape_every_byte_is_the_guests() {
    let mut ends = ends();
    ends.user.write_all(b"\x1dq").unwrap();
    let mut guest = ends.guest.try_clone().unwrap();
    let far = thread::spawn(move || {
        let mut got = [0; 2];
        guest.read_exact(&mut got).unwrap();
        guest.shutdown(std::net::Shutdown::Both).unwrap();
        got
    });
    let mut pump = ends.pump();
    pump.escape = None;
    assert_eq!(pump.run(), Ok(End::Stopped));
    assert_eq!(&far.join().unwrap(), b"\x1dq");
}

#[test]
fn the_deadline_ends_it() {
    let ends = ends();
    let mut pump = ends.pump();
    pump.deadline = Some(Instant::now() + Duration::from_millis(20));
    assert_eq!(pump.run(), Ok(End::Timeout));
}

#[test]
fn silence_ends_it() {
    let ends = ends();
    let mut pump = ends.pump();
    pump.silence = Some(Duration::from_millis(20));
    assert_eq!(pump.run(), Ok(End::Timeout));
}

#[test]
fn output_is_no_silence_and_output_that_nobody_takes_neither() {
    const HOUR: Duration = Duration::from_secs(3600);
    let ends = ends();
    let mut guest = ends.guest.try_clone().unwrap();
    let mut pump = ends.pump();
    (pump.silence, pump.deadline) = (Some(HOUR), Some(Instant::now() + 2 * HOUR));
    let before = pump.heard;
    guest.write_all(b"here").unwrap();
    assert_eq!(pump.read_stream(), Ok(true));
    assert!(pump.heard > before);
    // It waits for its reader.
    assert_eq!(pump.gives_up_at(), pump.deadline);
    assert_eq!(pump.write_output(), Ok(true));
    assert_eq!(pump.gives_up_at(), Some(pump.heard + HOUR));
}

#[test]
fn the_end_of_input_changes_nothing() {
    let ends = ends();
    ends.user.shutdown(std::net::Shutdown::Write).unwrap();
    let mut guest = ends.guest.try_clone().unwrap();
    guest.write_all(b"still here").unwrap();
    guest.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(ends.pump().run(), Ok(End::Stopped));
    let mut seen = [0; 10];
    let mut user = ends.user.try_clone().unwrap();
    user.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"still here");
}

#[test]
fn a_stop_is_noticed_and_the_rest_of_the_output_shown() {
    let ends = ends();
    let (waiter, stopping) = UnixStream::pair().unwrap();
    let mut guest = ends.guest.try_clone().unwrap();
    guest.write_all(&[b'x'; 10_000]).unwrap();
    drop(stopping);
    let mut pump = ends.pump();
    pump.stopped = Some(waiter.as_fd());
    // The guest's end stays open: a stream need not end for the pump to.
    assert_eq!(pump.run(), Ok(End::Stopped));
    drop(pump);
    let mut seen = vec![0; 10_000];
    let mut user = ends.user.try_clone().unwrap();
    user.read_exact(&mut seen).unwrap();
    assert!(seen.iter().all(|byte| *byte == b'x'));
}

#[test]
fn without_a_stream_the_stop_alone_counts() {
    let ends = ends();
    let (waiter, stopping) = UnixStream::pair().unwrap();
    drop(stopping);
    let mut pump = Pump::new(None, ends.terminal.as_fd(), &ends.signals);
    pump.stopped = Some(waiter.as_fd());
    assert_eq!(pump.run(), Ok(End::Stopped));
}

#[test]
fn a_raw_terminal_gets_whole_line_ends_and_others_the_bytes_as_they_are() {
    for (newlines, shown) in [
        (Some(Newlines::default()), &b"a\r\nb\r\n"[..]),
        (None, &b"a\nb\r\n"[..]),
    ] {
        let mut ends = ends();
        ends.guest.write_all(b"a\nb\r\n").unwrap();
        ends.guest.shutdown(std::net::Shutdown::Both).unwrap();
        let mut pump = ends.pump();
        pump.newlines = newlines;
        assert_eq!(pump.run(), Ok(End::Stopped));
        drop(pump);
        drop(ends.terminal);
        let mut seen = Vec::new();
        ends.user.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, shown);
    }
}

#[test]
fn closed_output_ends_it() {
    let ends = ends();
    let (read, write) = rustix::pipe::pipe().unwrap();
    drop(read);
    let mut guest = ends.guest.try_clone().unwrap();
    guest.write_all(b"x").unwrap();
    let mut pump = ends.pump();
    pump.output = write.as_fd();
    pump.input = None;
    assert_eq!(pump.run(), Ok(End::OutputClosed));
}
