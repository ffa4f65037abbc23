# SPDX-License-Identifier: MIT OR Apache-2.0
# Stock Linux finds the PCI bus and what is on it, complains of nothing, and takes in and lets go of devices while it runs, without a driver of ours.
# bed: --machines svm,vtx --timeout 900
# bed: --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.1 --add build/guests/linux/vmlinuz-6.12
# bed test: --kernel stock
. ./common.sh

# In the guest: `pci WHEN` lists the bus. `worries` lists what the kernel has to say of PCI and ACPI that is a warning or worse; that ACPI names no
# processor speeds is not about this. A device is in sysfs before it has addresses.
functions() {
	cat <<'SH'
pci() { for d in /sys/bus/pci/devices/*; do echo "guest: $1 ${d##*/} $(cat $d/vendor) $(cat $d/device) irq $(cat $d/irq)"; done; echo "guest: $1 end"; }
worries() { dmesg -r | grep '^<[0-4]>' | grep -iE 'pci|acpi|mmconfig|ecam|irq' | grep -v amd_pstate | sed 's/^/guest: worry /'; echo "guest: worries end"; }
ecam() { dmesg | grep -iE 'mmconfig|ecam' | sed 's/^/guest: ecam /'; echo "guest: ecam end"; }
bar() { read -r from to flags </sys/bus/pci/devices/$2/resource; echo "guest: $1 $2 $from $to"; }
placed() { [ -e /sys/bus/pci/devices/$1 ] && read -r from to flags </sys/bus/pci/devices/$1/resource && [ $((from)) != 0 ]; }
comes() { until placed $2; do sleep 0.1; done; bar came-$1 $2; }
goes() { while [ -e /sys/bus/pci/devices/$2 ]; do sleep 0.1; done; echo "guest: gone-$1 $2"; }
SH
}

linux() {
	series=$1
	cat >linux.toml <<TOML
name = "linux"
memory = "256M"
kernel = "vmlinuz-$series"
initrd = "initramfs"
cmdline = "console=ttyS0 quiet v3.token=pci"
TOML
	v3 build linux.toml -o linux.img
	v3 create linux.img >/dev/null
	check "$series: a device is attached before the guest starts" [ "$(v3 attach linux example-rng --slot 4)" = example-rng ]
	check "$series: and a random-number generator of virtio" [ "$(v3 attach linux rng --slot 5)" = rng ]
	rm -f keys log
	mkfifo keys
	v3 stream linux com1 <keys >log 2>&1 &
	stream=$!
	exec 3>keys
	v3 launch linux
	check "$series: the guest comes up" soon guest_says "token pci"
	functions >&3
	echo 'pci first; ecam; bar first-bar 0000:00:04.0; worries' >&3
	soon guest_says "worries end"
	for line in "0000:00:00.0 0x8086 0x1237" "0000:00:01.0 0x8086 0x7000" "0000:00:01.3 0x8086 0x7113" "0000:00:04.0 0x1234 0x7633 irq 10" "0000:00:05.0 0x1af4 0x1005"; do
		check "$series: it finds $line" guest_says "first $line"
	done
	check "$series: it uses the ECAM window" guest_says "ecam .*(0xf0000000|f0000000)"
	check "$series: it does not refuse the window" none_says "^guest: ecam .*not"
	check "$series: the device is where firmware put it" guest_says "first-bar 0000:00:04.0 0x00000000c0000000"
	check "$series: it complains of nothing" none_says "^guest: worry"
	for round in 1 2 3; do
		check "$series: a device comes, $round" [ "$(v3 attach linux example-rng --id late$round --slot 7)" = late$round ]
		echo "comes $round 0000:00:07.0" >&3
		check "$series: it has addresses, $round" soon guest_says "came-$round 0000:00:07.0 0x0*[cd][0-9a-f]{7} "
		check "$series: the guest lets go of it, $round" v3 detach linux late$round
		echo "goes $round 0000:00:07.0" >&3
		check "$series: it is gone, $round" soon guest_says "gone-$round 0000:00:07.0"
	done
	check "$series: the first one goes, too" v3 detach linux example-rng
	v3 attach linux example-rng --id forced >/dev/null
	check "$series: with force the guest is not asked" v3 detach --force linux forced
	echo 'pci last; echo "guest: done"' >&3
	soon guest_says done
	# One that was taken by force it still lists: nobody told it.
	check "$series: what it let go of is gone" none_says "^guest: last 0000:00:0[47]"
	v3 devices linux | grep pci
	echo 'poweroff -f' >&3
	v3 wait linux --timeout 120 >/dev/null 2>&1
	check "$series: the guest powers off" [ $? = 0 ]
	exec 3>&-
	wait $stream
	sed "s/^/$series| /" log
	v3 free linux
}
for series in 6.1 6.12; do linux $series; done
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
