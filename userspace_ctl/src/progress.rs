// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shows on a terminal what is going on, once it takes longer than a second.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(1);
/// While nothing came yet; and, while nobody knows where the end is, of what reads, and of what copies.
const READING: &str = "{spinner} {msg}";
const COPYING: &str = "{spinner} {msg} {bytes}";
const TO_AN_END: &str = "{msg} {bar:30} {bytes}/{total_bytes}";

/// Does `work` that reads files, and shows how far it is. The work says how many bytes were read, of how many.
pub fn reading<T>(work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T) -> T {
    advancing("reading files", READING, work)
}

/// Does `work` that copies, called `what`, and shows how far it is, as [`reading`] does.
pub fn copying<T>(what: &str, work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T) -> T {
    advancing(what, COPYING, work)
}

fn advancing<T>(
    what: &str,
    endless: &'static str,
    work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T,
) -> T {
    let bar = hidden(template(endless, 0, None)).with_message(what.to_string());
    shown_during(&bar, PATIENCE, show, || {
        work(&mut |done, total| advance(&bar, endless, done, total))
    })
}

/// Shows how far the work is. Pipes do not say how much they have, and give more than what is to be read: then there is no end to show.
fn advance(bar: &ProgressBar, endless: &'static str, done: u64, total: u64) {
    let end = (total > 0 && done <= total).then_some(total);
    let before = template(endless, bar.position(), bar.length());
    match end {
        Some(total) => bar.set_length(total),
        None => bar.unset_length(),
    }
    bar.set_position(done);
    let now = template(endless, done, end);
    if now != before {
        set_style(bar, now);
    }
}

/// What is shown. Of 0 bytes there is nothing to say.
fn template(endless: &'static str, done: u64, end: Option<u64>) -> &'static str {
    match end {
        _ if done == 0 => READING,
        Some(_) => TO_AN_END,
        None => endless,
    }
}

/// Does `work`, of which nobody knows how long it takes, and shows `what` meanwhile.
pub fn during<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let spinner = hidden("{spinner} {msg}").with_message(what.to_string());
    shown_during(&spinner, PATIENCE, show, work)
}

/// A bar that nobody sees yet.
fn hidden(template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    set_style(&bar, template);
    bar
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

/// Shows a bar, if standard error is a terminal that can draw a line over another.
fn show(bar: &ProgressBar) {
    if std::env::var_os("TERM").is_some_and(|term| term != "dumb") {
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(100));
    }
}

/// Does `work`, and shows the bar when it takes longer than `patience`.
fn shown_during<T>(
    bar: &ProgressBar,
    patience: Duration,
    show: impl FnOnce(&ProgressBar) + Send,
    work: impl FnOnce() -> T,
) -> T {
    let (working, ended) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                show(bar);
                let _ = ended.recv(); // Nothing is sent: it returns when the work has ended.
            }
            bar.finish_and_clear();
        });
        let result = work();
        drop(working);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_long_is_shown_while_it_lasts() {
        let (shown, wait) = channel();
        let result = shown_during(
            &hidden("{msg}"),
            Duration::ZERO,
            move |_| shown.send(()).unwrap(),
            move || {
                wait.recv().unwrap();
                7
            },
        );
        assert_eq!(result, 7);
    }

    #[test]
    fn short_work_is_not_shown_and_not_waited_for() {
        let hour = Duration::from_secs(3600);
        let never = |_: &ProgressBar| panic!("shown");
        assert_eq!(shown_during(&hidden("{msg}"), hour, never, || 7), 7);
    }

    #[test]
    fn what_is_read_has_an_end_only_if_it_is_known() {
        let bar = hidden(READING);
        for (done, total, end) in [
            (3, 0, None),
            (3, 10, Some(10)),
            (12, 10, None),
            (0, 0, None),
        ] {
            advance(&bar, READING, done, total);
            assert_eq!((bar.position(), bar.length()), (done, end));
        }
    }

    #[test]
    fn nothing_is_said_of_no_bytes() {
        for (endless, done, end, shown) in [
            (COPYING, 0, None, READING),
            (COPYING, 1, None, COPYING),
            (READING, 0, Some(10), READING),
            (READING, 3, Some(10), TO_AN_END),
            (READING, 12, None, READING),
        ] {
            assert_eq!(template(endless, done, end), shown);
        }
    }

    #[test]
    fn what_was_read_is_told() {
        let told = reading(|step| {
            step(3, 10);
            step(10, 10);
            "all"
        });
        assert_eq!(told, "all");
    }
}
