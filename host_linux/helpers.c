// SPDX-License-Identifier: GPL-2.0
/*
 * What only C macros and inline functions give: interrupt flags, task states, thread flags, static keys, page flags.
 * Declared for Rust in ffi.rs.
 */
#include <linux/cpumask.h>
#include <linux/gfp.h>
#include <linux/irqflags.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/nodemask.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/isolation.h>
#include <linux/sched/mm.h>
#include <linux/sizes.h>
#include <linux/spinlock.h>
#include <linux/suspend.h>
#include <linux/syscore_ops.h>
#include <linux/timekeeping.h>
#include <linux/vmalloc.h>
#include <asm/debugreg.h>
#include <asm/io.h>
#include <asm/tsc.h>

MODULE_VERSION("0.1.0");

/* Pages. */

static void *pages(gfp_t gfp, unsigned int order, int node)
{
	struct page *page;

	if (node == NUMA_NO_NODE || !node_online(node))
		page = alloc_pages(gfp, order);
	else
		page = alloc_pages_node(node, gfp, order);
	return page ? page_address(page) : NULL;
}

void *v3vee_pages_alloc(unsigned int order, bool below_4g, int node);
void *v3vee_pages_alloc(unsigned int order, bool below_4g, int node)
{
	gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN;

	if (node < 0 || node >= nr_node_ids)
		node = NUMA_NO_NODE;
	return pages(below_4g ? gfp | GFP_DMA32 : gfp, order, node);
}

/* Whether the host can spare so many pages. What it needs to live on, a sixteenth or 256 MiB, is not given away. */
bool v3vee_can_spare(unsigned long count);
bool v3vee_can_spare(unsigned long count)
{
	unsigned long reserve = min(totalram_pages() / 16, SZ_256M / PAGE_SIZE);
	long available = si_mem_available();

	return available > 0 && available >= reserve && available - reserve >= count;
}

/*
 * Guest RAM. A guest that wants more than there is stops with a reason: nobody else is killed for it. A large page is
 * taken if it is there, and nothing is turned over for it.
 */
void *v3vee_ram_alloc(unsigned int order, bool zero);
void *v3vee_ram_alloc(unsigned int order, bool zero)
{
	gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;

	if (!v3vee_can_spare(1UL << order))
		return NULL;
	gfp |= order ? __GFP_NORETRY : __GFP_RETRY_MAYFAIL;
	return pages(zero ? gfp | __GFP_ZERO : gfp, order, NUMA_NO_NODE);
}

void v3vee_pages_split(void *at, unsigned int order);
void v3vee_pages_split(void *at, unsigned int order)
{
	split_page(virt_to_page(at), order);
}

/* The control group that pays for a VM. */

struct mem_cgroup *v3vee_payer_get(void);
struct mem_cgroup *v3vee_payer_get(void)
{
	return get_mem_cgroup_from_mm(current->mm);
}

void v3vee_payer_put(struct mem_cgroup *payer);
void v3vee_payer_put(struct mem_cgroup *payer)
{
	mem_cgroup_put(payer);
}

struct mem_cgroup *v3vee_payer_enter(struct mem_cgroup *payer);
struct mem_cgroup *v3vee_payer_enter(struct mem_cgroup *payer)
{
	return set_active_memcg(payer);
}

/* Locks and threads. */

/* Raw ones: they are taken in hard-interrupt context and with interrupts off, also where other spin locks may sleep. */
void v3vee_spin_init(raw_spinlock_t *lock, const char *name, struct lock_class_key *key);
void v3vee_spin_init(raw_spinlock_t *lock, const char *name, struct lock_class_key *key)
{
#ifdef CONFIG_DEBUG_SPINLOCK
	__raw_spin_lock_init(lock, name, key, LD_WAIT_SPIN);
#else
	raw_spin_lock_init(lock);
#endif
}

unsigned long v3vee_spin_lock(raw_spinlock_t *lock);
unsigned long v3vee_spin_lock(raw_spinlock_t *lock)
{
	unsigned long flags;

	raw_spin_lock_irqsave(lock, flags);
	return flags;
}

void v3vee_spin_unlock(raw_spinlock_t *lock, unsigned long flags);
void v3vee_spin_unlock(raw_spinlock_t *lock, unsigned long flags)
{
	raw_spin_unlock_irqrestore(lock, flags);
}

void v3vee_set_idle(void);
void v3vee_set_idle(void)
{
	set_current_state(TASK_IDLE);
}

void v3vee_set_running(void);
void v3vee_set_running(void)
{
	__set_current_state(TASK_RUNNING);
}

int v3vee_pin(struct task_struct *task, unsigned int cpu);
int v3vee_pin(struct task_struct *task, unsigned int cpu)
{
	if (cpu >= nr_cpu_ids || !cpu_online(cpu))
		return -EINVAL;
	return set_cpus_allowed_ptr(task, cpumask_of(cpu));
}

