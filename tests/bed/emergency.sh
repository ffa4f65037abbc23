# SPDX-License-Identifier: MIT OR Apache-2.0
# The host is reset under VMs without any farewell, as the last of the magic keys does.
# bed: --cpus 2 --mem 640 --add build/guests/tmk/tmk --timeout 200 --expect "sysrq: Resetting" --goes-down
for cpu in 0 1; do
	for test in spin_without_interrupts halt_for_ever; do
		name=$test-$cpu
		printf 'memory = "32M"\nkernel = "tmk"\ncmdline = "test=%s"\npins = [%s]\n' $test $cpu >$name.toml
		v3 build $name.toml -o $name.img && v3 create $name.img $name >/dev/null && v3 launch $name
	done
done
if [ $(v3 list | grep -c running) = 4 ]; then echo "ok VMs run on both CPUs"; else echo "not ok VMs run on both CPUs"; fi
# What was printed leaves first.
stty raw -echo <&1
echo b >/proc/sysrq-trigger
echo "not ok the host goes on"
