// SPDX-License-Identifier: GPL-2.0
/*
 * Files and block devices that are guests' disks: see file_store.rs, which declares these functions and knows the numbers.
 */
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/cred.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fsnotify.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/workqueue.h>

#define DISK_IS_OURS		1
#define DISK_HAS_NO_BLOCKS	2
#define DISK_CANNOT_BE_READ	3
#define DISK_CANNOT_BE_WRITTEN	4
#define DISK_APPENDS		5
#define DISK_IS_EMPTY		6
#define DISK_IS_CUT		7

/* How many requests of a disk are worked on at once. */
#define MOST_AT_ONCE		16

/* What a disk is like. */
struct v3vee_disk_info {
	u64 bytes;
	u32 block_bytes;
	u32 physical_block_bytes;
	bool can_discard;
	bool can_write_zeroes;
};

/* A file, or a block device, that a VM holds. */
struct v3vee_disk {
	struct file *file;
	struct workqueue_struct *workers;
};

/* Work for a thread of a disk's. */
struct v3vee_disk_work {
	struct work_struct work;
	void (*run)(void *context);
	void *context;
};

/* The inode of the bytes: of a block device one, however many nodes lead to it. */
static struct inode *inode_of(struct file *file)
{
	return file->f_mapping->host;
}

/* What speaks against a file as a disk; 0 if nothing does. */
int v3vee_disk_fault(struct file *file, bool write);
int v3vee_disk_fault(struct file *file, bool write)
{
	umode_t mode = file_inode(file)->i_mode;

	if (file->f_op->owner == THIS_MODULE)
		return DISK_IS_OURS;
	if ((!S_ISREG(mode) && !S_ISBLK(mode)) || IS_ANON_FILE(file_inode(file)))
		return DISK_HAS_NO_BLOCKS;
	if (!(file->f_mode & FMODE_READ))
		return DISK_CANNOT_BE_READ;
	if (write && !(file->f_mode & FMODE_WRITE))
		return DISK_CANNOT_BE_WRITTEN;
	if (!file->f_op->read_iter || (write && !file->f_op->write_iter))
		return DISK_HAS_NO_BLOCKS;
	/* Whatever position is written to, the bytes would go to the end. */
	if (write && ((file->f_flags & O_APPEND) || IS_APPEND(file_inode(file))))
		return DISK_APPENDS;
	if (!i_size_read(inode_of(file)))
		return DISK_IS_EMPTY;
	if (i_size_read(inode_of(file)) % SECTOR_SIZE)
		return DISK_IS_CUT;
	return 0;
}

/* By which one knows that two files are the same disk, as long as either is held. */
const void *v3vee_disk_identity(struct file *file);
const void *v3vee_disk_identity(struct file *file)
{
	return inode_of(file);
}

/* Takes a reference to the file of its own. */
struct v3vee_disk *v3vee_disk_new(struct file *file);
struct v3vee_disk *v3vee_disk_new(struct file *file)
{
	struct v3vee_disk *disk = kzalloc(sizeof(*disk), GFP_KERNEL_ACCOUNT);

	if (!disk)
		return NULL;
	disk->workers = alloc_workqueue("v3vee_disk", WQ_UNBOUND, MOST_AT_ONCE);
	if (!disk->workers) {
		kfree(disk);
		return NULL;
	}
	disk->file = get_file(file);
	return disk;
}

/* All its work has ended when this returns. */
void v3vee_disk_free(struct v3vee_disk *disk);
void v3vee_disk_free(struct v3vee_disk *disk)
{
	destroy_workqueue(disk->workers);
	fput(disk->file);
	kfree(disk);
}

void v3vee_disk_info(struct v3vee_disk *disk, struct v3vee_disk_info *info);
void v3vee_disk_info(struct v3vee_disk *disk, struct v3vee_disk_info *info)
{
	struct file *file = disk->file;
	struct inode *inode = inode_of(file);
	bool writes = file->f_mode & FMODE_WRITE, allocates = writes && file->f_op->fallocate;

	*info = (struct v3vee_disk_info) {
		.bytes = i_size_read(inode),
		.block_bytes = SECTOR_SIZE,
		.physical_block_bytes = PAGE_SIZE,
		.can_discard = allocates,
		.can_write_zeroes = writes,
	};
	if (S_ISBLK(inode->i_mode)) {
		struct block_device *device = I_BDEV(inode);

		info->block_bytes = bdev_logical_block_size(device);
		info->physical_block_bytes = bdev_physical_block_size(device);
		info->can_discard = allocates && bdev_max_discard_sectors(device);
	} else if ((file->f_flags & O_DIRECT) && inode->i_sb->s_bdev) {
		info->block_bytes = bdev_logical_block_size(inode->i_sb->s_bdev);
	}
}

