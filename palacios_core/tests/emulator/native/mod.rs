// SPDX-License-Identifier: MIT OR Apache-2.0
//! The emulator against this machine's processor: the same instruction on the same registers, flags and memory.

mod branches;
mod calculations;
mod vectors;

use palacios_core::state::rflags;

/// Bytes that instructions may touch.
const DATA_BYTES: usize = 4096;
const STATUS: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

/// What an instruction reads and changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    gprs: [u64; 16],
    flags: u64,
    data: Vec<u8>,
    /// An XSAVE area, or nothing: then these registers are left alone.
    fpu: Vec<u8>,
}

/// A page of code that runs one instruction, a page for registers, one of data, and two for XSAVE areas, below 2 GiB.
struct Native {
    page: *mut u8,
}

/// Where in the mapping things lie.
const SLOTS: usize = 4096;
const DATA: usize = 2 * 4096;
const HOST_AREA: usize = 3 * 4096;
const GUEST_AREA: usize = 4 * 4096;
const MAPPED_BYTES: usize = 5 * 4096;
const FLAGS_SLOT: usize = 16;
const HOST_RSP_SLOT: usize = 17;

/// The components of XSAVE areas: x87, SSE, AVX, and those of AVX-512.
const COMPONENTS: u32 = 0b1110_0111;
/// `XSAVE64` and `XRSTOR64`: the operation in their ModRM bytes.
const XSAVE: u8 = 4;
const XRSTOR: u8 = 5;
/// `MOV` from and to memory.
const LOAD: u8 = 0x8b;
const STORE: u8 = 0x89;

/// Machine code in the making, for the beginning of the mapping.
struct Code(Vec<u8>);

impl Code {
    /// The end of an instruction whose operand is at `at` in the mapping, relative to RIP.
    fn operand(&mut self, reg: u8, at: usize) {
        self.0.push((reg & 7) << 3 | 5);
        let next = self.0.len() + 4;
        self.0.extend((at as i32 - next as i32).to_le_bytes());
    }
    fn mov(&mut self, opcode: u8, reg: u8, slot: usize) {
        self.0.extend([0x48 | (reg >> 3) << 2, opcode]);
        self.operand(reg, SLOTS + 8 * slot);
    }
    /// XSAVE64 or XRSTOR64.
    fn xsave(&mut self, operation: u8, at: usize) {
        // MOV eax, COMPONENTS; XOR edx, edx.
        self.0.push(0xb8);
        self.0.extend(COMPONENTS.to_le_bytes());
        self.0.extend([0x31, 0xd2, 0x48, 0x0f, 0xae]);
        self.operand(operation, at);
    }
}

impl Native {
    fn new() -> Native {
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        // SAFETY: a fresh mapping, of nobody's memory.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), MAPPED_BYTES, all, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        Native { page: page.cast() }
    }

    /// Where the data are.
    fn data_at(&self) -> u64 {
        self.page as u64 + DATA as u64
    }

    /// Where the instruction is.
    fn instruction_at(&self) -> u64 {
        self.page as u64 + Self::prologue(false).0.len() as u64
    }

    /// Code that loads the registers.
    fn prologue(fpu: bool) -> Code {
        let mut code = Code(Vec::new());
        // PUSH rbx, rbp, r12–r15.
        code.0
            .extend([0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]);
        if fpu {
            code.xsave(XSAVE, HOST_AREA);
            code.xsave(XRSTOR, GUEST_AREA);
        }
        code.mov(LOAD, 0, FLAGS_SLOT);
        // PUSH rax; POPFQ.
        code.0.extend([0x50, 0x9d]);
        code.mov(STORE, 4, HOST_RSP_SLOT);
        for reg in 0..16 {
            code.mov(LOAD, reg, reg.into());
        }
        code
    }

    /// Code that loads the registers, executes `instruction`, stores the registers and returns.
    fn assemble(instruction: &[u8], fpu: bool) -> Vec<u8> {
        let mut code = Self::prologue(fpu);
        code.0.extend(instruction);
        for reg in 0..16 {
            code.mov(STORE, reg, reg.into());
        }
        code.mov(LOAD, 4, HOST_RSP_SLOT);
        // PUSHFQ; POP rax; CLD.
        code.0.extend([0x9c, 0x58, 0xfc]);
        code.mov(STORE, 0, FLAGS_SLOT);
        if fpu {
            code.xsave(XSAVE, GUEST_AREA);
            code.xsave(XRSTOR, HOST_AREA);
        }
        // POP r15–r12, rbp, rbx; RET.
        code.0.extend([
            0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3,
        ]);
        code.0
    }

    /// Runs `instruction` on the processor. It must touch no memory but the data, must not fault, and must go on behind itself.
    fn run(&mut self, instruction: &[u8], state: &mut State) {
        let code = Self::assemble(instruction, !state.fpu.is_empty());
        assert!(code.len() <= SLOTS);
        // SAFETY: the mapping is ours, writable, executable and large enough; the code keeps to the ABI.
        unsafe {
            self.page
                .copy_from_nonoverlapping(code.as_ptr(), code.len());
            let slots = self.page.add(SLOTS).cast::<u64>();
            slots.copy_from_nonoverlapping(state.gprs.as_ptr(), 16);
            slots.add(FLAGS_SLOT).write(state.flags);
            let data = self.page.add(DATA);
            data.copy_from_nonoverlapping(state.data.as_ptr(), DATA_BYTES);
            let area = self.page.add(GUEST_AREA);
            area.copy_from_nonoverlapping(state.fpu.as_ptr(), state.fpu.len());
            let entry: extern "C" fn() = std::mem::transmute(self.page);
            entry();
            slots.copy_to_nonoverlapping(state.gprs.as_mut_ptr(), 16);
            state.flags = slots.add(FLAGS_SLOT).read();
            data.copy_to_nonoverlapping(state.data.as_mut_ptr(), DATA_BYTES);
            area.copy_to_nonoverlapping(state.fpu.as_mut_ptr(), state.fpu.len());
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, used by nobody else.
        unsafe { libc::munmap(self.page.cast(), MAPPED_BYTES) };
    }
}

/// A generator that repeats itself: xorshift.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let words = (0..n.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(n).collect()
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    /// A number of the kind that finds mistakes: small, near a power of two, or any.
    fn value(&mut self) -> u64 {
        match self.below(5) {
            0 => self.below(4).wrapping_sub(2),
            1 => (1u64 << self.below(64))
                .wrapping_add(self.below(3))
                .wrapping_sub(1),
            2 => (1u64 << self.below(64))
                .wrapping_neg()
                .wrapping_add(self.below(3)),
            _ => self.next(),
        }
    }
}

/// Numbers that failures show in hexadecimal.
#[derive(PartialEq, Eq)]
struct Hex(u64);

impl std::fmt::Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}
