// SPDX-License-Identifier: GPL-2.0
/*
 * Around the entry of a guest: what the kernel must know of it, and what a guest must not leave behind for those who run next.
 * Against speculation as much is done as the host's "mitigations=" asks for. Declared for Rust in ffi.rs.
 */
#include <linux/context_tracking.h>
#include <linux/ftrace.h>
#include <linux/irqflags.h>
#include <linux/lockdep.h>
#include <linux/objtool.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/vtime.h>
#include <asm/cpufeature.h>
#include <asm/desc.h>
#include <asm/linkage.h>
#include <asm/mce.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/processor.h>

/* What KVM's guest_timing_enter_irqoff() and its counterpart do: ticks count as guest time. */
void v3vee_guest_time_begin(void);
void v3vee_guest_time_begin(void)
{
	vtime_account_guest_enter();
	/*
	 * To RCU a guest is like user mode: a quiet state. Once in a window is enough, for any interrupt of the host ends it, and a tick is one.
	 * A CPU without ticks is told of each entry below.
	 */
	rcu_virt_note_context_switch();
}

void v3vee_guest_time_end(void);
void v3vee_guest_time_end(void)
{
	vtime_account_guest_exit();
}

/* What KVM's guest_state_enter_irqoff() and its counterpart do. */
void v3vee_guest_enter(void);
noinstr void v3vee_guest_enter(void)
{
	instrumentation_begin();
	trace_hardirqs_on_prepare();
	lockdep_hardirqs_on_prepare();
	instrumentation_end();

	context_tracking_guest_enter();
	lockdep_hardirqs_on(CALLER_ADDR0);
	/* The last quotient may be read by who divides by zero. Nothing divides from here to the entry. */
	amd_clear_divider();
}

/*
 * Overwrites the history of branches with calls, jumps and returns of our own, as many as Intel's guidance on branch history
 * injection asks for on processors that cannot be told to keep it apart. The kernel's own such function is not for modules.
 */
void v3vee_clear_branch_history(void);
asm(".pushsection .noinstr.text, \"ax\"\n"
    ".balign 64, 0xcc\n"
    ".type v3vee_clear_branch_history, @function\n"
    "v3vee_clear_branch_history:\n"
    "	push %rbp\n"
    "	mov %rsp, %rbp\n"
    "	mov $5, %ecx\n"
    "	" ANNOTATE_INTRA_FUNCTION_CALL "\n"
    "	call 1f\n"
    "	lfence\n"
    "	pop %rbp\n"
    "	" ASM_RET
    ".balign 64, 0xcc\n"
    /* Each time deeper by one call; all of them return at the end. */
    "1:	" ANNOTATE_INTRA_FUNCTION_CALL "\n"
    "	call 2f\n"
    "	" ASM_RET
    ".balign 64, 0xcc\n"
    "2:	mov $5, %eax\n"
    "3:	jmp 4f\n"
    "	nop\n"
    "4:	sub $1, %eax\n"
    "	jnz 3b\n"
    "	sub $1, %ecx\n"
    "	jnz 1b\n"
    "	" ASM_RET
    ".size v3vee_clear_branch_history, . - v3vee_clear_branch_history\n"
    ".popsection\n");
STACK_FRAME_NON_STANDARD(v3vee_clear_branch_history);

/* Fills the return stack, or has one call retire where that is enough. */
static __always_inline void fill_return_stack(void)
{
	unsigned int pairs = RSB_CLEAR_LOOPS / 2;

	if (cpu_feature_enabled(X86_FEATURE_RSB_VMEXIT))
		asm volatile("1:\n"
			     ANNOTATE_INTRA_FUNCTION_CALL "\n call 2f\n int3\n 2:\n"
			     ANNOTATE_INTRA_FUNCTION_CALL "\n call 3f\n int3\n 3:\n"
			     "add $16, %%rsp\n dec %0\n jnz 1b\n lfence"
			     : "+r" (pairs), ASM_CALL_CONSTRAINT : : "memory");
	else if (cpu_feature_enabled(X86_FEATURE_RSB_VMEXIT_LITE))
		asm volatile(ANNOTATE_INTRA_FUNCTION_CALL "\n call 1f\n int3\n 1:\n"
			     "add $8, %%rsp\n lfence"
			     : ASM_CALL_CONSTRAINT : : "memory");
}

