// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of features: where CPUID tells of each, and what it takes to give it to a guest.
//!
//! Bits and their meanings are those of SDM 2A: CPUID, and of APM 3: appendix E. Names are those of `/proc/cpuinfo`, where
//! Linux has one. A bit that is not in the table is never shown to a guest.

use crate::state::{cr4, efer};
use Offer::{Always, Host, Never, Varies};

/// The bits of leaf 0x8000_0001, EDX, that repeat those of leaf 1 on AMD's processors, and are zero on others (APM 3: E.4.2).
pub(super) const REPEATED: u32 = 0x0183_f3ff;

/// A 32-bit word of CPUID that holds features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Leaf 1, ECX.
    Leaf1Ecx,
    /// Leaf 1, EDX.
    Leaf1Edx,
    /// Leaf 6, EAX.
    Leaf6Eax,
    /// Leaf 7, EBX.
    Leaf7Ebx,
    /// Leaf 7, ECX.
    Leaf7Ecx,
    /// Leaf 7, EDX.
    Leaf7Edx,
    /// Leaf 7, subleaf 1, EAX.
    Leaf7Sub1Eax,
    /// Leaf 0xd, subleaf 1, EAX.
    LeafDSub1Eax,
    /// Leaf 0x8000_0001, ECX.
    Extended1Ecx,
    /// Leaf 0x8000_0001, EDX.
    Extended1Edx,
    /// Leaf 0x8000_0007, EDX.
    Extended7Edx,
    /// Leaf 0x8000_0008, EBX.
    Extended8Ebx,
    /// Leaf 0x8000_0021, EAX.
    Extended21Eax,
}

impl Word {
    /// All of them, in the order of their numbers.
    pub const ALL: [Word; 13] = [
        Word::Leaf1Ecx,
        Word::Leaf1Edx,
        Word::Leaf6Eax,
        Word::Leaf7Ebx,
        Word::Leaf7Ecx,
        Word::Leaf7Edx,
        Word::Leaf7Sub1Eax,
        Word::LeafDSub1Eax,
        Word::Extended1Ecx,
        Word::Extended1Edx,
        Word::Extended7Edx,
        Word::Extended8Ebx,
        Word::Extended21Eax,
    ];

    /// The leaf, the subleaf, and the register: 0 to 3 for EAX, EBX, ECX and EDX.
    pub const fn place(self) -> (u32, u32, usize) {
        match self {
            Word::Leaf1Ecx => (1, 0, 2),
            Word::Leaf1Edx => (1, 0, 3),
            Word::Leaf6Eax => (6, 0, 0),
            Word::Leaf7Ebx => (7, 0, 1),
            Word::Leaf7Ecx => (7, 0, 2),
            Word::Leaf7Edx => (7, 0, 3),
            Word::Leaf7Sub1Eax => (7, 1, 0),
            Word::LeafDSub1Eax => (0xd, 1, 0),
            Word::Extended1Ecx => (0x8000_0001, 0, 2),
            Word::Extended1Edx => (0x8000_0001, 0, 3),
            Word::Extended7Edx => (0x8000_0007, 0, 3),
            Word::Extended8Ebx => (0x8000_0008, 0, 1),
            Word::Extended21Eax => (0x8000_0021, 0, 0),
        }
    }
}

/// Whether guests are offered a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Where the host's processor has it, and the backend can give it to a guest.
    Host,
    /// On each host: it is made by the VMM.
    Always,
    /// CPUID tells of a register of the guest's; says of which.
    Varies(&'static str),
    /// On none; says why.
    Never(&'static str),
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The feature.
    pub feature: Feature,
    /// Its name.
    pub name: &'static str,
    /// The word of CPUID that tells of it.
    pub word: Word,
    /// Its bit in that word.
    pub bit: u32,
    /// Whether guests are offered it.
    pub offer: Offer,
    /// Features without which it has no meaning.
    pub needs: &'static [Feature],
    /// The bits of CR4 that are there with it alone.
    pub cr4: u64,
    /// The state components that its registers are.
    pub xcr0: u64,
    /// The bits of EFER that are there with it alone.
    pub efer: u64,
}

impl Feature {
    /// Its row of the table.
    pub fn row(self) -> Option<&'static Row> {
        TABLE.get(self as usize)
    }
    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().map_or("", |row| row.name)
    }
    /// The feature of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        let row = TABLE.iter().find(|row| row.name == name);
        row.map(|row| row.feature)
    }
    /// Whether `cpu` in a guest.toml may take the feature away. Not one that the guest itself switches on by a register (OSXSAVE), and
    /// not one that no guest has.
    pub fn can_be_taken_away(self) -> bool {
        let offer = self.row().map(|row| row.offer);
        matches!(offer, Some(Offer::Host | Offer::Always))
    }
}