static void run_work(struct work_struct *work)
{
	struct v3vee_disk_work *of = container_of(work, struct v3vee_disk_work, work);

	/* @of may be gone behind this. */
	of->run(of->context);
}

/* Has a thread of the disk's call @run. @work stays where it is until then. */
void v3vee_disk_queue(struct v3vee_disk *disk, struct v3vee_disk_work *work, void (*run)(void *context), void *context);
void v3vee_disk_queue(struct v3vee_disk *disk, struct v3vee_disk_work *work, void (*run)(void *context), void *context)
{
	INIT_WORK(&work->work, run_work);
	work->run = run;
	work->context = context;
	queue_work(disk->workers, &work->work);
}

unsigned long v3vee_disk_work_bytes(void);
unsigned long v3vee_disk_work_bytes(void)
{
	return sizeof(struct v3vee_disk_work);
}

/* Returns when all work that was queued has ended. */
void v3vee_disk_drain(struct v3vee_disk *disk);
void v3vee_disk_drain(struct v3vee_disk *disk)
{
	flush_workqueue(disk->workers);
}

/* A piece of memory: before the transfer where it is and how long, then as the kernel has it. */
union v3vee_disk_piece {
	struct {
		u64 at;
		u64 bytes;
	};
	struct bio_vec vec;
};
static_assert(sizeof(union v3vee_disk_piece) == sizeof(struct bio_vec));

/* Has @iter go over @pieces, which are as the kernel has them then. */
static void take_pieces(struct iov_iter *iter, bool write, union v3vee_disk_piece *pieces, unsigned long count, u64 bytes)
{
	unsigned long n;

	for (n = 0; n < count; n++) {
		u64 where = pieces[n].at, length = pieces[n].bytes;

		bvec_set_page(&pieces[n].vec, pfn_to_page(where >> PAGE_SHIFT), length, offset_in_page(where));
	}
	iov_iter_bvec(iter, write ? ITER_SOURCE : ITER_DEST, &pieces->vec, count, bytes);
}

/*
 * Reads, or writes, as whoever opened the file: this thread may do more than that one. Returns 0 or an error. A file that ends before
 * the last byte gives one.
 */
int v3vee_disk_transfer(struct v3vee_disk *disk, bool write, bool through, u64 at, union v3vee_disk_piece *pieces,
			unsigned long count, u64 bytes);
int v3vee_disk_transfer(struct v3vee_disk *disk, bool write, bool through, u64 at, union v3vee_disk_piece *pieces,
			unsigned long count, u64 bytes)
{
	const struct cred *before = override_creds(disk->file->f_cred);
	struct iov_iter iter;
	loff_t pos = at;
	ssize_t done = 0;

	take_pieces(&iter, write, pieces, count, bytes);
	while (iov_iter_count(&iter)) {
		if (write)
			done = vfs_iter_write(disk->file, &iter, &pos, through ? RWF_DSYNC : 0);
		else
			done = vfs_iter_read(disk->file, &iter, &pos, 0);
		if (done <= 0)
			break;
	}
	revert_creds(before);
	if (!iov_iter_count(&iter))
		return 0;
	return done < 0 ? done : -EIO;
}

/*
 * Does the same if nothing has to be waited for: the file is in memory, or the page cache has what it takes. false: nothing is known of the
 * transfer, and v3vee_disk_transfer is to make it, with pieces as they were before.
 */
bool v3vee_disk_transfer_here(struct v3vee_disk *disk, bool write, bool through, u64 at, union v3vee_disk_piece *pieces,
			      unsigned long count, u64 bytes);
