# SPDX-License-Identifier: MIT OR Apache-2.0
# Disks that an image brings along, on the lightweight kernel: Linux' own drivers find them, write to one and not to the other.
. "$TOP/tests/lwk/common.sh"
guests=$TOP/build/guests
printf 'what the image brings along' >words
# The console's shell reads this first.
mkdir etc
cat >etc/shrc <<'SH'
modprobe virtio_pci && modprobe virtio_blk && modprobe ext4
echo "guest: vda $(cat /sys/block/vda/size) sectors, $(ls /sys/block/vda/mq | wc -l) queues, serial $(cat /sys/block/vda/serial)"
echo "guest: vdb $(cat /sys/block/vdb/size) sectors, ro $(cat /sys/block/vdb/ro): $(head -c 27 /dev/vdb)"
mkfs.ext4 -q /dev/vda && mount /dev/vda /tmp && cp /bin/busybox /tmp/ && umount /tmp && e2fsck -fn /dev/vda >/dev/null 2>&1 &&
	mount -o ro /dev/vda /tmp && cmp /tmp/busybox /bin/busybox && umount /tmp && echo "guest: what was written is read"
echo >/dev/vdb 2>/dev/null || echo "guest: vdb takes no write"
echo "guest: worries: $(dmesg -r | grep "^<[0-4]>" | grep -vc amd_pstate)"
poweroff -f
SH
printf '%s\n' etc etc/shrc | V3VEE_CWD=$PWD in-root --bind "$PWD" cpio --quiet -o -H newc >shrc.cpio
cat >disk.toml <<TOML
name = "disk"
memory = "192M"
vcpus = 2
kernel = "$guests/linux/vmlinuz-6.12"
initrd = ["$guests/linux/initramfs", "$guests/disk/modules-6.12.cpio", "$guests/disk/tools.cpio", "shrc.cpio"]
cmdline = "console=ttyS0 quiet v3.token=disk"
[[disk]]
size = "32M"
[[disk]]
file = "words"
size = "4K"
read_only = true
TOML
v3 build disk.toml -o disk.img
lwk_run --image disk.img:1-2 --cpus 3 --timeout 300
check "it powers off" said '^lwk: disk: the guest powered off'
check "an empty disk, a queue for each virtual CPU, named by its id" said '^guest: vda 65536 sectors, 2 queues, serial disk$'
check "a disk with contents, which is not to be written" said '^guest: vdb 8 sectors, ro 1: what the image brings along$'
check "a file system is made and checked, and holds what was written" said '^guest: what was written is read$'
check "the other takes no write" said '^guest: vdb takes no write$'
check "the guest's kernel complains of nothing" said '^guest: worries: 0$'
