// SPDX-License-Identifier: GPL-2.0
//! The ioctls by which a new VM goes on from a saved machine.

use crate::error;
use crate::memory;
use crate::user::{self, must_be_zero};
use crate::vm_node::VmNode;
use core::fmt;
use kernel::{
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};
use palacios_core::addr::PAGE_SIZE;
use palacios_core::ram::LOW_RAM_END;
use palacios_core::vm::{LoadError, TscRate};
use v3_abi as abi;

// Whoever reads a saved machine knows by it where a guest sees its RAM.
const _: () = assert!(abi::V3_LOW_RAM_PAGES as u64 * PAGE_SIZE == LOW_RAM_END);

/// `V3_VM_LOAD_RAM`: what pages of RAM hold.
pub(crate) fn load_ram(node: &VmNode, arg: usize) -> Result {
    let wanted: abi::v3_load_ram = user::read(arg)?;
    if wanted.len % PAGE_SIZE != 0 {
        return Err(EINVAL);
    }
    if wanted.len > u64::from(abi::V3_MAX_LOAD_RAM) {
        return Err(E2BIG);
    }
    let from = UserPtr::from_addr(user::pointer(wanted.buffer)?);
    let mut reader = UserSlice::new(from, wanted.len as usize).reader();
    let mut page = KVec::from_elem(0u8, PAGE_SIZE as usize, GFP_KERNEL_ACCOUNT)?;
    let held = node.held()?;
    for n in 0..wanted.len / PAGE_SIZE {
        let number = wanted.page.checked_add(n).ok_or(ERANGE)?;
        reader.read_slice(&mut page)?;
        let loaded = held.payer.during(|| held.vm.load_ram(number, &page));
        loaded.map_err(|why| error::of_load(&why))?;
    }
    Ok(())
}

/// Why a VM does not go on from a state.
enum LoadRefusal {
    TooLong,
    Core(LoadError),
    Host(Error),
}

impl From<Error> for LoadRefusal {
    fn from(error: Error) -> Self {
        Self::Host(error)
    }
}

impl fmt::Display for LoadRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(
                f,
                "the state is longer than {} bytes",
                abi::V3_MAX_STATE_LEN
            ),
            Self::Core(why) => why.fmt(f),
            Self::Host(_) => Ok(()),
        }
    }
}

/// `V3_VM_LOAD`: the state from which the VM goes on.
pub(crate) fn load(node: &VmNode, arg: usize) -> Result {
    let wanted: abi::v3_load = user::read(arg)?;
    must_be_zero(wanted.flags & !abi::V3_LOAD_NEW_TSC_RATE)?;
    load_state(node, &wanted).or_else(|refusal| {
        user::explain(wanted.message, wanted.message_len, &refusal)?;
        Err(match refusal {
            LoadRefusal::TooLong => E2BIG,
            LoadRefusal::Core(why) => error::of_load(&why),
            LoadRefusal::Host(error) => error,
        })
    })
}

fn load_state(node: &VmNode, wanted: &abi::v3_load) -> Result<(), LoadRefusal> {
    if wanted.state_len > u64::from(abi::V3_MAX_STATE_LEN) {
        return Err(LoadRefusal::TooLong);
    }
    let state = memory::copy_from_caller(wanted.state, wanted.state_len as usize)?;
    let rate = match wanted.flags & abi::V3_LOAD_NEW_TSC_RATE {
        0 => TscRate::Same,
        _ => TscRate::New,
    };
    let held = node.held()?;
    let loaded = held.payer.during(|| held.vm.load(&state, rate));
    loaded.map_err(LoadRefusal::Core)
}
