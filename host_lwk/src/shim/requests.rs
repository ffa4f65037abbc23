// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VMs that the command line asks for: `vm=guest.img cores=1-2`, once for each; `vm=saved.v3 new-tsc-rate`.

use palacios_core::host::CpuId;

/// The most cores that one VM can be given.
pub const MAX_CORES: usize = 64;

/// A VM that is asked for.
#[derive(Clone, Copy)]
pub struct VmRequest<'a> {
    /// The module that is its image, or a saved VM.
    pub image: &'a str,
    /// Such as `1-2,5`: the first core is for the first vCPU. Without it, all cores but 0.
    pub cores: Option<&'a str>,
    /// A saved guest bears a time stamp counter that runs at another rate.
    pub new_tsc_rate: bool,
}

/// The VMs of a command line.
pub fn vm_requests(line: &str) -> impl Iterator<Item = VmRequest<'_>> {
    let mut words = line.split_whitespace().peekable();
    core::iter::from_fn(move || loop {
        if let Some(image) = words.next()?.strip_prefix("vm=") {
            let mut request = VmRequest {
                image,
                cores: None,
                new_tsc_rate: false,
            };
            while let Some(word) = words.next_if(|word| !word.starts_with("vm=")) {
                match word.strip_prefix("cores=") {
                    None if word == "new-tsc-rate" => request.new_tsc_rate = true,
                    None => {}
                    cores => request.cores = cores,
                }
            }
            return Some(request);
        }
    })
}

impl VmRequest<'_> {
    /// Its cores, on a machine that has `count`; or what is wrong with them.
    pub fn cores(&self, count: u32) -> Result<([CpuId; MAX_CORES], usize), &'static str> {
        let mut cores = [CpuId(0); MAX_CORES];
        let mut len = 0;
        let mut add = |core: u32| {
            let slot = cores.get_mut(len).ok_or("too many")?;
            *slot = CpuId(core);
            len += 1;
            Ok(())
        };
        match self.cores {
            None if count == 1 => add(0)?,
            None => (1..count).take(MAX_CORES).try_for_each(add)?,
            Some(list) => {
                for range in list.split(',') {
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    let number = |text: &str| text.parse().map_err(|_| "not a list of numbers");
                    let (first, last): (u32, u32) = (number(first)?, number(last)?);
                    if last >= count {
                        return Err("more than there are");
                    }
                    (first..=last).try_for_each(&mut add)?;
                }
            }
        }
        match len {
            0 => Err("none"),
            _ => Ok((cores, len)),
        }
    }
}