bool v3vee_disk_transfer_here(struct v3vee_disk *disk, bool write, bool through, u64 at, union v3vee_disk_piece *pieces,
			      unsigned long count, u64 bytes)
{
	struct file *file = disk->file;
	bool in_memory = shmem_mapping(file->f_mapping);
	const struct cred *before;
	struct iov_iter iter;
	struct kiocb iocb;
	ssize_t done;

	init_sync_kiocb(&iocb, file);
	iocb.ki_pos = at;
	if (!in_memory) {
		/* Direct transfers wait for the device, and so does whoever writes through a cache. */
		if (!(file->f_mode & FMODE_NOWAIT) || (iocb.ki_flags & IOCB_DIRECT) || through)
			return false;
		iocb.ki_flags |= IOCB_NOWAIT;
	}
	if (write && !file_start_write_trylock(file))
		return false;
	take_pieces(&iter, write, pieces, count, bytes);
	before = override_creds(file->f_cred);
	if (write) {
		/* vfs_iocb_iter_write would wait as long as the file system is frozen. */
		done = file->f_op->write_iter(&iocb, &iter);
		if (done > 0)
			fsnotify_modify(file);
		file_end_write(file);
	} else {
		done = vfs_iocb_iter_read(file, &iocb, &iter);
	}
	revert_creds(before);
	return done == bytes;
}

int v3vee_disk_flush(struct v3vee_disk *disk);
int v3vee_disk_flush(struct v3vee_disk *disk)
{
	return vfs_fsync(disk->file, 1);
}

/* Makes the file so long. A block device has its own length. */
int v3vee_disk_resize(struct v3vee_disk *disk, u64 bytes);
int v3vee_disk_resize(struct v3vee_disk *disk, u64 bytes)
{
	const struct cred *before;
	int err;

	if (!S_ISREG(inode_of(disk->file)->i_mode))
		return -EOPNOTSUPP;
	if (bytes > MAX_LFS_FILESIZE)
		return -EFBIG;
	before = override_creds(disk->file->f_cred);
	err = vfs_truncate(&disk->file->f_path, bytes);
	revert_creds(before);
	return err;
}

/* The most zeroes that one call writes. */
#define ZERO_PIECES		16

/* Writes zeroes, as whoever opened the file. */
static int write_zeroes(struct v3vee_disk *disk, u64 at, u64 bytes)
{
	struct bio_vec pieces[ZERO_PIECES];
	unsigned int n;

	for (n = 0; n < ZERO_PIECES; n++)
		bvec_set_page(&pieces[n], ZERO_PAGE(0), PAGE_SIZE, 0);
	while (bytes) {
		struct iov_iter iter;
		loff_t pos = at;
		ssize_t done;

		iov_iter_bvec(&iter, ITER_SOURCE, pieces, ZERO_PIECES, min_t(u64, bytes, ZERO_PIECES * PAGE_SIZE));
		done = vfs_iter_write(disk->file, &iter, &pos, 0);
		if (done <= 0)
			return done ?: -EIO;
		at += done;
		bytes -= done;
		cond_resched();
	}
	return 0;
}

/* Nobody needs what is there. A file system that cannot give the space back keeps it. */
int v3vee_disk_discard(struct v3vee_disk *disk, u64 at, u64 bytes);
int v3vee_disk_discard(struct v3vee_disk *disk, u64 at, u64 bytes)
{
	const struct cred *before = override_creds(disk->file->f_cred);
	int err = vfs_fallocate(disk->file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, at, bytes);

	revert_creds(before);
	return err == -EOPNOTSUPP ? 0 : err;
}

/* Has zeroes there. @discard: the space may be given back. */
int v3vee_disk_zero(struct v3vee_disk *disk, bool discard, u64 at, u64 bytes);
int v3vee_disk_zero(struct v3vee_disk *disk, bool discard, u64 at, u64 bytes)
{
	const struct cred *before = override_creds(disk->file->f_cred);
	int mode = FALLOC_FL_KEEP_SIZE | (discard ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
	int err = vfs_fallocate(disk->file, mode, at, bytes);

	/* Not every file system can do without having them written. */
	if (err == -EOPNOTSUPP)
		err = write_zeroes(disk, at, bytes);
	revert_creds(before);
	return err;
}
