// SPDX-License-Identifier: GPL-2.0
/*
 * What only C macros and inline functions give: interrupt flags, task states, thread flags, static keys, page flags.
 * Declared for Rust in ffi.rs.
 */
#include <linux/cpumask.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/irqflags.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/nodemask.h>
#include <linux/poll.h>
#include <linux/random.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/isolation.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/suspend.h>
#include <linux/syscore_ops.h>
#include <linux/timekeeping.h>
#include <linux/timer.h>
#include <linux/uio.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>
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

/* Fills memory with random bytes; not before the kernel has gathered enough to begin with. */
bool v3vee_random(void *to, size_t bytes);
bool v3vee_random(void *to, size_t bytes)
{
	if (!rng_is_initialized())
		return false;
	get_random_bytes(to, bytes);
	return true;
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

/* Files that a VM reads and writes: see descriptor.rs, which knows these numbers. */

#define FILE_IS_OURS		1
#define FILE_HAS_NO_BYTES	2
#define FILE_CANNOT_BE_READ	3
#define FILE_CANNOT_BE_WRITTEN	4
#define FILE_WAITS		5

/* What speaks against a file as a VM's; 0 if nothing does. */
int v3vee_file_fault(struct file *file, bool input, bool output);
int v3vee_file_fault(struct file *file, bool input, bool output)
{
	struct inode *inode = file_inode(file);
	umode_t mode = inode->i_mode;

	/* A VM that held a stream of itself would wait for itself. */
	if (file->f_op->owner == THIS_MODULE)
		return FILE_IS_OURS;
	if (!S_ISREG(mode) && !S_ISFIFO(mode) && !S_ISSOCK(mode) && !S_ISCHR(mode))
		return FILE_HAS_NO_BYTES;
	if (input && !(file->f_mode & FMODE_READ))
		return FILE_CANNOT_BE_READ;
	if (output && !(file->f_mode & FMODE_WRITE))
		return FILE_CANNOT_BE_WRITTEN;
	/* Event counters and the like; and what only takes memory of user space. */
	if (IS_ANON_FILE(inode) || (input && !file->f_op->read_iter) || (output && !file->f_op->write_iter))
		return FILE_HAS_NO_BYTES;
	return S_ISREG(mode) || (file->f_flags & O_NONBLOCK) ? 0 : FILE_WAITS;
}

/* How soon a file is looked at again that does not say when it comes back. */
#define LOOK_AGAIN		(HZ / 4)
/* How long a file may wait that was said not to. */
#define LONGEST_WAIT		(HZ / 10)

/* A file that a VM holds. */
struct v3vee_far_end {
	struct file *file;
	/* Called in any context from v3vee_far_end_watch() to v3vee_far_end_free(). */
	void (*wake)(void *context);
	void *context;
	struct watched_queue *queues;
	poll_table table;
	bool lacks_memory;
	struct timer_list look;
	struct timer_list limit;
	/* Who reads or writes. */
	struct task_struct *task;
};

/* A wait queue on which a far end waits. Files have one, or one for readers and one for writers. */
struct watched_queue {
	struct watched_queue *next;
	struct v3vee_far_end *end;
	/* NULL: it is gone. */
	struct wait_queue_head *head;
	struct wait_queue_entry entry;
};

static void look_again(struct timer_list *timer)
{
	struct v3vee_far_end *end = timer_container_of(end, timer, look);

	end->wake(end->context);
}

/* A thread that seems to have a signal does not sleep in any wait that a signal may end. */
static void end_wait(struct timer_list *timer)
{
	struct v3vee_far_end *end = timer_container_of(end, timer, limit);

	set_tsk_thread_flag(end->task, TIF_SIGPENDING);
	wake_up_process(end->task);
}

/* Takes a reference to the file of its own. */
struct v3vee_far_end *v3vee_far_end_new(struct file *file);
struct v3vee_far_end *v3vee_far_end_new(struct file *file)
{
	struct v3vee_far_end *end = kzalloc(sizeof(*end), GFP_KERNEL_ACCOUNT);

	if (!end)
		return NULL;
	end->file = get_file(file);
	timer_setup(&end->look, look_again, 0);
	timer_setup(&end->limit, end_wait, 0);
	return end;
}

/* Called under the lock of the queue, with interrupts off. */
static int woken(struct wait_queue_entry *entry, unsigned int mode, int flags, void *key)
{
	struct watched_queue *queue = container_of(entry, struct watched_queue, entry);

	queue->end->wake(queue->end->context);
	/*
	 * The queue goes before its file does. Its memory stays for an RCU grace period, so that leave_queue() may look at it. The
	 * last access to @queue: once there is no head, leave_queue() may free it.
	 */
	if (key_to_poll(key) & POLLFREE) {
		list_del_init(&entry->entry);
		smp_store_release(&queue->head, NULL);
	}
	return 0;
}

static void join_queue(struct file *file, struct wait_queue_head *head, poll_table *table)
{
	struct v3vee_far_end *end = container_of(table, struct v3vee_far_end, table);
	struct watched_queue *queue = kzalloc(sizeof(*queue), GFP_KERNEL_ACCOUNT);

	if (!queue) {
		end->lacks_memory = true;
		return;
	}
	init_waitqueue_func_entry(&queue->entry, woken);
	queue->end = end;
	queue->head = head;
	queue->next = end->queues;
	end->queues = queue;
	add_wait_queue(head, &queue->entry);
}

static void leave_queue(struct watched_queue *queue)
{
	struct wait_queue_head *head;

	/* Against woken(), which may see the queue off just now. */
	rcu_read_lock();
	head = smp_load_acquire(&queue->head);
	if (head)
		remove_wait_queue(head, &queue->entry);
	rcu_read_unlock();
}

/* Has @wake called whenever the file may have become ready. To be called once; false if there is no memory. */
bool v3vee_far_end_watch(struct v3vee_far_end *end, void (*wake)(void *context), void *context);
bool v3vee_far_end_watch(struct v3vee_far_end *end, void (*wake)(void *context), void *context)
{
	end->wake = wake;
	end->context = context;
	init_poll_funcptr(&end->table, join_queue);
	vfs_poll(end->file, &end->table);
	return !end->lacks_memory;
}

/* @wake is not called any more when this returns. */
void v3vee_far_end_free(struct v3vee_far_end *end);
void v3vee_far_end_free(struct v3vee_far_end *end)
{
	struct watched_queue *queue;

	while ((queue = end->queues)) {
		end->queues = queue->next;
		leave_queue(queue);
		kfree(queue);
	}
	timer_shutdown_sync(&end->look);
	timer_shutdown_sync(&end->limit);
	fput(end->file);
	kfree(end);
}

static ssize_t transfer(struct file *file, bool write, void *buf, size_t len)
{
	struct kvec vec = { .iov_base = buf, .iov_len = len };
	/* A file that can, is told not to wait at each call: its O_NONBLOCK may be taken away at any time. */
	bool never_waits = (file->f_mode & FMODE_NOWAIT) && !S_ISREG(file_inode(file)->i_mode);
	bool has_position = !(file->f_mode & FMODE_STREAM), locks_position = file->f_mode & FMODE_ATOMIC_POS;
	rwf_t flags = (never_waits ? RWF_NOWAIT : 0) | (write ? RWF_NOSIGNAL : 0);
	struct iov_iter iter;
	ssize_t done;
	loff_t pos;

	iov_iter_kvec(&iter, write ? ITER_SOURCE : ITER_DEST, &vec, 1, len);
	if (locks_position)
		mutex_lock(&file->f_pos_lock);
	pos = has_position ? file->f_pos : 0;
	if (write)
		done = vfs_iter_write(file, &iter, has_position ? &pos : NULL, flags);
	else
		done = vfs_iter_read(file, &iter, has_position ? &pos : NULL, flags);
	if (has_position && done > 0)
		file->f_pos = pos;
	if (locks_position)
		mutex_unlock(&file->f_pos_lock);
	return done;
}

/*
 * Reads, or writes, as whoever opened the file: this thread may do more than that one. Returns how much went, -EAGAIN if nothing
 * goes now, or another error if nobody is at the other end.
 */
ssize_t v3vee_far_end_transfer(struct v3vee_far_end *end, bool write, void *buf, size_t len);
ssize_t v3vee_far_end_transfer(struct v3vee_far_end *end, bool write, void *buf, size_t len)
{
	struct file *file = end->file;
	umode_t mode = file_inode(file)->i_mode;
	const struct cred *before = override_creds(file->f_cred);
	ssize_t done;

	/* What was said not to wait, and was then told otherwise, does so for this long. Disks take the time that they take. */
	end->task = current;
	if (!S_ISREG(mode))
		mod_timer(&end->limit, jiffies + LONGEST_WAIT);
	done = transfer(file, write, buf, len);
	if (!S_ISREG(mode)) {
		timer_delete_sync(&end->limit);
		recalc_sigpending();
	}
	revert_creds(before);

	if (done > 0 || done == -EAGAIN)
		return done;
	/*
	 * A terminal says nothing when it is opened at its other end, nor does a pipe, nor a disk when there is room. A socket does
	 * not come back, and a file gets no longer.
	 */
	if (end->wake && !S_ISSOCK(mode) && (write || !S_ISREG(mode)))
		mod_timer(&end->look, jiffies + LOOK_AGAIN);
	/* It was interrupted, or there was no memory. */
	if (done == -EINTR || done == -ERESTARTSYS || done == -ENOMEM)
		return -EAGAIN;
	return done < 0 ? done : -EPIPE;
}
