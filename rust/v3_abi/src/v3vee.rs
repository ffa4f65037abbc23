// SPDX-License-Identifier: MIT OR Apache-2.0
// Generated from v3vee.h by rust/v3_abi/regenerate. Do not edit.
pub const V3_ABI: u32 = 1;
pub const V3_IOCTL_TYPE: u8 = 86u8;
pub const V3_NAME_LEN: u32 = 64;
pub const V3_STREAM_NAME_LEN: u32 = 32;
pub const V3_STAT_NAME_LEN: u32 = 44;
pub const V3_MESSAGE_LEN: u32 = 256;
pub const V3_FEATURE_NESTED_PAGING: u32 = 1;
pub const V3_FEATURE_XSAVE: u32 = 2;
pub const V3_FEATURE_RELOCATE: u32 = 4;
pub const V3_FEATURE_TLB_TAGS: u32 = 8;
pub const V3_FEATURE_NEXT_RIP: u32 = 16;
pub const V3_FEATURE_DECODE_ASSISTS: u32 = 32;
pub const V3_STATE_CREATED: u32 = 1;
pub const V3_STATE_RUNNING: u32 = 2;
pub const V3_STATE_PAUSED: u32 = 3;
pub const V3_STATE_STOPPED: u32 = 4;
pub const V3_REASON_NONE: u32 = 0;
pub const V3_REASON_POWER_OFF: u32 = 1;
pub const V3_REASON_TEST_EXIT: u32 = 2;
pub const V3_REASON_REQUEST: u32 = 3;
pub const V3_REASON_RESET: u32 = 4;
pub const V3_REASON_TRIPLE_FAULT: u32 = 16;
pub const V3_REASON_UNKNOWN_EXIT: u32 = 17;
pub const V3_REASON_EMULATION: u32 = 18;
pub const V3_REASON_BAD_STATE: u32 = 19;
pub const V3_REASON_GUEST_ERROR: u32 = 20;
pub const V3_REASON_HOST_MEMORY: u32 = 32;
pub const V3_REASON_HOST_ERROR: u32 = 33;
pub const V3_INFO_DEAD: u32 = 1;
pub const V3_STAT_VM: i32 = -1;
pub const V3_CPU_ANY: u32 = 4294967295;
pub type __s32 = crate::ctypes::c_int;
pub type __u32 = crate::ctypes::c_uint;
pub type __s64 = crate::ctypes::c_longlong;
pub type __u64 = crate::ctypes::c_ulonglong;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_version {
    pub abi: __u32,
    pub vms: __u32,
    pub max_vms: __u32,
    pub max_vcpus: __u32,
    pub features: __u64,
    pub module: [crate::ctypes::c_char; 64usize],
    pub backend: [crate::ctypes::c_char; 16usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_create {
    pub image: __u64,
    pub image_len: __u64,
    pub message: __u64,
    pub message_len: __u32,
    pub flags: __u32,
    pub vm: __u32,
    pub pad: __u32,
    pub name: [crate::ctypes::c_char; 64usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_info {
    pub vm: __u32,
    pub state: __u32,
    pub reason: __u32,
    pub exit_status: __u32,
    pub vcpus: __u32,
    pub flags: __u32,
    pub memory_bytes: __u64,
    pub name: [crate::ctypes::c_char; 64usize],
    pub message: [crate::ctypes::c_char; 256usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_list {
    pub entries: __u64,
    pub count: __u32,
    pub pad: __u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_free {
    pub vm: __u32,
    pub pad: __u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_wait {
    pub timeout_ns: __s64,
    pub state: __u32,
    pub reason: __u32,
    pub exit_status: __u32,
    pub pad: __u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_stat {
    pub vcpu: __s32,
    pub name: [crate::ctypes::c_char; 44usize],
    pub value: __u64,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_stats {
    pub entries: __u64,
    pub count: __u32,
    pub pad: __u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_stream {
    pub name: [crate::ctypes::c_char; 32usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_streams {
    pub entries: __u64,
    pub count: __u32,
    pub pad: __u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_relocate {
    pub gpa: __u64,
    pub len: __u64,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct v3_vcpu {
    pub vcpu: __u32,
    pub cpu: __u32,
}
pub const V3_VERSION: v3_control_ioctl = 2154321408;
pub const V3_CREATE: v3_control_ioctl = 3228063233;
pub const V3_LIST: v3_control_ioctl = 3222296066;
pub const V3_FREE: v3_control_ioctl = 1074288131;
pub type v3_control_ioctl = crate::ctypes::c_uint;
pub const V3_VM_LAUNCH: v3_vm_ioctl = 22048;
pub const V3_VM_STOP: v3_vm_ioctl = 22049;
pub const V3_VM_PAUSE: v3_vm_ioctl = 22050;
pub const V3_VM_CONTINUE: v3_vm_ioctl = 22051;
pub const V3_VM_WAIT: v3_vm_ioctl = 3222820388;
pub const V3_VM_INFO: v3_vm_ioctl = 2170574373;
pub const V3_VM_STATS: v3_vm_ioctl = 3222296102;
pub const V3_VM_STREAM: v3_vm_ioctl = 1075861031;
pub const V3_VM_RELOCATE: v3_vm_ioctl = 1074812456;
pub const V3_VM_MOVE: v3_vm_ioctl = 1074288169;
pub const V3_VM_VCPU: v3_vm_ioctl = 3221771818;
pub const V3_VM_STREAMS: v3_vm_ioctl = 3222296107;
pub type v3_vm_ioctl = crate::ctypes::c_uint;
