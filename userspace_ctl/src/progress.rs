// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shows on a terminal what is going on, once it takes longer than a second.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(1);

/// What is drawn: while the total is not known, and when it is.
#[derive(Clone, Copy)]
struct Templates {
    no_total: &'static str,
    total: &'static str,
}

const READING: Templates = Templates {
    no_total: "{spinner} {msg}",
    total: "{msg} {bar:30} {bytes}/{total_bytes}",
};
const COPYING: Templates = Templates {
    no_total: "{spinner} {msg} {bytes}",
    ..READING
};
const ESTIMATED: Templates = Templates {
    total: "{msg} {bar:30} {bytes} of about {total_bytes}",
    ..COPYING
};

/// Does `work` that reads files, and shows how far it is. The work says how many bytes were read, of how many; 0: nobody knows.
pub fn reading<T>(work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T) -> T {
    advancing("reading files", READING, work)
}

/// Does `work` that copies, called `what`, and shows how far it is, as [`reading`] does.
pub fn copying<T>(what: &str, work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T) -> T {
    advancing(what, COPYING, work)
}

/// Does `work` that copies about so many bytes, as [`copying`] does. The work says how many were copied.
pub fn copying_about<T>(
    what: &str,
    estimate: u64,
    work: impl FnOnce(&mut dyn FnMut(u64)) -> T,
) -> T {
    advancing(what, ESTIMATED, |step| {
        work(&mut |done| step(done, total_shown(done, estimate)))
    })
}

/// The total to show of what was estimated; 0: nobody knows. It is always more than what is done, so that the bar is not full before the end.
fn total_shown(done: u64, estimate: u64) -> u64 {
    let at_least_missing = estimate / 64 + 1;
    match estimate {
        0 => 0,
        estimate => estimate.max(done.saturating_add(at_least_missing)),
    }
}

fn advancing<T>(
    what: &str,
    templates: Templates,
    work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T,
) -> T {
    let bar = hidden(templates.of(0, None)).with_message(what.to_string());
    shown_during(&bar, PATIENCE, show, || {
        work(&mut |done, total| advance(&bar, templates, done, total))
    })
}

/// Shows how far the work is. Pipes do not say how much they have, and give more than what is to be read: then there is no total to show.
fn advance(bar: &ProgressBar, templates: Templates, done: u64, total: u64) {
    let total = (total > 0 && done <= total).then_some(total);
    let before = templates.of(bar.position(), bar.length());
    match total {
        Some(total) => bar.set_length(total),
        None => bar.unset_length(),
    }
    bar.set_position(done);
    let now = templates.of(done, total);
    if now != before {
        set_style(bar, now);
    }
}

impl Templates {
    /// The one of the two. Of 0 bytes there is nothing to say.
    fn of(&self, done: u64, total: Option<u64>) -> &'static str {
        match total {
            _ if done == 0 => READING.no_total,
            Some(_) => self.total,
            None => self.no_total,
        }
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
    fn an_estimated_bar_advances_and_is_never_full() {
        for estimate in [1, 1000, 1 << 30] {
            let mut before = 0.0;
            for done in (0..64).map(|n| n * estimate / 16) {
                let total = total_shown(done, estimate);
                let fraction = done as f64 / total as f64;
                assert!(done < total && before <= fraction, "{done} of {estimate}");
                before = fraction;
            }
        }
        assert_eq!(total_shown(300, 1000), 1000);
        assert_eq!(total_shown(300, 0), 0, "nobody knows");
        assert_eq!(total_shown(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn what_is_read_has_an_end_only_if_it_is_known() {
        let bar = hidden(READING.no_total);
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
        for (templates, done, total, shown) in [
            (COPYING, 0, None, READING.no_total),
            (COPYING, 1, None, COPYING.no_total),
            (READING, 0, Some(10), READING.no_total),
            (READING, 3, Some(10), READING.total),
            (ESTIMATED, 3, Some(10), ESTIMATED.total),
            (READING, 12, None, READING.no_total),
        ] {
            assert_eq!(templates.of(done, total), shown);
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
