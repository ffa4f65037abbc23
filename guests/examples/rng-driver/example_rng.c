// SPDX-License-Identifier: GPL-2.0
/*
 * Linux driver of v3vee's example device, palacios_core/src/devices/example_rng.rs. A read of /dev/example-rngSLOT has the device
 * put numbers into memory, and sleeps until its interrupt. Documentation/devices.md explains it.
 */
#include <linux/interrupt.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

enum { STATUS = 0x04, ADDRESS = 0x08, BYTES = 0x10, DOORBELL = 0x800 };
#define COUNT GENMASK(30, 0)	/* In STATUS: how many transfers ended, */
#define FAILED BIT(31)		/* and whether the last one failed. */
#define GONE (~0u)		/* What a read finds where no device answers. */
#define LOST (60 * HZ)		/* No transfer takes so long: its interrupt is lost. */

struct rng {
	refcount_t refs;	/* The driver has one, and each open file. */
	struct miscdevice misc;
	char name[24];
	struct mutex lock;	/* For one transfer at a time, and for `gone`. */
	bool gone;
	void __iomem *regs;
	void *buffer;		/* A page, where the processor sees it, */
	dma_addr_t at;		/* and where the device does. */
	wait_queue_head_t wait;
	u32 status;		/* As of the last interrupt. */
};

// ANCHOR: transfer
static irqreturn_t rng_interrupt(int irq, void *data)
{
	struct rng *rng = data;
	u32 status = readl(rng->regs + STATUS);	/* The device takes its interrupt back. */

	/* Devices share pins: the interrupt is ours if a transfer has ended since. */
	if (status == GONE || !((status ^ rng->status) & COUNT))
		return IRQ_NONE;
	WRITE_ONCE(rng->status, status);
	wake_up(&rng->wait);
	return IRQ_HANDLED;
}

/* Has the device put so many bytes into the buffer. */
static int rng_fill(struct rng *rng, u32 bytes)
{
	u32 before = READ_ONCE(rng->status);

	writeq(rng->at, rng->regs + ADDRESS);
	writel(bytes, rng->regs + BYTES);
	writel(1, rng->regs + DOORBELL);
	if (!wait_event_timeout(rng->wait, (READ_ONCE(rng->status) ^ before) & COUNT, LOST))
		return -ETIMEDOUT;
	return READ_ONCE(rng->status) & FAILED ? -EIO : 0;
}
// ANCHOR_END: transfer

static struct rng *rng_of(struct file *file)
{
	return container_of(file->private_data, struct rng, misc);
}

static ssize_t rng_read(struct file *file, char __user *to, size_t bytes, loff_t *offset)
{
	struct rng *rng = rng_of(file);
	ssize_t done = min(bytes, PAGE_SIZE);

	if (mutex_lock_interruptible(&rng->lock))
		return -ERESTARTSYS;
	int error = rng->gone ? -ENODEV : rng_fill(rng, done);
	if (!error && copy_to_user(to, rng->buffer, done))
		error = -EFAULT;
	mutex_unlock(&rng->lock);
	return error ?: done;
}

static void rng_put(void *data)
{
	struct rng *rng = data;

	if (refcount_dec_and_test(&rng->refs))
		kfree(rng);
}

static int rng_open(struct inode *inode, struct file *file)
{
	refcount_inc(&rng_of(file)->refs);
	return 0;
}

static int rng_release(struct inode *inode, struct file *file)
{
	rng_put(rng_of(file));
	return 0;
}

static const struct file_operations rng_files = {
	.owner = THIS_MODULE, .open = rng_open, .release = rng_release, .read = rng_read,
};

// ANCHOR: probe
/* Linux has found the device. What pcim_, dmam_ and devm_ functions do is undone by itself, in the reverse order. */
static int rng_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct rng *rng = kzalloc(sizeof(*rng), GFP_KERNEL);

	if (!rng)
		return -ENOMEM;
	refcount_set(&rng->refs, 1);
	mutex_init(&rng->lock);
	init_waitqueue_head(&rng->wait);
	pci_set_drvdata(pdev, rng);
	int error = devm_add_action_or_reset(dev, rng_put, rng) ?: pcim_enable_device(pdev) ?:
		    dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (error)
		return error;
	rng->regs = pcim_iomap_region(pdev, 0, KBUILD_MODNAME);
	if (IS_ERR(rng->regs))
		return PTR_ERR(rng->regs);
	rng->buffer = dmam_alloc_coherent(dev, PAGE_SIZE, &rng->at, GFP_KERNEL);
	if (!rng->buffer)
		return -ENOMEM;
	pci_set_master(pdev);
	rng->status = readl(rng->regs + STATUS);
	snprintf(rng->name, sizeof(rng->name), "example-rng%u", PCI_SLOT(pdev->devfn));
	error = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSIX | PCI_IRQ_INTX);
	if (error > 0)
		error = devm_request_irq(dev, pci_irq_vector(pdev, 0), rng_interrupt, IRQF_SHARED, rng->name, rng);
	if (error)
		return error;
	rng->misc = (struct miscdevice){ .minor = MISC_DYNAMIC_MINOR, .name = rng->name, .fops = &rng_files, .parent = dev };
	return misc_register(&rng->misc);
}
// ANCHOR_END: probe

/* The device goes, or the driver. Files may be open still, whose reads find that it is gone. */
static void rng_remove(struct pci_dev *pdev)
{
	struct rng *rng = pci_get_drvdata(pdev);

	misc_deregister(&rng->misc);
	mutex_lock(&rng->lock);
	rng->gone = true;
	mutex_unlock(&rng->lock);
	pci_clear_master(pdev);
}

static const struct pci_device_id rng_ids[] = { { PCI_DEVICE(0x1234, 0x7633) }, {} };
MODULE_DEVICE_TABLE(pci, rng_ids);

static struct pci_driver rng_driver = { .name = KBUILD_MODNAME, .id_table = rng_ids, .probe = rng_probe, .remove = rng_remove };
module_pci_driver(rng_driver);

MODULE_DESCRIPTION("Driver of v3vee's example device");
MODULE_LICENSE("GPL");
