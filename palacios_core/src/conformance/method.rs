// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names of the contract's methods, by which a failure says what is at fault.

use core::fmt;

/// `NAME = "Trait::method"` for each method; the text is also the link in the documentation, so that it names one that is there.
macro_rules! methods {
    ($($name:ident = $text:literal,)*) => {
        /// A method of the host contract that can be at fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Method {
            $(#[doc = concat!("[`", $text, "`](crate::host::", $text, ")")] $name,)*
            /// Not a method: the memory allocator that the host gives to Rust (`#[global_allocator]`).
            GlobalAllocator,
        }

        impl Method {
            /// Its trait and name, as in `Thread::park`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::GlobalAllocator => "the global allocator",
                }
            }
        }
    };
}

methods! {
    AllocPages = "Host::alloc_pages",
    FreePages = "Host::free_pages",
    PhysToVirt = "Host::phys_to_virt",
    CpuLimit = "Host::cpu_limit",
    CurrentCpu = "Host::current_cpu",
    OnEachCpu = "Host::on_each_cpu",
    Window = "Host::window",
    NowNs = "Host::now_ns",
    WallNs = "Host::wall_ns",
    TscHz = "Host::tsc_hz",
    TscStable = "Host::tsc_stable",
    NewThread = "Host::thread",
    Share = "Host::share",
    Mutex = "Host::mutex",
    SpinLock = "Host::spin_lock",
    Start = "Thread::start",
    Park = "Thread::park",
    Unpark = "Thread::unpark",
    Kick = "Thread::kick",
    Arm = "Thread::arm",
    WaitedNs = "Thread::waited_ns",
    YieldTo = "Thread::yield_to",
    MoveTo = "Thread::move_to",
    Pin = "Thread::pin",
    Join = "Thread::join",
    Page = "GuestRam::page",
    Holds = "GuestRam::holds",
    Release = "GuestRam::release",
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of methods.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Methods(u64);

impl Methods {
    pub(super) fn insert(&mut self, method: Method) {
        self.0 |= Self::bit(method);
    }
    pub(super) fn contains(self, method: Method) -> bool {
        self.0 & Self::bit(method) != 0
    }
    fn bit(method: Method) -> u64 {
        1 << method as u32
    }
}
