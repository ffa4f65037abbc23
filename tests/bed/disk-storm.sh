# SPDX-License-Identifier: MIT OR Apache-2.0
# A Linux that works on its disks all the time: they become larger and smaller, go while they are read and come again, and the VM is saved and loaded in
# the middle of it all. What was written is read again, and nothing is held.
# bed test: --timeout 900 --kernel debug
# bed soak: --timeout 7200
# bed: --add build/guests/linux/initramfs --add build/guests/disk/tools.cpio
# bed: --add build/guests/linux/vmlinuz-6.12 --add build/guests/disk/modules-6.12.cpio --add build/guests/disk/fio.cpio
. ./common.sh

if soak; then comings=200 saves=20; else comings=3 saves=1; fi
guest=storm
truncate -s 256M disk.img
truncate -s 64M other.img
# Memory that the guest has freed is of zeroes, and so not saved.
cat >storm.toml <<TOML
name = "storm"
memory = "384M"
vcpus = 4
kernel = "vmlinuz-6.12"
initrd = ["initramfs", "modules-6.12.cpio", "tools.cpio", "fio.cpio"]
cmdline = "console=ttyS0 quiet init_on_free=1 v3.token=storm"
TOML
v3 create -b storm.toml >/dev/null
check "a disk is attached" [ "$(v3 attach storm disk disk.img)" = disk ]
check "and another" [ "$(v3 attach storm disk other.img --id other)" = other ]
check "and a random-number generator" [ "$(v3 attach storm rng)" = rng ]
hears
v3 launch storm
check "Linux comes up" soon guest_says "token storm"
# What guests are asked stands in guests/disk/steps.
echo "$guest_run; . steps" >&3
check "it finds its disks" does drivers drivers disk other
bytes() { stat -c %s $1; }

check "a disk becomes larger" v3 resize storm disk 512M
check "so does its file" [ "$(bytes disk.img)" = 536870912 ]
check "the guest sees that without a boot" does larger is_sized vda 1048576
check "and writes at the new end" does written dd if=/dev/urandom of=/dev/vda bs=1M seek=511 count=1 conv=fsync
check "which is in the file" [ "$(ask last last vda)" = "$(tail -c 1048576 disk.img | md5sum)" ]
check "it does not become smaller by mistake" refused "would lose some" v3 resize storm disk 256M
check "it has whole blocks" refused "multiple of 512" v3 resize storm disk 600000001
check "what is no device has no size" refused none v3 resize storm none 1G
check "none of these changed the file" [ "$(bytes disk.img)" = 536870912 ]
truncate -s 128M other.img
check "a disk takes the size that its file was given" v3 resize storm other
check "the guest sees that, too" does follows is_sized vdb 262144
check "a disk becomes smaller if that is said" v3 resize --shrink storm other 64M
check "and the guest sees it" does smaller is_sized vdb 131072

echo 'keeps_reading other &' >&3
for n in $(seq $comings); do
	check "it is read, $n" does read$n is_read other
	check "it goes while it is read, $n" v3 detach storm other
	check "the guest has let it go, $n" does gone$n goes other
	check "it comes again, $n" [ "$(v3 attach storm disk other.img --id other)" = other ]
done
check "it is read at last" does read is_read other
echo 'touch /tmp/enough; wait; rm /tmp/enough' >&3

# Nothing that goes with the VM is saved.
truncate -s 1M tried.img
check "a snapshot is attached" [ "$(v3 attach storm disk tried.img,snapshot --id tried)" = tried ]
check "with it the VM is not saved" refused "keeps in memory what its guest wrote" v3 save storm storm.v3
check "it goes" v3 detach storm tried

echo 'keeps_working --filename=/dev/vda --offset_increment=16M &' >&3
load() { v3 load storm.v3 --end other=disk:other.img "$@"; }
# away N: it is saved in the middle of its work, and freed. back N: loaded, it goes on.
away() {
	does before$1 goes_on vda && v3 save --pause storm storm.v3 || return 1
	exec 3>&-
	v3 free -f storm || return 1
	wait $stream
	true
}
back() { load --end disk=disk:disk.img >/dev/null && hears && does behind$1 goes_on vda; }
check "saved while it writes, 1" away 1
check "it is not loaded without a disk" refused "has a disk disk: say where its bytes are" load
check "nor with a file that is not there" refused "absent.img: no such file" load --end disk=disk:absent.img
truncate -s 1M tiny.img
if soak; then check "nor with one that is smaller than the disk was" refused "the disk was larger" load --end disk=disk:tiny.img; fi
check "no VM is left of these" [ "$(v3 list | grep -c storm)" = 0 ]
check "loaded, it goes on, 1" back 1
for n in $(seq 2 $saves); do
	check "saved while it writes, $n" away $n
	check "loaded, it goes on, $n" back $n
done
check "saved without a pause" v3 save storm storm.v3
check "it goes on" does on goes_on vda
echo 'touch /tmp/enough' >&3
check "all that was written was read again" soon guest_says "worked, 4"
check "the kernel complains of nothing" [ "$(ask worries worries)" = "" ]
powers_off "it powers off"
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