macro_rules! features {
    ($($word:ident { $($bit:literal $feature:ident $name:literal $offer:expr
        $(, needs $($need:ident)+)? $(, cr4 $cr4:expr)? $(, xcr0 $xcr0:expr)? $(, efer $efer:expr)?;)* })*) => {
        /// A feature of a processor, as CPUID tells of it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Feature { $($(#[doc = concat!("`", $name, "`.")] $feature,)*)* }

        impl Feature {
            /// The word of CPUID that tells of it, and its bit there.
            #[inline(always)] // The feature is a constant nearly everywhere, and then so is the place.
            pub const fn place(self) -> (Word, u32) {
                match self { $($(Feature::$feature => (Word::$word, $bit),)*)* }
            }
        }

        /// The table, in the order of the features' numbers.
        pub static TABLE: &[Row] = &[$($(Row {
            feature: Feature::$feature,
            name: $name,
            word: Word::$word,
            bit: $bit,
            offer: $offer,
            needs: &[$($(Feature::$need),+)?],
            cr4: 0 $(| $cr4)?,
            xcr0: 0 $(| $xcr0)?,
            efer: 0 $(| $efer)?,
        },)*)*];
    };
}

const NESTED: &str = "a guest cannot run guests of its own";
const COUNTERS: &str = "performance counters are the host's";
const TRACING: &str = "the registers that record what was executed are the host's";
const POWER: &str = "power and heat are the host's affair";
const WAITING: &str = "it would hold the CPU while it waits";
const SHARING: &str = "how caches and memory are shared is the host's affair";
const UNSWITCHED: &str = "its registers are not switched with the guest";
const SPECULATION: &str = "a guest runs under the host's IA32_SPEC_CTRL";
const FIRMWARE: &str = "it is for firmware, and there is none";
const AMX: &str = "8 KiB of registers would move at each window";
const TRANSACTIONS: &str = "processors that have transactions are told not to use them";
const CET: &str = "the registers of shadow stacks are not switched with the guest";
const SECRETS: &str = "its keys are the host's";
const UNTRIED: &str = "what it asks of a VMM has not been looked at";

