// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's floating-point and vector state: an XSAVE area of its own, and XCR0 (APM 2: 11.5; SDM 1: 13).
//!
//! Inside a window the registers hold the guest's state from `load` to `unload`, so what runs there must not use them: a
//! kernel is compiled that way. The host's own state is the host's business; it was put away before the window opened,
//! but for PKRU, which kernels switch apart from it and which is therefore kept here.
//!
//! State is saved and restored under the host's XCR0, so that a guest which switches a component off and on again finds in
//! it what it left. No guest is offered XSAVES, but nothing keeps one under SVM from executing it: IA32_XSS is 0 meanwhile,
//! or XRSTORS would load the host's own U_CET and PL3_SSP. IA32_XFD governs no component that is offered.

use super::cpu::{cpuid, read_msr, write_msr, MSR_XSS};
use super::pages::Pages;
use crate::addr::PAGE_SIZE;
use crate::host::{Host, NoMemory};
use crate::xsave::{XsaveArea, XsaveLayout, HEADER, SMALLEST_AREA};
use core::arch::asm;

/// x87, SSE, AVX, the three parts of AVX-512, and PKRU. AMX is left out: 8 KiB to move at each window, and XFD to guard.
const OFFERED: u64 = 0b11 | 1 << 2 | 0b111 << 5 | PKRU;
/// The component of PKRU.
const PKRU: u64 = 1 << 9;
/// The components whose place in the area others ask for: the upper halves of YMM and of ZMM registers.
const AVX: u32 = 2;
const ZMM_HIGH: u32 = 6;

/// How this CPU and its host keep floating-point state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The host's XCR0; 0 if it runs without XSAVE.
    host_xcr0: u64,
    /// The components a guest may enable; 0 without XSAVE.
    allowed: u64,
    /// Size of an area that holds them.
    bytes: u32,
    /// Where they stand in it.
    places: XsaveLayout,
    /// Where PKRU is in it.
    pkru_at: u32,
    /// The host uses protection keys, so PKRU is live in it.
    pkru: bool,
    /// There are XSAVES and IA32_XSS.
    xsaves: bool,
    /// FXRSTOR and XRSTOR leave the last x87 pointers of somebody else standing (no CPUID 8000_0008, EBX bit 2).
    leaves_pointers: bool,
}

impl Layout {
    /// Looks at the CPU this runs on.
    pub(super) fn probe() -> Self {
        let osxsave = cpuid(1, 0)[2] & 1 << 27 != 0;
        // SAFETY: the host has switched XSAVE on.
        let xcr0 = if osxsave { unsafe { xgetbv0() } } else { 0 };
        Self::new(xcr0, cpuid)
    }

    fn new(host_xcr0: u64, cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let allowed = host_xcr0 & OFFERED;
        let end = |component: u32| {
            let [bytes, offset, ..] = cpuid(0xd, component);
            offset.saturating_add(bytes)
        };
        // Where components end in the standard format (APM 3: CPUID Fn0000_000D_x[3E:02]); x87 and SSE are in the legacy
        // region.
        let bytes = (2..63)
            .filter(|component| allowed & 1 << component != 0)
            .map(end)
            .fold(SMALLEST_AREA, u32::max);
        let place = |component: u32| {
            let allowed = allowed & 1 << component != 0;
            allowed.then(|| cpuid(0xd, component)[1])
        };
        let extended = cpuid(0x8000_0000, 0)[0];
        let vendor = cpuid(0, 0);
        let intel = vendor[1..] == [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
        Self {
            host_xcr0,
            allowed,
            bytes,
            places: XsaveLayout {
                header: allowed != 0,
                avx: place(AVX),
                zmm_high: place(ZMM_HIGH),
            },
            pkru_at: cpuid(0xd, 9)[1],
            xsaves: host_xcr0 != 0 && cpuid(0xd, 1)[0] & 1 << 3 != 0,
            pkru: vendor[0] >= 7 && cpuid(7, 0)[2] & 1 << 4 != 0,
            leaves_pointers: !intel
                && (extended < 0x8000_0008 || cpuid(0x8000_0008, 0)[1] & 1 << 2 == 0),
        }
    }

    /// The components a guest may enable in XCR0; 0 without XSAVE.
    pub(super) fn allowed(&self) -> u64 {
        self.allowed
    }
}

/// One guest's floating-point state.
pub(super) struct Fpu<H: Host> {
    layout: Layout,
    area: Pages<H>,
    /// The guest's XCR0.
    xcr0: u64,
    /// What XCR0 holds now; only inside a window.
    live_xcr0: u64,
    /// What PKRU is to hold again.
    host_pkru: u32,
    /// What IA32_XSS is to hold again.
    host_xss: u64,
}

impl<H: Host> Fpu<H> {
    /// The state after power-on.
    pub(super) fn new(host: &H, layout: Layout) -> Result<Self, NoMemory> {
        let pages = u64::from(layout.bytes).div_ceil(PAGE_SIZE);
        let mut fpu = Self {
            layout,
            area: Pages::new(host, pages as u32)?,
            xcr0: 1,
            live_xcr0: layout.host_xcr0,
            host_pkru: 0,
            host_xss: 0,
        };
        fpu.power_on();
        Ok(fpu)
    }

