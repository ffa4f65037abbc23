// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a command fails: exit status, message, and what to do.

use crate::terminal::say;
use rustix::io::Errno;
use std::fmt;
use std::path::Path;
use v3_ctl::{BuildError, DefinitionError, Error};

/// The command line, a file, the module or a call.
pub const TOOL: u8 = 125;
/// The guest.toml, the image, the kernel or the VM made of them.
pub const REFUSED: u8 = 126;

/// What a command ends with: an exit status, or why it failed.
pub type Outcome = Result<u8, Failure>;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// Exit status of the program.
    pub code: u8,
    message: String,
    hints: Vec<String>,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hints: Vec::new(),
        }
    }

    /// The program's own failure.
    pub fn tool(message: impl Into<String>) -> Self {
        Self::new(TOOL, message)
    }

    /// A refused guest.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(REFUSED, message)
    }

    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// A file that cannot be read or written.
    pub fn file(file: &Path, error: &std::io::Error) -> Self {
        Self::tool(format!("{}: {}", file.display(), words(error)))
    }

    /// What went wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Tells people.
    pub fn tell(&self) {
        say(&format!("v3: {self}"));
    }
}

/// An error's text without its number.
fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or(&text)
        .to_lowercase()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hints
            .iter()
            .try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

impl From<clap::Error> for Failure {
    /// A wrong command line. clap's message has paragraphs: the error, tips, the usage, and how to get help.
    fn from(error: clap::Error) -> Self {
        let text = error.render().to_string();
        let paragraphs = text.trim_end().split("\n\n");
        let lines = paragraphs.map(|paragraph| {
            let lines = paragraph.lines().map(str::trim);
            lines.collect::<Vec<_>>().join(" ")
        });
        let mut failure = Self::tool("the command line is wrong");
        for line in lines {
            if let Some(message) = line.strip_prefix("error: ") {
                failure.message = message.into();
            } else if let Some(tip) = line.strip_prefix("tip: ") {
                failure.hints.push(tip.into());
            } else if let Some(usage) = line.strip_prefix("Usage: ") {
                failure.hints.push(format!("usage: {usage}"));
            } else if line.contains("--help") {
                failure.hints.push("--help tells more".into());
            }
        }
        failure
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let refused = match &error {
            // Bad arguments are our own mistake, and a lost privilege is no fault of the image.
            Error::Refused { errno, .. } => !matches!(
                *errno,
                Errno::INVAL | Errno::FAULT | Errno::PERM | Errno::NOTTY
            ),
            _ => false,
        };
        let code = if refused { REFUSED } else { TOOL };
        Self {
            code,
            message: error.to_string(),
            hints: error.hint().into_iter().collect(),
        }
    }
}

impl From<DefinitionError> for Failure {
    fn from(error: DefinitionError) -> Self {
        let code = if error.is_about_a_file { TOOL } else { REFUSED };
        Self::new(code, error.to_string())
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::File { .. } => Self::tool(error.to_string()),
            _ => Self::refused(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::tool(words(&error))
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        std::io::Error::from(errno).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn of(line: &str) -> String {
        let error = Cli::try_parse_from(line.split(' ')).err().unwrap();
        Failure::from(error).to_string()
    }

    #[test]
    fn a_wrong_command_line_is_told_like_any_other_error() {
        assert_eq!(
            of("v3 launch"),
            "the following required arguments were not provided: <VM>\nhint: usage: v3 launch <VM>\nhint: --help tells more"
        );
        assert_eq!(
            of("v3 free --forse x").lines().nth(1),
            Some("hint: a similar argument exists: '--force'")
        );
        assert_eq!(
            of("v3 run x --expect 2"),
            "invalid value '2' for '--expect <N>': a test exit is an odd number, V * 2 + 1 for a write of V; \
             0 stands for a power-off\nhint: --help tells more"
        );
    }
}
