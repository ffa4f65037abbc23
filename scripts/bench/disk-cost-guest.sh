# SPDX-License-Identifier: MIT OR Apache-2.0
# For scripts that measure what a guest's disk costs, by `. ./disk-cost-guest.sh` on an emulated host. Makes disks/disk, a disk in memory, and measure.cpio,
# an initrd behind guests/linux' own whose first process measures and switches the guest off. cmdline is the guest's command line;
# `only=KIND` behind it measures one kind (disk_cost.rs).
mkdir -p guest/bin disks
cp disk_cost guest/bin
cat >guest/measure <<'SH'
#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec >/dev/ttyS0 2>&1
modprobe virtio_pci
modprobe virtio_blk
until [ -b /dev/vda ]; do sleep 0.1; done
# What the kernel does when it has started is not to be measured.
sleep 1
only=
for word in $(cat /proc/cmdline); do
	case $word in only=*) only=${word#*=} ;; esac
done
disk_cost /dev/vda $only
poweroff -f
SH
chmod +x guest/measure
(cd guest && find measure bin/disk_cost | cpio -o -H newc 2>/dev/null) >measure.cpio
mount -t tmpfs disks disks
dd if=/dev/zero of=disks/disk bs=1M count=16 2>/dev/null
cmdline="console=ttyS0 quiet cryptomgr.notests mitigations=off panic=-1 rdinit=/measure"