    /// Forgets what the guest left; not in a window.
    pub(super) fn power_on(&mut self) {
        self.area().clear();
    }

    /// The guest's registers; not in a window, where they are the processor's. Saved by XSAVE, and so in the standard format.
    pub(super) fn area(&mut self) -> XsaveArea<'_> {
        XsaveArea::new(self.area.bytes_mut(), self.layout.places)
    }

    /// XCR0 as the guest set it.
    pub(super) fn xcr0(&self) -> u64 {
        self.xcr0
    }
    /// Sets the guest's XCR0, a value that [`Layout::allowed`] and the architecture allow.
    pub(super) fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }

    /// The guest's PKRU; `loaded` says that the guest's state is in the registers. Without protection keys it is 0.
    pub(super) fn pkru(&self, loaded: bool) -> u32 {
        if self.layout.allowed & PKRU == 0 {
            return 0;
        }
        if loaded && self.layout.pkru {
            // SAFETY: the host uses protection keys.
            return unsafe { read_pkru() };
        }
        // A component that is not in use is as after power-on.
        match u64::from(self.area.read_u32(HEADER)) & PKRU {
            0 => 0,
            _ => self.area.read_u32(self.layout.pkru_at as usize),
        }
    }

    /// Puts the guest's state into the registers.
    ///
    /// # Safety
    /// In a window, the host's state put away; until [`Fpu::unload`] nothing uses the registers.
    #[inline(never)]
    pub(super) unsafe fn load(&mut self) {
        let area = self.area.as_ptr().as_ptr();
        // SAFETY: by the contract above. The area is as long as the components need and is 64-byte aligned, being a page;
        // only this file and XSAVE write its header.
        unsafe {
            if self.layout.pkru {
                self.host_pkru = read_pkru();
            }
            if self.layout.xsaves {
                self.host_xss = read_msr(MSR_XSS).unwrap_or(0);
                if self.host_xss != 0 {
                    let _ = write_msr(MSR_XSS, 0);
                }
            }
            if self.layout.leaves_pointers {
                // Loads pointers of our own, so that the guest does not see the host's last.
                asm!("fnclex", "emms", "fild dword ptr [{}]", in(reg) area, options(nostack));
            }
            match self.layout.allowed {
                0 => asm!("fxrstor64 [{}]", in(reg) area, options(nostack)),
                mask => asm!("xrstor64 [{}]", in(reg) area,
                    in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack)),
            }
        }
        self.live_xcr0 = self.layout.host_xcr0;
    }

    /// Before an entry: puts the guest's XCR0 in, if another is there.
    ///
    /// # Safety
    /// Between [`Fpu::load`] and [`Fpu::unload`].
    pub(super) unsafe fn enter(&mut self) {
        if self.layout.allowed != 0 && self.live_xcr0 != self.xcr0 {
            self.live_xcr0 = self.xcr0;
            // SAFETY: a subset of the host's XCR0, and valid by the contract of `set_xcr0`.
            unsafe { xsetbv0(self.xcr0) };
        }
    }

    /// Takes the guest's state out of the registers.
    ///
    /// # Safety
    /// In the window of the last [`Fpu::load`].
    #[inline(never)]
    pub(super) unsafe fn unload(&mut self) {
        let area = self.area.as_ptr().as_ptr();
        // SAFETY: as in `load`.
        unsafe {
            if self.live_xcr0 != self.layout.host_xcr0 {
                self.live_xcr0 = self.layout.host_xcr0;
                xsetbv0(self.layout.host_xcr0);
            }
            match self.layout.allowed {
                0 => asm!("fxsave64 [{}]", in(reg) area, options(nostack)),
                // Not XSAVEOPT: it trusts that the last XRSTOR from this address was ours, and a guest has addresses too.
                mask => asm!("xsave64 [{}]", in(reg) area,
                    in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack)),
            }
            if self.layout.xsaves && self.host_xss != 0 {
                let _ = write_msr(MSR_XSS, self.host_xss);
            }
            if self.layout.pkru {
                write_pkru(self.host_pkru);
            }
        }
    }
}

