# SPDX-License-Identifier: MIT OR Apache-2.0
# Stock Linux has disks in files and block devices of the host's, and finds them as they should be; a file system on one stays whole under load and
# over a boot; what a guest may not write stays as it is; and what can be no disk is refused. On Bochs, one kernel looks at its disks.
# bed: --machines svm,vtx --timeout 1500
# bed test: --kernel stock
# bed: --add build/guests/linux/initramfs --add build/guests/disk/tools.cpio
# bed: --add build/guests/linux/vmlinuz-6.12 --add build/guests/disk/modules-6.12.cpio
# bed svm: --add build/guests/linux/vmlinuz-6.1 --add build/guests/disk/modules-6.1.cpio
# bed svm: --add build/guests/linux/vmlinuz-7 --add build/guests/disk/modules-7.cpio --add build/guests/disk/fio.cpio
. ./common.sh

# What guests are asked stands in guests/disk/steps.
# describe NAME SERIES VCPUS MEMORY [MORE]: makes a VM; MORE are further initrds.
describe() {
	cat >linux.toml <<TOML
name = "linux"
memory = "$4"
vcpus = $3
kernel = "vmlinuz-$2"
initrd = ["initramfs", "modules-$2.cpio", "tools.cpio"$5]
cmdline = "console=ttyS0 quiet v3.token=disks"
TOML
	v3 create -b linux.toml $1 >/dev/null
}
starts() {
	rm -f log
	hears
	v3 launch $guest
	check "$guest: it comes up" soon guest_says "token disks"
	echo "$guest_run; . steps" >&3
}
finish() {
	check "$guest: its kernel complains of nothing" [ "$(ask worries worries)" = "" ]
	powers_off "$guest: it powers off"
}
attached() { check "$guest: the disk $2 is attached" [ "$(v3 attach $guest disk $1 --id $2)" = $2 ]; }
# sum WORDS: the one in there.
sum() { echo "$1" | grep -oE '[0-9a-f]{32}'; }
sectors() { echo $(($(stat -c %s $1) / 512)); }
unchanged() { cmp fixed.img fixed.was && cmp tried.img tried.was; }

# finds NAME SERIES VCPUS MEMORY MORE [FILE]: a guest with a disk that it writes, one that is read-only, and a snapshot; with a fourth in FILE; and with
# a random-number generator. It finds all that, and what it writes goes where it should.
finds() {
	guest=$1 queues=$3 fourth=$6
	describe "$@"
	check "$guest: a disk is attached" [ "$(v3 attach $guest disk data.img)" = disk ]
	attached fixed.img,ro fixed
	attached tried.img,snapshot tried
	[ -z "$fourth" ] || attached $fourth fourth
	check "$guest: a random-number generator is attached" [ "$(v3 attach $guest rng)" = rng ]
	starts
	check "$guest: its own drivers load, and find the disks" does drivers drivers disk fixed tried
	for line in "vda $(sectors data.img) disk 0" "vdb $(sectors fixed.img) fixed 1" "vdc $(sectors tried.img) tried 0"; do
		set -- $line
		check "$guest: $3 is $1, with its size and a queue for each vCPU" [ "$(ask $1 look $1)" = "$2 sectors, $queues queues, $3, read-only $4" ]
	done
	check "$guest: random numbers come" [ "$(ask random random)" = 100 ]
	check "$guest: lspci finds the devices" [ "$(ask pci pci)" = "$((3 + 0${fourth:+1})) 1" ]
	check "$guest: and has no complaint" [ "$(ask complaints complaints)" = "" ]
	ask fixed scribble vdb >/dev/null
	check "$guest: a write to a read-only disk fails" ended fixed '[1-9]'
	check "$guest: what it writes to a snapshot, it reads" [ "$(ask tried changes vdc)" = changed ]
	check "$guest: the files of both stay as they are" unchanged
}

truncate -s 256M data.img
head -c 1049088 /dev/urandom >fixed.img
head -c 1048576 /dev/urandom >tried.img
cp fixed.img fixed.was
cp tried.img tried.was
if ! v3 info | grep -q 'backend: svm'; then
	finds linux-6.12 6.12 1 256M
	finish
	check "nothing is held" nothing_held
	check "rmmod" rmmod v3vee
	exit
fi

