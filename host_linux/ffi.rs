// SPDX-License-Identifier: GPL-2.0
//! The functions of helpers.c.

use kernel::{
    bindings,
    ffi::{c_char, c_void},
    types::Opaque,
};

/// A control group of the memory controller, known by its address only.
#[repr(C)]
pub(crate) struct MemCgroup {
    _opaque: [u8; 0],
}

/// A file that a VM holds, of helpers.c.
#[repr(C)]
pub(crate) struct FarEnd {
    _opaque: [u8; 0],
}

/// A disk in a file, of disk.c.
#[repr(C)]
pub(crate) struct Disk {
    _opaque: [u8; 0],
}

/// What it is like.
#[repr(C)]
#[derive(Default)]
pub(crate) struct DiskInfo {
    pub(crate) bytes: u64,
    pub(crate) block_bytes: u32,
    pub(crate) physical_block_bytes: u32,
    pub(crate) can_discard: bool,
    pub(crate) can_write_zeroes: bool,
}

/// A piece of memory for it.
#[repr(C)]
pub(crate) struct DiskPiece {
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

impl DiskPiece {
    /// The most that one has.
    pub(crate) const MOST_BYTES: u64 = 1 << 30;
}

/// The module itself. Linux 7.2 and those after it keep it in different places of the kernel crate.
pub(crate) const THIS_MODULE: *mut bindings::module = (&raw const __this_module).cast_mut().cast();

// The bindings of some kernel structs have no field, which other compilers would see as not FFI-safe.
#[allow(improper_ctypes)]
extern "C" {
    static __this_module: Opaque<bindings::module>;

    pub(crate) fn v3vee_random(to: *mut c_void, bytes: usize) -> bool;
    pub(crate) fn v3vee_pages_alloc(order: u32, below_4g: bool, node: i32) -> *mut c_void;
    pub(crate) fn v3vee_can_spare(count: usize) -> bool;
    pub(crate) fn v3vee_ram_alloc(order: u32, zero: bool) -> *mut c_void;
    pub(crate) fn v3vee_pages_split(at: *mut c_void, order: u32);

    pub(crate) fn v3vee_payer_get() -> *mut MemCgroup;
    pub(crate) fn v3vee_payer_put(payer: *mut MemCgroup);
    pub(crate) fn v3vee_payer_enter(payer: *mut MemCgroup) -> *mut MemCgroup;

    pub(crate) fn v3vee_spin_init(
        lock: *mut bindings::raw_spinlock_t,
        name: *const c_char,
        key: *mut bindings::lock_class_key,
    );
    pub(crate) fn v3vee_spin_lock(lock: *mut bindings::raw_spinlock_t) -> usize;
    pub(crate) fn v3vee_spin_unlock(lock: *mut bindings::raw_spinlock_t, flags: usize);
    pub(crate) fn v3vee_set_idle();
    pub(crate) fn v3vee_set_running();
    pub(crate) fn v3vee_pin(task: *mut bindings::task_struct, cpu: u32) -> i32;
    pub(crate) fn v3vee_unpin(task: *mut bindings::task_struct) -> i32;

    pub(crate) fn v3vee_tsc_stable() -> bool;
    pub(crate) fn v3vee_yield_to(task: *mut bindings::task_struct) -> bool;
    pub(crate) fn v3vee_waited_ns(task: *const bindings::task_struct) -> i64;

    pub(crate) fn v3vee_irq_disable();
    pub(crate) fn v3vee_irq_enable();
    pub(crate) fn v3vee_irq_save() -> usize;
    pub(crate) fn v3vee_irq_restore(flags: usize);
    pub(crate) fn v3vee_cpu_wanted() -> bool;
    pub(crate) fn v3vee_breakpoints_off(regs: *mut [usize; 6]) -> bool;
    pub(crate) fn v3vee_breakpoints_on(regs: *const [usize; 6]);
    pub(crate) fn v3vee_guest_time_begin();
    pub(crate) fn v3vee_guest_time_end();
    pub(crate) fn v3vee_guest_enter();
    pub(crate) fn v3vee_guest_exit();
    pub(crate) fn v3vee_machine_check() -> bool;
    pub(crate) fn v3vee_speculate_less();
    pub(crate) fn v3vee_speculate_as_before();
    pub(crate) fn v3vee_task_segment_cut();

    pub(crate) fn v3vee_halt();
    pub(crate) fn v3vee_flush_mappings() -> bool;

    pub(crate) fn v3vee_syscore_register();
    pub(crate) fn v3vee_syscore_unregister();
    pub(crate) fn v3vee_power_register(block: *mut bindings::notifier_block) -> i32;
    pub(crate) fn v3vee_power_unregister(block: *mut bindings::notifier_block);

    pub(crate) fn v3vee_file_fault(file: *mut bindings::file, input: bool, output: bool) -> i32;
    pub(crate) fn v3vee_far_end_new(file: *mut bindings::file) -> *mut FarEnd;
    pub(crate) fn v3vee_far_end_watch(
        end: *mut FarEnd,
        wake: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
    ) -> bool;
    pub(crate) fn v3vee_far_end_transfer(
        end: *mut FarEnd,
        write: bool,
        buf: *mut c_void,
        len: usize,
    ) -> isize;
    pub(crate) fn v3vee_far_end_free(end: *mut FarEnd);

    pub(crate) fn v3vee_disk_resize(disk: *mut Disk, bytes: u64) -> i32;
    pub(crate) fn v3vee_disk_fault(file: *mut bindings::file, write: bool) -> i32;
    pub(crate) fn v3vee_disk_identity(file: *mut bindings::file) -> *const c_void;
    pub(crate) fn v3vee_disk_new(file: *mut bindings::file) -> *mut Disk;
    pub(crate) fn v3vee_disk_free(disk: *mut Disk);
    pub(crate) fn v3vee_disk_info(disk: *mut Disk, info: *mut DiskInfo);
    pub(crate) fn v3vee_disk_work_bytes() -> usize;
    pub(crate) fn v3vee_disk_queue(
        disk: *mut Disk,
        work: *mut c_void,
        run: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
    );
    pub(crate) fn v3vee_disk_drain(disk: *mut Disk);
    pub(crate) fn v3vee_disk_transfer(
        disk: *mut Disk,
        write: bool,
        through: bool,
        at: u64,
        pieces: *mut DiskPiece,
        count: usize,
        bytes: u64,
    ) -> i32;
    pub(crate) fn v3vee_disk_transfer_here(
        disk: *mut Disk,
        write: bool,
        through: bool,
        at: u64,
        pieces: *mut DiskPiece,
        count: usize,
        bytes: u64,
    ) -> bool;
    pub(crate) fn v3vee_disk_flush(disk: *mut Disk) -> i32;
    pub(crate) fn v3vee_disk_zero(disk: *mut Disk, discard: bool, at: u64, bytes: u64) -> i32;
    pub(crate) fn v3vee_disk_discard(disk: *mut Disk, at: u64, bytes: u64) -> i32;
}
