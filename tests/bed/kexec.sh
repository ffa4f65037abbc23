# SPDX-License-Identifier: MIT OR Apache-2.0
# Three kernels, each started over the running VMs of the one before: by kexec, after a panic. The last one restarts the host.
# The debug kernel cannot be loaded so: it is not relocatable.
# bed: --kernel stock --cpus 2 --mem 1024 --with-kernel --add build/tools/kexec --add build/guests/tmk/tmk --timeout 300
# bed: --expect "Kernel panic - not syncing: sysrq triggered crash" --expect "reboot: Restarting system" --goes-down
. ./common.sh
nth=${1:-first}
# Waits until all that was printed has left.
printed() { stty raw -echo <&1; }
passes() { v3 run --kernel tmk --mem 32 --append test=$1 --timeout 200 </dev/null; [ $? = 1 ]; }
check "$nth kernel: guests run" passes cpuid_signature,apic_timer_periodic

# On each CPU a VM that never gives it up, and one that waits. The CPUs are FIRST-LAST, or the only one.
cpus=$(sed -n 's/^Cpus_allowed_list:[^0-9]*//p' /proc/self/status)
for cpu in $(seq ${cpus%-*} ${cpus#*-}); do
	for test in spin_without_interrupts halt_for_ever; do
		name=$test-$cpu
		printf 'memory = "32M"\nkernel = "tmk"\ncmdline = "test=%s"\npins = [%s]\n' $test $cpu >$name.toml
		v3 build $name.toml -o $name.img && v3 create $name.img $name >/dev/null && v3 launch $name
	done
done
check "$nth kernel: VMs run on all $(nproc) CPUs" [ $(v3 list | grep -c running) = $(($(nproc) * 2)) ]

# initrd COMMAND: all files here, but for the kernel, to run COMMAND.
initrd() {
	printf '#!/bin/sh\n%s\n' "$1" >/bed/command
	mkdir -p /all && mount --bind / /all
	(cd /all && find . -path ./boot -prune -o ! -path ./root/initrd -print | cpio -o -H newc 2>/dev/null) >initrd
	umount /all
}
options=$(sed 's/ *crashkernel=[^ ]*//' /proc/cmdline)
case $nth in
first)
	# Not in /boot, so that the second kernel has it too: it is to load it for the third.
	mv /boot/vmlinuz .
	initrd "exec sh ./kexec.sh second"
	check "the second kernel is loaded" ./kexec load vmlinuz initrd "$options crashkernel=320M"
	printed
	./kexec go
	;;
second)
	mkdir -p /boot && mv vmlinuz /boot
	initrd "exec sh ./kexec.sh third"
	check "the third kernel is loaded" ./kexec panic /boot/vmlinuz initrd "$options nr_cpus=1"
	printed
	echo c >/proc/sysrq-trigger
	;;
third)
	check "it is the one for a panic" [ -e /proc/vmcore ]
	printed
	reboot -f
	;;
esac
echo "not ok the $nth kernel goes on"
