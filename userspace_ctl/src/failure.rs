// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a command fails: exit status, message, and what to do.

use rustix::io::Errno;
use std::fmt;
use std::path::Path;
use v3_ctl::{BuildError, DefinitionError, Error};

/// The command line, the module or a call.
pub const TOOL: u8 = 125;
/// The image or the VM.
pub const REFUSED: u8 = 126;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// Exit status of the program.
    pub code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// The program's own failure.
    pub fn tool(message: impl Into<String>) -> Self {
        Self {
            code: TOOL,
            message: message.into(),
            hint: None,
        }
    }

    /// A refused image.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            code: REFUSED,
            message: message.into(),
            hint: None,
        }
    }

    /// With what to do about it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// A file that cannot be read or written.
    pub fn file(file: &Path, error: &std::io::Error) -> Self {
        Self::tool(format!("{}: {}", file.display(), words(error)))
    }

    /// What went wrong.
    pub fn message(&self) -> &str {
        &self.message
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
        self.hint
            .as_ref()
            .map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
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
        let hint = error.hint().map(Into::into);
        Self {
            code,
            message: error.to_string(),
            hint,
        }
    }
}

impl From<DefinitionError> for Failure {
    fn from(error: DefinitionError) -> Self {
        Self::refused(error.to_string())
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