features! {
    Leaf1Ecx {
        0 Sse3 "sse3" Host;
        1 Pclmulqdq "pclmulqdq" Host;
        2 Dtes64 "dtes64" Never(TRACING);
        3 Monitor "monitor" Never(WAITING);
        4 DsCpl "ds_cpl" Never(TRACING);
        5 Vmx "vmx" Never(NESTED);
        6 Smx "smx" Never(FIRMWARE);
        7 Est "est" Never(POWER);
        8 Tm2 "tm2" Never(POWER);
        9 Ssse3 "ssse3" Host;
        10 Cid "cid" Never(FIRMWARE);
        11 Sdbg "sdbg" Never(FIRMWARE);
        12 Fma "fma" Host, needs Avx;
        13 Cx16 "cx16" Host;
        14 Xtpr "xtpr" Never(FIRMWARE);
        15 Pdcm "pdcm" Never(COUNTERS);
        17 Pcid "pcid" Host, cr4 cr4::PCIDE;
        18 Dca "dca" Never(FIRMWARE);
        19 Sse41 "sse4_1" Host;
        20 Sse42 "sse4_2" Host;
        21 X2apic "x2apic" Always;
        22 Movbe "movbe" Host;
        23 Popcnt "popcnt" Host;
        24 TscDeadline "tsc_deadline_timer" Always;
        25 Aes "aes" Host;
        26 Xsave "xsave" Host, cr4 cr4::OSXSAVE, xcr0 0b11;
        27 Osxsave "osxsave" Varies("as the guest sets CR4.OSXSAVE");
        28 Avx "avx" Host, needs Xsave, xcr0 1 << 2;
        29 F16c "f16c" Host, needs Avx;
        30 Rdrand "rdrand" Host;
        31 Hypervisor "hypervisor" Always;
    }
    Leaf1Edx {
        0 Fpu "fpu" Host;
        1 Vme "vme" Host, cr4 cr4::VME | cr4::PVI;
        2 De "de" Host, cr4 cr4::DE;
        3 Pse "pse" Host, cr4 cr4::PSE;
        4 Tsc "tsc" Host, cr4 cr4::TSD;
        5 Msr "msr" Host;
        6 Pae "pae" Host, cr4 cr4::PAE;
        7 Mce "mce" Host, cr4 cr4::MCE;
        8 Cx8 "cx8" Host;
        9 Apic "apic" Varies("as the guest enables its local APIC");
        11 Sep "sep" Host;
        12 Mtrr "mtrr" Host;
        13 Pge "pge" Host, cr4 cr4::PGE;
        14 Mca "mca" Host, needs Mce;
        15 Cmov "cmov" Host;
        16 Pat "pat" Host;
        17 Pse36 "pse36" Host;
        18 Pn "pn" Never(SECRETS);
        19 Clflush "clflush" Host;
        21 Ds "dts" Never(TRACING);
        22 Acpi "acpi" Never(POWER);
        23 Mmx "mmx" Host;
        24 Fxsr "fxsr" Host, cr4 cr4::OSFXSR;
        25 Sse "sse" Host, cr4 cr4::OSXMMEXCPT;
        26 Sse2 "sse2" Host;
        27 Ss "ss" Host;
        28 Ht "ht" Varies("with more than one virtual CPU");
        29 Tm "tm" Never(POWER);
        31 Pbe "pbe" Never(POWER);
    }
    Leaf6Eax {
        0 Dtherm "dtherm" Never(POWER);
        1 Ida "ida" Never(POWER);
        2 Arat "arat" Always;
        4 Pln "pln" Never(POWER);
        6 Pts "pts" Never(POWER);
        7 Hwp "hwp" Never(POWER);
    }
    Leaf7Ebx {
        0 Fsgsbase "fsgsbase" Host, cr4 cr4::FSGSBASE;
        1 TscAdjust "tsc_adjust" Always, needs Tsc;
        2 Sgx "sgx" Never(SECRETS);
        3 Bmi1 "bmi1" Host;
        4 Hle "hle" Never(TRANSACTIONS);
        5 Avx2 "avx2" Host, needs Avx;
        7 Smep "smep" Host, cr4 cr4::SMEP;
        8 Bmi2 "bmi2" Host;
        9 Erms "erms" Host;
        10 Invpcid "invpcid" Host;
        11 Rtm "rtm" Never(TRANSACTIONS);
        12 Cqm "cqm" Never(SHARING);
        14 Mpx "mpx" Never(UNSWITCHED);
        15 RdtA "rdt_a" Never(SHARING);
        16 Avx512f "avx512f" Host, needs Avx, xcr0 0b111 << 5;
        17 Avx512dq "avx512dq" Host, needs Avx512f;
        18 Rdseed "rdseed" Host;
        19 Adx "adx" Host;
        20 Smap "smap" Host, cr4 cr4::SMAP;
        21 Avx512ifma "avx512ifma" Host, needs Avx512f;
        23 Clflushopt "clflushopt" Host;
        24 Clwb "clwb" Host;
        25 IntelPt "intel_pt" Never(TRACING);
        26 Avx512pf "avx512pf" Host, needs Avx512f;
        27 Avx512er "avx512er" Host, needs Avx512f;
        28 Avx512cd "avx512cd" Host, needs Avx512f;
        29 ShaNi "sha_ni" Host;
        30 Avx512bw "avx512bw" Host, needs Avx512f;
        31 Avx512vl "avx512vl" Host, needs Avx512f;
    }
    Leaf7Ecx {
        1 Avx512vbmi "avx512vbmi" Host, needs Avx512f;
        2 Umip "umip" Host, cr4 cr4::UMIP;
        3 Pku "pku" Host, needs Xsave, cr4 cr4::PKE, xcr0 1 << 9;
        4 Ospke "ospke" Varies("as the guest sets CR4.PKE");
        5 Waitpkg "waitpkg" Never(WAITING);
        6 Avx512vbmi2 "avx512_vbmi2" Host, needs Avx512f;
        7 Shstk "shstk" Never(CET);
        8 Gfni "gfni" Host;
        9 Vaes "vaes" Host, needs Avx;
        10 Vpclmulqdq "vpclmulqdq" Host, needs Avx;
        11 Avx512vnni "avx512_vnni" Host, needs Avx512f;
        12 Avx512bitalg "avx512_bitalg" Host, needs Avx512f;
        13 Tme "tme" Never(SECRETS);
        14 Avx512vpopcntdq "avx512_vpopcntdq" Host, needs Avx512f;
        16 La57 "la57" Host, cr4 cr4::LA57;
        22 Rdpid "rdpid" Host;
        23 KeyLocker "keylocker" Never(SECRETS);
        24 BusLockDetect "bus_lock_detect" Never(TRACING);
        25 Cldemote "cldemote" Host;
        27 Movdiri "movdiri" Host;
        28 Movdir64b "movdir64b" Host;
        29 Enqcmd "enqcmd" Never(UNSWITCHED);
        30 SgxLc "sgx_lc" Never(SECRETS);
        31 Pks "pks" Never(UNSWITCHED);
    }
    Leaf7Edx {
        2 Avx512fourvnniw "avx512_4vnniw" Host, needs Avx512f;
        3 Avx512fourfmaps "avx512_4fmaps" Host, needs Avx512f;
        4 Fsrm "fsrm" Host;
        5 Uintr "uintr" Never(UNSWITCHED);
        8 Avx512vp2intersect "avx512_vp2intersect" Host, needs Avx512f;
        9 SrbdsCtrl "srbds_ctrl" Never(SPECULATION);
        10 MdClear "md_clear" Host;
        11 RtmAlwaysAbort "rtm_always_abort" Never(TRANSACTIONS);
        14 Serialize "serialize" Host;
        15 HybridCpu "hybrid_cpu" Never("a guest's CPUs are all alike");
        16 Tsxldtrk "tsxldtrk" Never(TRANSACTIONS);
        18 Pconfig "pconfig" Never(SECRETS);
        19 ArchLbr "arch_lbr" Never(TRACING);
        20 Ibt "ibt" Never(CET);
        22 AmxBf16 "amx_bf16" Never(AMX);
        23 Avx512fp16 "avx512_fp16" Host, needs Avx512f;
        24 AmxTile "amx_tile" Never(AMX);
        25 AmxInt8 "amx_int8" Never(AMX);
        26 SpecCtrl "spec_ctrl" Never(SPECULATION);
        27 IntelStibp "intel_stibp" Never(SPECULATION);
        28 FlushL1d "flush_l1d" Never(SPECULATION);
        29 ArchCapabilities "arch_capabilities" Never(UNTRIED);
        30 CoreCapabilities "core_capabilities" Never(TRACING);
        31 Ssbd "ssbd" Never(SPECULATION);
    }
    Leaf7Sub1Eax {
        4 AvxVnni "avx_vnni" Host, needs Avx;
        5 Avx512bf16 "avx512_bf16" Host, needs Avx512f;
        7 Cmpccxadd "cmpccxadd" Host;
        10 Fzrm "fzrm" Host;
        11 Fsrs "fsrs" Host;
        12 Fsrc "fsrc" Host;
        17 Fred "fred" Never(UNSWITCHED);
        18 Lkgs "lkgs" Never(UNTRIED);
        21 AmxFp16 "amx_fp16" Never(AMX);
        23 AvxIfma "avx_ifma" Host, needs Avx;
        26 Lam "lam" Never("addresses with a tag are not known to the emulator");
    }
    LeafDSub1Eax {
        0 Xsaveopt "xsaveopt" Host, needs Xsave;
        1 Xsavec "xsavec" Host, needs Xsave;
        2 Xgetbv1 "xgetbv1" Host, needs Xsave;
        3 Xsaves "xsaves" Host, needs Xsavec;
        4 Xfd "xfd" Never(AMX);
    }
    Extended1Ecx {
        0 LahfLm "lahf_lm" Host;
        1 CmpLegacy "cmp_legacy" Varies("with more than one virtual CPU");
        2 Svm "svm" Never(NESTED);
        3 Extapic "extapic" Never("the local APIC has no extended registers");
        4 Cr8Legacy "cr8_legacy" Host;
        5 Abm "abm" Host;
        6 Sse4a "sse4a" Host;
        7 Misalignsse "misalignsse" Host;
        8 Prefetchw "3dnowprefetch" Host;
        9 Osvw "osvw" Never("what the host works around, a guest need not");
        10 Ibs "ibs" Never(COUNTERS);
        11 Xop "xop" Host, needs Avx;
        12 Skinit "skinit" Never(NESTED);
        13 Wdt "wdt" Never(FIRMWARE);
        15 Lwp "lwp" Never(UNSWITCHED);
        16 Fma4 "fma4" Host, needs Avx;
        17 Tce "tce" Never(UNTRIED);
        19 NodeidMsr "nodeid_msr" Never(SHARING);
        21 Tbm "tbm" Host;
        22 Topoext "topoext" Host;
        23 PerfctrCore "perfctr_core" Never(COUNTERS);
        24 PerfctrNb "perfctr_nb" Never(COUNTERS);
        26 Bpext "bpext" Never(UNSWITCHED);
        27 Ptsc "ptsc" Never(COUNTERS);
        28 PerfctrLlc "perfctr_llc" Never(COUNTERS);
        29 Mwaitx "mwaitx" Never(WAITING);
    }
    Extended1Edx {
        11 Syscall "syscall" Host, efer efer::SCE;
        20 Nx "nx" Host, efer efer::NXE;
        22 Mmxext "mmxext" Host;
        25 FxsrOpt "fxsr_opt" Host, efer efer::FFXSR;
        26 Pdpe1gb "pdpe1gb" Host;
        27 Rdtscp "rdtscp" Host;
        29 Lm "lm" Host, efer efer::LME | efer::LMA;
        30 ThreeDnowext "3dnowext" Host;
        31 ThreeDnow "3dnow" Host;
    }
    Extended7Edx {
        0 Ts "ts" Never(POWER);
        1 Fid "fid" Never(POWER);
        2 Vid "vid" Never(POWER);
        3 Ttp "ttp" Never(POWER);
        4 HwTm "hw_tm" Never(POWER);
        6 HundredMhzSteps "100mhzsteps" Never(POWER);
        7 HwPstate "hw_pstate" Never(POWER);
        8 NonstopTsc "nonstop_tsc" Host, needs Tsc;
        9 Cpb "cpb" Never(POWER);
        10 Aperfmperf "aperfmperf" Never(POWER);
        11 ProcFeedback "proc_feedback" Never(POWER);
        12 AccPower "acc_power" Never(POWER);
    }
    Extended8Ebx {
        0 Clzero "clzero" Host;
        1 Irperf "irperf" Never(COUNTERS);
        2 Xsaveerptr "xsaveerptr" Host;
        3 Invlpgb "invlpgb" Never("it reaches the translations of other CPUs");
        4 Rdpru "rdpru" Never(COUNTERS);
        6 Mba "mba" Never(SHARING);
        8 Mcommit "mcommit" Never(UNTRIED);
        9 Wbnoinvd "wbnoinvd" Host;
        12 AmdIbpb "ibpb" Host;
        13 IntWbinvd "int_wbinvd" Never(UNTRIED);
        14 AmdIbrs "ibrs" Host;
        15 AmdStibp "stibp" Host;
        16 IbrsAlwaysOn "ibrs_always_on" Host, needs AmdIbrs;
        17 StibpAlwaysOn "stibp_always_on" Host, needs AmdStibp;
        18 IbrsPreferred "ibrs_preferred" Host, needs AmdIbrs;
        19 IbrsSameMode "ibrs_same_mode" Host, needs AmdIbrs;
        20 NoEferLmsle "no_efer_lmsle" Host;
        23 AmdPpin "amd_ppin" Never(SECRETS);
        24 AmdSsbd "amd_ssbd" Host;
        25 VirtSsbd "virt_ssbd" Never(SPECULATION);
        26 SsbNo "amd_ssb_no" Host;
        27 Cppc "cppc" Never(POWER);
        28 AmdPsfd "amd_psfd" Host;
        29 BtcNo "btc_no" Host;
        30 IbpbRet "ibpb_ret" Host, needs AmdIbpb;
        31 Brs "brs" Never(TRACING);
    }
    Extended21Eax {
        0 NoNestedDataBp "no_nested_data_bp" Host;
        1 NonserializingBases "fsgs_kernelgs_nonserializing" Host;
        2 LfenceSerializes "lfence_rdtsc" Host;
        3 SmmPageCfgLock "smm_pgcfg_lock" Never(FIRMWARE);
        5 VerwClear "verw_clear" Host;
        6 NullSelClrBase "null_sel_clr_base" Host;
        7 UpperAddressIgnore "uai" Never("addresses with a tag are not known to the emulator");
        8 AutoIbrs "autoibrs" Never(SPECULATION);
        9 NoSmmCtl "no_smm_ctl_msr" Never(FIRMWARE);
        10 AmdFsrs "amd_fsrs" Host;
        11 AmdFsrc "amd_fsrc" Host;
        13 PrefetchCtl "prefetch_ctl_msr" Never(SHARING);
        17 CpuidUserDis "cpuid_user_dis" Never(UNTRIED);
        29 SrsoNo "srso_no" Host;
    }
}