/* Any CPU but those that the administrator keeps for others, as a new thread has it. The mask is 1 KiB at most. */
int v3vee_unpin(struct task_struct *task);
int v3vee_unpin(struct task_struct *task)
{
	cpumask_var_t allowed;
	int err;

	if (!alloc_cpumask_var(&allowed, GFP_KERNEL | __GFP_NOFAIL))
		return -ENOMEM;
	rcu_read_lock();
	cpumask_copy(allowed, housekeeping_cpumask(HK_TYPE_DOMAIN));
	rcu_read_unlock();
	err = set_cpus_allowed_ptr(task, allowed);
	free_cpumask_var(allowed);
	return err;
}

/* Time. */

/*
 * The kernel compares the counters of all CPUs as it brings them up, goes on looking, and says for ever when they cease to
 * agree. Whether it keeps its own time by them is another question: in its first seconds it does not yet.
 */
bool v3vee_tsc_stable(void);
bool v3vee_tsc_stable(void)
{
	return !check_tsc_unstable();
}

/* Looks first, as yield_to() takes two run queues' locks to find out. */
bool v3vee_yield_to(struct task_struct *task);
bool v3vee_yield_to(struct task_struct *task)
{
	return task_is_running(task) && !READ_ONCE(task->on_cpu) && yield_to(task, true) > 0;
}

/*
 * What the scheduler counts whenever it lets a task run: how long that was on a run queue. Without CONFIG_SCHED_INFO, which
 * accounting and scheduler statistics select, nobody knows: -1.
 */
s64 v3vee_waited_ns(const struct task_struct *task);
s64 v3vee_waited_ns(const struct task_struct *task)
{
#ifdef CONFIG_SCHED_INFO
	return READ_ONCE(task->sched_info.run_delay);
#else
	return -1;
#endif
}

/* The window: see window.rs. */

void v3vee_irq_disable(void);
void v3vee_irq_disable(void)
{
	local_irq_disable();
}

void v3vee_irq_enable(void);
void v3vee_irq_enable(void)
{
	local_irq_enable();
}

unsigned long v3vee_irq_save(void);
unsigned long v3vee_irq_save(void)
{
	unsigned long flags;

	local_irq_save(flags);
	return flags;
}

void v3vee_irq_restore(unsigned long flags);
void v3vee_irq_restore(unsigned long flags)
{
	local_irq_restore(flags);
}

bool v3vee_cpu_wanted(void);
bool v3vee_cpu_wanted(void)
{
	return read_thread_flags() & (_TIF_NEED_RESCHED | _TIF_NEED_RESCHED_LAZY);
}

/* Returns true if the host has breakpoints, which are then in @regs and off: DR0 to DR3, DR6, DR7. */
bool v3vee_breakpoints_off(unsigned long regs[6]);
bool v3vee_breakpoints_off(unsigned long regs[6])
{
	regs[5] = local_db_save();
	if (likely(!regs[5]))
		return false;
	get_debugreg(regs[0], 0);
	get_debugreg(regs[1], 1);
	get_debugreg(regs[2], 2);
	get_debugreg(regs[3], 3);
	get_debugreg(regs[4], 6);
	return true;
}

void v3vee_breakpoints_on(const unsigned long regs[6]);
void v3vee_breakpoints_on(const unsigned long regs[6])
{
	set_debugreg(regs[0], 0);
	set_debugreg(regs[1], 1);
	set_debugreg(regs[2], 2);
	set_debugreg(regs[3], 3);
	set_debugreg(regs[4], 6);
	local_db_restore(regs[5]);
}

/*
 * Has the kernel flush its own mappings on all CPUs: more than 33 pages of them go by a flush of everything, which rewrites
 * CR4 where there is no INVPCID. For checks only.
 */
bool v3vee_flush_mappings(void);
bool v3vee_flush_mappings(void)
{
	void *at = vmalloc(64 * PAGE_SIZE);

	if (!at)
		return false;
	vfree(at);
	vm_unmap_aliases();
	return true;
}

/* Waits for an interrupt in a window, and takes it there. For checks only. */
void v3vee_halt(void);
void v3vee_halt(void)
{
	preempt_disable();
	safe_halt();
	local_irq_disable();
	preempt_enable();
}

/* The last CPU before sleep, the first after it, and the end of the host: see virtualization.rs. */

void v3vee_cpu_suspend(void);
void v3vee_cpu_resume(void);
void v3vee_shutdown(void);

static int suspend(void *data)
{
	v3vee_cpu_suspend();
	return 0;
}

static void resume(void *data)
{
	v3vee_cpu_resume();
}

static void shutdown(void *data)
{
	v3vee_shutdown();
}

static const struct syscore_ops syscore_ops = {
	.suspend = suspend,
	.resume = resume,
	.shutdown = shutdown,
};

static struct syscore syscore = { .ops = &syscore_ops };

void v3vee_syscore_register(void);
void v3vee_syscore_register(void)
{
	register_syscore(&syscore);
}

void v3vee_syscore_unregister(void);
void v3vee_syscore_unregister(void)
{
	unregister_syscore(&syscore);
}

/* Told before the host sleeps and after, where it can: see sleep.rs. */

int v3vee_power_register(struct notifier_block *block);
int v3vee_power_register(struct notifier_block *block)
{
	return register_pm_notifier(block);
}

void v3vee_power_unregister(struct notifier_block *block);
void v3vee_power_unregister(struct notifier_block *block)
{
	unregister_pm_notifier(block);
}
