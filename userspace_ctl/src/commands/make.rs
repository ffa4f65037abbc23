// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes images and VMs.

use super::print;
use crate::cli::{Build, Create};
use crate::failure::Failure;
use crate::Outcome;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use palacios_core::image::Image;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use v3_ctl::{node_of, Control, Definition, Guest};

pub fn build(args: &Build) -> Outcome {
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| args.toml.with_extension("img"));
    let image = build_image(&read_definition(&args.toml)?)?;
    write_whole(&output, &image)?;
    Ok(0)
}

pub fn create(args: &Create) -> Outcome {
    let control = Control::open()?;
    let image = load_image(&args.image, args.build)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name(&image, &args.image),
    };
    let vm = control.create(&image, &name)?;
    print(&format!(
        "VM ({name}) created at {}\n",
        node_of(vm.number())
    ))?;
    Ok(0)
}

/// The guest that a TOML file describes.
fn read_definition(file: &Path) -> Result<Guest, Failure> {
    let raw = fs::read(file).map_err(|e| Failure::file(file, &e))?;
    let wrong = |what: &str| {
        Err(Failure::refused(format!("{}: {what}", file.display()))
            .hint("describe the guest in TOML, as `v3 build --help` shows"))
    };
    let Ok(text) = String::from_utf8(raw) else {
        return wrong("this is no text");
    };
    if text.trim_start().starts_with('<') {
        return wrong("this is XML, which is not read");
    }
    Ok(Definition::new(&text, file).guest()?)
}

/// The bytes of a guest.img: read, or built of a guest.toml.
pub fn load_image(file: &Path, is_definition: bool) -> Result<Vec<u8>, Failure> {
    if is_definition {
        return build_image(&read_definition(file)?);
    }
    let image = fs::read(file).map_err(|e| Failure::file(file, &e))?;
    let refused = |e| Failure::refused(format!("{}: {e}", file.display()));
    Image::parse(&image)
        .and_then(|image| image.machine().map(|_| ()))
        .map_err(refused)?;
    Ok(image)
}

/// Builds an image; after a second a bar shows how far it is.
pub fn build_image(guest: &Guest) -> Result<Vec<u8>, Failure> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    if let Ok(style) = ProgressStyle::with_template("reading files {bar:30} {bytes}/{total_bytes}")
    {
        bar.set_style(style);
    }
    let start = Instant::now();
    let image = guest.build(&mut |done, total| {
        if bar.is_hidden() && start.elapsed() > Duration::from_secs(1) {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(image?)
}

/// The name of a VM whose maker gave none: the image's, else the file's.
pub fn default_name(image: &[u8], file: &Path) -> String {
    let parsed = Image::parse_again(image);
    let machine = parsed.as_ref().ok().and_then(|image| image.machine().ok());
    let named = machine
        .and_then(|machine| machine.name)
        .filter(|name| is_name(name));
    named.map_or_else(|| name_of_file(file), Into::into)
}

fn is_name(name: &str) -> bool {
    v3_abi::is_vm_name(name.as_bytes())
}

/// A name made of a file's, without its ending and without what a name cannot have.
pub fn name_of_file(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let allowed = |c: char| if is_name(&format!("x{c}")) { c } else { '_' };
    let name: String = stem.chars().map(allowed).take(40).collect();
    if is_name(&name) {
        name
    } else {
        format!("vm{name}")
    }
}

/// Writes a file so that it is there as a whole or not at all.
fn write_whole(file: &Path, data: &[u8]) -> Result<(), Failure> {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = fs::File::create(&part)
        .and_then(|mut to| to.write_all(data).and_then(|()| to.sync_all()))
        .and_then(|()| fs::rename(&part, file));
    written.map_err(|e| {
        // What is left of the part is of no use; the error that matters is the first.
        let _ = fs::remove_file(&part);
        Failure::file(file, &e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_becomes_a_vms() {
        let name = |file: &str| name_of_file(Path::new(file));
        assert_eq!(name("/boot/guest.img"), "guest");
        assert_eq!(name("vmlinuz-6.1.0-amd64"), "vmlinuz-6.1");
        assert_eq!(name("my guest.img"), "my_guest");
        assert_eq!(name("42.img"), "vm42");
        assert_eq!(name(".."), "vm");
        assert!(is_name(&name(&"x".repeat(200))));
    }
}
