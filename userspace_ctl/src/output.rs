// SPDX-License-Identifier: MIT OR Apache-2.0
//! Standard output.

use crate::failure::Failure;
use std::io::{self, Write};

/// Prints to standard output. A reader that left early, such as `head`, is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::tool(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a line of JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string(value).map_err(|e| Failure::tool(e.to_string()))?;
    print(&format!("{json}\n"))
}