/*
 * The guest may have trained the predictors, and filled the return stack. What the kernel does on its own way in, and KVM on
 * the way out of a guest; before the first RET and the first indirect branch.
 */
static __always_inline void forget_branches(void)
{
#ifdef CONFIG_MITIGATION_UNRET_ENTRY
	asm_inline volatile(ALTERNATIVE("", "call entry_untrain_ret", X86_FEATURE_UNRET)
			    : ASM_CALL_CONSTRAINT : : "memory");
#endif
	if (cpu_feature_enabled(X86_FEATURE_IBPB_ON_VMEXIT))
		native_wrmsrq(MSR_IA32_PRED_CMD, PRED_CMD_IBPB);
	fill_return_stack();
	/* IBRS of old works from when it is written, though the value is the same. */
	if (cpu_feature_enabled(X86_FEATURE_KERNEL_IBRS))
		native_wrmsrq(MSR_IA32_SPEC_CTRL, __this_cpu_read(x86_spec_ctrl_current));
	if (cpu_feature_enabled(X86_FEATURE_CLEAR_BHB_VMEXIT))
		asm volatile("call v3vee_clear_branch_history"
			     : ASM_CALL_CONSTRAINT : : "rax", "rcx", "memory");
	/* User mode is the guest's prey too: the kernel sees to that when it goes there next. */
	if (cpu_feature_enabled(X86_FEATURE_IBPB_EXIT_TO_USER))
		__this_cpu_write(x86_ibpb_exit_to_user, true);
}

void v3vee_guest_exit(void);
noinstr void v3vee_guest_exit(void)
{
	forget_branches();
	lockdep_hardirqs_off(CALLER_ADDR0);
	context_tracking_guest_exit();

	instrumentation_begin();
	trace_hardirqs_off_finish();
	instrumentation_end();
}

/*
 * Zen 5 has the host safe from what guests trained when it is told to speculate less. That costs speed: not before the first
 * guest on this CPU, and no longer than virtualization is on.
 */
static DEFINE_PER_CPU(bool, speculates_less);

static void speculate_less(bool less)
{
	u64 bit = BIT_ULL(MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT), config;

	this_cpu_write(speculates_less, less);
	if (!rdmsrq_safe(MSR_ZEN4_BP_CFG, &config))
		wrmsrq_safe(MSR_ZEN4_BP_CFG, less ? config | bit : config & ~bit);
}

void v3vee_speculate_less(void);
void v3vee_speculate_less(void)
{
	if (cpu_feature_enabled(X86_FEATURE_SRSO_BP_SPEC_REDUCE) && !this_cpu_read(speculates_less))
		speculate_less(true);
}

void v3vee_speculate_as_before(void);
void v3vee_speculate_as_before(void)
{
	if (this_cpu_read(speculates_less))
		speculate_less(false);
}

/*
 * A machine check ended a guest. The kernel looks at it as at one in user mode, which it may survive. Returns true if it chose
 * this thread as the one that was hit; what else it has for it, it does when the thread ends.
 */
bool v3vee_machine_check(void);
bool v3vee_machine_check(void)
{
#ifdef CONFIG_X86_MCE
	struct pt_regs regs = { .cs = __USER_CS, .flags = X86_EFLAGS_IF };

	do_machine_check(&regs);
	return current->mce_count;
#else
	return true;
#endif
}

/* Says that TR's limit is cut: the next task with an I/O permission map, which no kernel thread has, gets it loaded again. */
void v3vee_task_segment_cut(void);
void v3vee_task_segment_cut(void)
{
	this_cpu_write(__tss_limit_invalid, true);
}
