# SPDX-License-Identifier: MIT OR Apache-2.0
# What 4 KiB of a disk cost a guest under KVM with QEMU: beside disk-cost.sh. To be run by hand, behind `guests/disk/build qemu`:
#   scripts/testbed run --icount --no-module --timeout 1200 --add build/tools/disk_cost --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz \
#       --add build/guests/disk/modules-7.cpio --add build/guests/disk/qemu.cpio --add scripts/bench/disk-cost-guest.sh \
#       --add scripts/bench/qemu-kvm.sh --add scripts/bench/disk-cost-kvm.sh -- sh ./disk-cost-kvm.sh write-1 read-1 write-32 read-32
# It is no test: the QEMU that emulates the host, 11.1, delivers an injected interrupt a second time if its clock's next deadline comes before the
# guest's next exit, and a guest that just then holds the interrupt's lock spins for ever. Then run it again, with fewer kinds.
. ./disk-cost-guest.sh
. ./qemu-kvm.sh
# Each begins at a multiple of four bytes.
for part in initramfs modules-7.cpio measure.cpio; do
	cat $part
	head -c $((-$(stat -L -c %s $part) & 3)) /dev/zero
done >initrd
for kind; do
	for how in aio=threads: aio=native: aio=io_uring: aio=threads:,iothread=t aio=native:,iothread=t; do
		echo "KVM, $how"
		$qemu_kvm -m 256 -kernel vmlinuz -initrd initrd -append "$cmdline only=$kind" -object iothread,id=t \
			-drive file=disks/disk,if=none,id=d,format=raw,cache=none,${how%%:*} -device virtio-blk-pci,drive=d${how#*:} </dev/null
	done
done