/// # Safety
/// CR4.OSXSAVE is set.
unsafe fn xgetbv0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: by the contract above; no effect.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// # Safety
/// CR4.OSXSAVE is set, and XCR0 may hold `value`.
unsafe fn xsetbv0(value: u64) {
    // SAFETY: by the contract above.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack))
    };
}

/// # Safety
/// CR4.PKE is set.
unsafe fn read_pkru() -> u32 {
    let value: u32;
    // SAFETY: by the contract above; no effect.
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _, options(nomem, nostack)) };
    value
}

/// # Safety
/// CR4.PKE is set; the value is the one that the host had.
unsafe fn write_pkru(value: u32) {
    // SAFETY: by the contract above.
    unsafe { asm!("wrpkru", in("ecx") 0, in("eax") value, in("edx") 0, options(nostack)) };
}

#[cfg(test)]
mod tests {
    use super::super::fake_host::FakeHost;
    use super::*;
    use crate::xsave::{INITIAL_CONTROL_WORD, INITIAL_MXCSR};

    /// A processor with AVX and AVX-512 as real ones lay them out, AMX besides, and PKRU.
    fn server(leaf: u32, subleaf: u32) -> [u32; 4] {
        match (leaf, subleaf) {
            (0, _) => [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            (7, 0) => [0, 0, 1 << 4, 0],
            (0xd, 1) => [0b1111, 0, 0, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 5) => [64, 832, 0, 0],
            (0xd, 6) => [512, 896, 0, 0],
            (0xd, 7) => [1024, 1408, 0, 0],
            (0xd, 9) => [8, 2432, 0, 0],
            (0xd, 18) => [8192, 2752, 0, 0],
            (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
            (0x8000_0008, _) => [48, 1 << 2, 0, 0],
            _ => [0; 4],
        }
    }

    #[test]
    fn the_area_is_as_long_as_its_components_need() {
        let plain = Layout::new(0b11, server);
        assert_eq!((plain.allowed, plain.bytes), (0b11, 576));
        let avx = Layout::new(0b111, server);
        assert_eq!((avx.allowed, avx.bytes), (0b111, 832));
        let all = Layout::new(0x602e7, server);
        assert_eq!((all.allowed, all.bytes), (0x2e7, 2440));
        assert!(all.pkru && all.xsaves && !all.leaves_pointers);
        let none = Layout::new(0, server);
        assert_eq!((none.allowed, none.bytes, none.xsaves), (0, 576, false));
    }

    #[test]
    fn old_processors_leave_their_pointers() {
        let old = |leaf, sub| match leaf {
            0x8000_0008 => [48, 0, 0, 0],
            _ => server(leaf, sub),
        };
        assert!(Layout::new(0b11, old).leaves_pointers);
        let intel = |leaf, sub| match leaf {
            0 => [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
            _ => old(leaf, sub),
        };
        assert!(!Layout::new(0b11, intel).leaves_pointers);
    }

    fn load_and_unload(layout: Layout) {
        let host = FakeHost::default();
        let mut ours = Fpu::new(&host, layout).unwrap();
        let mut guest = Fpu::new(&host, layout).unwrap();
        // XMM3 in the legacy region (APM 2: 11.5.9), and the bit that says that SSE state is in use.
        let pattern = *b"guest's own XMM3";
        guest.area.write(160 + 3 * 16, &pattern);
        guest.area.write(512, &[0b10]);
        // SAFETY: what this thread has in its registers is in `ours` meanwhile; XCR0 is not touched.
        unsafe {
            ours.unload();
            guest.load();
            guest.unload();
            ours.load();
        }
        assert_eq!(guest.area.bytes_mut()[208..224], pattern);
        guest.power_on();
        let fresh = &mut guest;
        // SAFETY: as above.
        unsafe {
            ours.unload();
            fresh.load();
            fresh.unload();
            ours.load();
        }
        assert_eq!(
            fresh.area.bytes_mut()[..2],
            INITIAL_CONTROL_WORD.to_le_bytes()
        );
        assert_eq!(fresh.area.bytes_mut()[24..28], INITIAL_MXCSR.to_le_bytes());
        assert_eq!(fresh.area.bytes_mut()[208..224], [0; 16]);
    }

    /// This CPU's layout, without what user mode may not touch.
    fn in_user_mode() -> Layout {
        Layout {
            xsaves: false,
            ..Layout::probe()
        }
    }

    #[test]
    fn state_travels_through_the_registers() {
        load_and_unload(in_user_mode());
    }

    #[test]
    fn state_travels_without_xsave() {
        load_and_unload(Layout {
            allowed: 0,
            leaves_pointers: true,
            ..in_user_mode()
        });
    }
}
