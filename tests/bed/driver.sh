# SPDX-License-Identifier: MIT OR Apache-2.0
# The driver of the example device (guests/examples/rng-driver) in a stock Linux: the numbers are the device's sequence, each transfer is one interrupt,
# by message and by pin; and devices come and go under it, also while a program has one open.
# bed: --timeout 600 --add build/guests/linux/initramfs --add build/guests/rng-driver/vmlinuz --add build/guests/rng-driver/rng.cpio
# bed test: --kernel stock
. ./common.sh

# SplitMix64 from seed 0.
first=e220a8397b1dcdaf second=6e789e6aa1b965f4 third=06c45d188009454f fourth=f88bb8a8724c81ec fifth=1b39896a51a8749b sixth=53cb9f0c747ea2ea

# In the guest. That the module is none of Debian's is what it is.
functions() {
	cat <<'SH'
interrupts() { sed -n "s/^ *[0-9]*: *\([0-9]*\) *\([^ ]*\).* $1\$/\1 \2/p" /proc/interrupts; }
comes() { until [ -e /dev/$1 ]; do sleep 0.1; done; }
goes() { while [ -e /dev/$1 ] || [ -e /sys/bus/pci/devices/${2-none} ]; do sleep 0.1; done; }
worries() { dmesg -r | grep '^<[0-4]>' | grep -v -e 'taints kernel' -e 'tainting kernel'; true; }
SH
}

# linux GUEST OPTION CHIP: the guest with one more kernel option, and how /proc/interrupts must call the device's interrupts.
linux() {
	guest=$1 option=$2 chip=$3
	v3 create -b linux.toml $guest --append "$option" >/dev/null
	check "$guest: a device is attached" [ "$(v3 attach $guest example-rng --slot 4)" = example-rng ]
	rm -f keys log
	mkfifo keys
	v3 stream $guest com1 <keys >log 2>&1 &
	stream=$!
	exec 3>keys
	v3 launch $guest
	check "$guest: the guest comes up" soon guest_says "token driver"
	{ echo "$guest_run"; functions; } >&3
	echo 'dmesg -c >/dev/null; run register devmem 0xc0000000 32; run load insmod example_rng.ko; comes example-rng4' >&3
	check "$guest: a register is read without a driver" [ "$(said register)" = 0x7B1DCDAF ]
	check "$guest: the driver loads" [ "$(said load)" = "" ]
	echo 'run three numbers /dev/example-rng4 3; run once interrupts example-rng4; run one numbers /dev/example-rng4 1; run twice interrupts example-rng4' >&3
	check "$guest: the program prints the sequence" [ "$(said three)" = "$second $third $fourth" ]
	check "$guest: three numbers are one interrupt" [ "$(said once)" = "1 $chip" ]
	check "$guest: it goes on" [ "$(said one)" = $fifth ]
	check "$guest: by one more interrupt" [ "$(said twice)" = "2 $chip" ]
	for round in 1 2 3; do
		check "$guest: another device comes, $round" [ "$(v3 attach $guest example-rng --id late$round --slot 7)" = late$round ]
		echo "comes example-rng7; run late$round numbers /dev/example-rng7 2; exec 9</dev/example-rng7; run open$round true" >&3
		check "$guest: its sequence begins, $round" [ "$(said late$round)" = "$first $second" ]
		said open$round >/dev/null
		check "$guest: it goes while a program has it open, $round" v3 detach $guest late$round
		echo "goes example-rng7 0000:00:07.0; run gone$round dd bs=8 count=1 <&9; exec 9<&-" >&3
		check "$guest: the program is told, $round" [ "$(said gone$round | grep -o 'No such device')" = "No such device" ]
	done
	echo 'exec 9</dev/example-rng4; run busy rmmod example_rng; exec 9<&-; run unload rmmod example_rng; goes example-rng4; run again insmod example_rng.ko' >&3
	check "$guest: a driver in use stays" [ "$(said busy | grep -o 'temporarily unavailable')" = "temporarily unavailable" ]
	check "$guest: the driver is unloaded" [ "$(said unload)" = "" ]
	echo 'comes example-rng4; run last numbers /dev/example-rng4 1; run worries worries; poweroff -f' >&3
	check "$guest: loaded again, it reads on" [ "$(said last)" = $sixth ]
	check "$guest: the kernel complains of nothing" [ "$(said worries)" = "" ]
	v3 wait $guest --timeout 120 >/dev/null 2>&1
	check "$guest: the guest powers off" [ $? = 0 ]
	exec 3>&-
	v3 stop $guest >/dev/null 2>&1
	wait $stream
	sed "s/^/$guest| /" log
	v3 free $guest
}
cat >linux.toml <<TOML
name = "linux"
memory = "256M"
kernel = "vmlinuz"
initrd = ["initramfs", "rng.cpio"]
cmdline = "console=ttyS0 quiet v3.token=driver"
TOML
linux messages "" PCI-MSIX-0000:00:04.0
linux pin pci=nomsi IO-APIC
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
