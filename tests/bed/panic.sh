# SPDX-License-Identifier: MIT OR Apache-2.0
# The host panics under VMs, with no kernel to take over: it restarts at once.
# bed: --mem 640 --add build/guests/tmk/tmk --timeout 200 --expect "Kernel panic - not syncing: sysrq triggered crash" --goes-down
# bed test: --kernel stock
for cpu in 1 2; do
	for test in spin_without_interrupts halt_for_ever; do
		name=$test-$cpu
		printf 'memory = "32M"\nkernel = "tmk"\ncmdline = "test=%s"\npins = [%s]\n' $test $cpu >$name.toml
		v3 build $name.toml -o $name.img && v3 create $name.img $name >/dev/null && v3 launch $name
	done
done
if [ $(v3 list | grep -c running) = 4 ]; then echo "ok VMs run on both CPUs"; else echo "not ok VMs run on both CPUs"; fi
# What was printed leaves first. The magic key is that of a panic, unless another is set.
stty raw -echo <&1
echo ${key:-c} >/proc/sysrq-trigger
echo "not ok the host goes on"