# The host's own look at file systems.
unpacks tools.cpio

# A file system under load. What else wants the file meanwhile is refused.
printf 'name = "spare"\nmemory = "128M"\nkernel = "vmlinuz-6.12"\n' >spare.toml
node=$(v3 create -b spare.toml | sed 's/.* //')
finds linux-6.12 6.12 4 384M ', "fio.cpio"'
words=$(sum "$(ask makes makes vda)")
check "a file system is made, and a file in it" ended makes 0
check "four jobs write, read and verify" [ "$(ask load load --directory=/mnt)" = 4 ]
check "another VM does not get the file" refused shared v3 attach spare disk data.img
check "also not to read it" refused shared v3 attach spare disk data.img,ro
check "nor if it alone would share it" refused shared v3 attach spare disk data.img,shared
check "the file system is unmounted" does unmounted umount /mnt
finish
check "the host finds the file system clean" tool e2fsck -fn data.img

# The next guest finds what this one wrote; and it has a block device of the host's.
modprobe brd rd_nr=1 rd_size=65536
finds linux-7 7 2 256M '' /dev/ram0
check "the file is there after a boot, as it was" [ "$(sum "$(ask reads reads vda)")" = "$words" ]
check "a block device of the host has its size" [ "$(ask vdd look vdd)" = "131072 sectors, 2 queues, fourth, read-only 0" ]
check "the guest makes a file system there, and a file" does block makes vdd
check "that is unmounted" does unmounted umount /mnt
check "a block device gets no other size" refused "" v3 resize linux-7 fourth 128M
finish
check "the host finds it clean" tool e2fsck -fn /dev/ram0
rmmod brd

# The oldest kernel; not where it would take long.
if soak || [ ! -e /proc/lockdep ]; then
	finds linux-6.1 6.1 2 256M
	finish
	check "the host finds the file system clean, still" tool e2fsck -fn data.img
fi

# Two VMs, one file.
v3 create -b spare.toml other >/dev/null
truncate -s 1M both.img
taken() { v3 attach $1 disk $2 --id $3 && v3 detach $1 $3; }
given() { [ "$(v3 attach $1 disk $2 --id $3)" = $3 ]; }
check "a file is one VM's" given spare both.img alone
check "and no other's" refused shared v3 attach other disk both.img
v3 detach spare alone
check "until it was detached" given other both.img alone
v3 detach other alone
check "two VMs have it if both share it" given spare both.img,shared first
check "both" given other both.img,shared second
check "a third does not that does not share" refused shared v3 attach spare disk both.img
v3 detach spare first
v3 detach other second
check "two VMs have it if both read it" given spare both.img,ro first
check "both read" given other both.img,ro second
v3 detach spare first
v3 detach other second

# What can be no disk.
: >empty.img
head -c 1000 /dev/zero >cut.img
mkdir folder
mkfifo pipe
truncate -s 1M private.img
chmod 666 /dev/v3vee $node
attach() { v3 attach spare disk "$@"; }
as_user() { su user -c "v3 attach spare disk $1"; }
check "a file that is not there" refused "absent.img: no such file" attach absent.img
check "a folder" refused folder attach folder
check "an empty file" refused "is empty: give it a size first" attach empty.img
check "a file that ends within a block" refused 512 attach cut.img
for file in /dev/zero /dev/v3vee $node pipe; do
	check "$file" refused "$file: this is no file and no block device" attach $file
done
check "a pipe to read from" refused "pipe: this is no file and no block device" timeout 60 v3 attach spare disk pipe,ro
check "a file that the caller may not write" refused "private.img: permission denied" as_user private.img
check "which he may read" sh -c "su user -c 'v3 attach spare disk private.img,ro --id read' && v3 detach spare read"
check "no file" refused file v3 attach spare disk
check "an option that is none" refused '`rw` is none of' attach both.img,rw
check "no queues" refused "1 to 16 queues" attach both.img,queues=0
check "too many queues" refused "1 to 16 queues" attach both.img,queues=17
check "what is read-only and a snapshot" refused "ro or a snapshot" attach both.img,ro,snapshot
check "a size of what is no disk" refused "this device is no disk" v3 resize spare com1 1M
check "none of these left a disk" [ "$(v3 devices spare | grep -c ' disk ')" = 0 ]
v3 free spare
v3 free other
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
