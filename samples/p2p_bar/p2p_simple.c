// SPDX-License-Identifier: GPL-2.0
/*
 * C sample of a simple device whose memory other devices can use: QEMU's
 * ivshmem-plain.
 *
 * BAR 2 is memory. /dev/p2p_simple gives it to any device that has a route to
 * it, as the driver of samples/rust/rust_p2p_simple.rs does:
 *
 * - ioctl(fd, _IOW('V', 0, __u64[3]), &{offset, size, read_only}): a dma-buf of
 *   a range;
 * - ioctl(fd, _IOW('V', 1, __u64), &size): one whose pages are assigned when
 *   they are needed;
 * - mmap(fd), shared, at any offset: such pages, which end with the mapping.
 */

#include <linux/container_of.h>
#include <linux/dma-buf.h>
#include <linux/fs.h>
#include <linux/ioctl.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/p2p_bar.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#define P2P_SIMPLE_EXPORT	_IOW('V', 0, __u64[3])
#define P2P_SIMPLE_EXPORT_LAZY	_IOW('V', 1, __u64)

static unsigned int p2p_simple_nr = 2;
module_param_named(bar, p2p_simple_nr, uint, 0644);
MODULE_PARM_DESC(bar, "BAR of devices that are bound from now on");

struct p2p_simple {
	struct p2p_bar *bar;
	struct miscdevice misc;
};

/* The file may outlive the device, and has a reference of its own. */
static int p2p_simple_open(struct inode *inode, struct file *file)
{
	struct p2p_simple *simple = container_of(file->private_data,
						 struct p2p_simple, misc);

	file->private_data = p2p_bar_get(simple->bar);
	return 0;
}

static int p2p_simple_release(struct inode *inode, struct file *file)
{
	p2p_bar_put(file->private_data);
	return 0;
}

static struct dma_buf *p2p_simple_export(struct p2p_bar *bar, void __user *arg)
{
	u64 range[3];

	if (copy_from_user(range, arg, sizeof(range)))
		return ERR_PTR(-EFAULT);
	if (range[2] > 1)
		return ERR_PTR(-EINVAL);
	return p2p_bar_export(bar, range[0], range[1],
			      range[2] ? O_RDONLY : O_RDWR);
}

static struct dma_buf *p2p_simple_export_lazy(struct p2p_bar *bar,
					      void __user *arg)
{
	u64 size;

	if (copy_from_user(&size, arg, sizeof(size)))
		return ERR_PTR(-EFAULT);
	return p2p_bar_export_lazy(bar, size, O_RDWR);
}

static long p2p_simple_ioctl(struct file *file, unsigned int cmd,
			     unsigned long arg)
{
	struct p2p_bar *bar = file->private_data;
	struct dma_buf *dmabuf;
	int fd;

	switch (cmd) {
	case P2P_SIMPLE_EXPORT:
		dmabuf = p2p_simple_export(bar, (void __user *)arg);
		break;
	case P2P_SIMPLE_EXPORT_LAZY:
		dmabuf = p2p_simple_export_lazy(bar, (void __user *)arg);
		break;
	default:
		return -ENOTTY;
	}
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	fd = dma_buf_fd(dmabuf, O_CLOEXEC);
	if (fd < 0)
		dma_buf_put(dmabuf);
	return fd;
}

static int p2p_simple_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct dma_buf *dmabuf;
	int ret;

	dmabuf = p2p_bar_export_lazy(file->private_data,
				     vma->vm_end - vma->vm_start, O_RDWR);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	ret = dma_buf_mmap(dmabuf, vma, 0);
	/* The mapping has a reference of its own. */
	dma_buf_put(dmabuf);
	return ret;
}

static const struct file_operations p2p_simple_fops = {
	.owner = THIS_MODULE,
	.open = p2p_simple_open,
	.release = p2p_simple_release,
	.unlocked_ioctl = p2p_simple_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = p2p_simple_mmap,
};

static int p2p_simple_probe(struct pci_dev *pdev,
			    const struct pci_device_id *id)
{
	struct p2p_simple *simple;
	int ret;

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	simple = devm_kzalloc(&pdev->dev, sizeof(*simple), GFP_KERNEL);
	if (!simple)
		return -ENOMEM;
	simple->bar = pcim_p2p_bar(pdev, p2p_simple_nr);
	if (IS_ERR(simple->bar))
		return PTR_ERR(simple->bar);
	simple->misc.minor = MISC_DYNAMIC_MINOR;
	simple->misc.name = "p2p_simple";
	simple->misc.fops = &p2p_simple_fops;
	pci_set_drvdata(pdev, simple);
	return misc_register(&simple->misc);
}

static void p2p_simple_remove(struct pci_dev *pdev)
{
	struct p2p_simple *simple = pci_get_drvdata(pdev);

	misc_deregister(&simple->misc);
	/*
	 * This device needs no stopping. One that does has its BAR revoked
	 * before; otherwise the core revokes it when this has returned.
	 */
	p2p_bar_revoke(simple->bar);
}

static const struct pci_device_id p2p_simple_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT_QUMRANET, 0x1110) },
	{ }
};
MODULE_DEVICE_TABLE(pci, p2p_simple_ids);

static struct pci_driver p2p_simple_driver = {
	.name = "p2p_simple",
	.id_table = p2p_simple_ids,
	.probe = p2p_simple_probe,
	.remove = p2p_simple_remove,
};
module_pci_driver(p2p_simple_driver);

MODULE_AUTHOR("The p2pgpu developers");
MODULE_DESCRIPTION("C sample of a PCI device whose memory other devices use");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
