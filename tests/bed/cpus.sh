# SPDX-License-Identifier: MIT OR Apache-2.0
# The host's CPUs come and go, are taken from VMs and given back; VMs keep none busy for nothing.
# bed: --mem 640 --add build/guests/tmk/tmk --timeout 300
# bed test: --kernel debug
. ./common.sh

# image NAME TEST [VCPU LINES]: NAME.img
image() {
	printf 'name = "%s"\nmemory = "32M"\nkernel = "tmk"\ncmdline = "test=%s"\n%s\n' $1 $2 "${3-}" >$1.toml
	v3 build $1.toml -o $1.img
}
start() { v3 create $1.img $1 >/dev/null && v3 launch $1; }
running() { v3 info $1 | grep -q "state: running"; }
entries() { v3 stats $1 | awk '$2 == "entries" { print $3 }'; }
# Entered again after now: an interrupt of the host ends a guest that spins.
runs() { before=$(entries $1); until [ "$(entries $1)" -gt "$before" ]; do :; done; }
# The process of the first vCPU, the CPU it is on, and those it may be on.
thread() { grep -lx "v3-$1/0" /proc/[0-9]*/comm | cut -d/ -f3; }
on() { cut -d' ' -f39 /proc/$(thread $1)/stat; }
allowed() { sed -n 's/^Cpus_allowed_list:[^0-9]*//p' /proc/$(thread $1)/status; }
cpu() { echo $1 >/sys/devices/system/cpu/cpu1/online; }
image spin spin_without_interrupts
image halt halt_for_ever
image pinned spin_without_interrupts 'pins = [1]'
image asleep halt_for_ever 'pins = [1]'
image passes cpuid_signature,apic_timer_periodic 'pins = [1]'

# The CPUs are 1 and 2: see the manual of the test bed. CPU 1 goes away under guests, busy ones and idle ones, and comes back.
for vm in spin halt pinned asleep; do start $vm; done
check "a pinned one is where it belongs" [ $(allowed pinned) = 1 ]
gone() { cpu 0 && runs spin && runs pinned && [ $(on pinned) != 1 ]; }
back() { cpu 1 && [ $(allowed pinned) = 1 ] && [ $(allowed asleep) = 1 ] && runs pinned && [ $(on pinned) = 1 ]; }
for round in 1 2 3; do
	check "CPU 1 goes: all run on ($round)" gone
	check "CPU 1 comes: the pinned ones are back ($round)" back
done
for vm in spin halt pinned asleep; do check "$vm lived through it" running $vm; done
cpu 0
check "nothing can be moved to a CPU that is offline" sh -c '! v3 core-move halt 0 1 2>err && grep -q offline err'
check "nor created there" sh -c '! v3 create pinned.img second 2>err && grep -q offline err'
for vm in spin halt pinned asleep; do v3 free -f $vm; done
check "nothing is held" nothing_held

# A CPU that comes online after insmod.
rmmod v3vee && insmod v3vee.ko
cpu 1
ends() { start passes && { v3 wait passes >/dev/null; [ $? = 1 ]; } && v3 free passes; }
check "a guest runs on a CPU that came after insmod" ends

# An administrator takes a CPU from the threads, and gives it back.
groups=/sys/fs/cgroup
mkdir -p $groups && mount -t cgroup2 cgroup $groups 2>/dev/null
if grep -q cpuset $groups/cgroup.controllers; then
	start spin
	start pinned
	echo +cpuset >$groups/cgroup.subtree_control
	mkdir $groups/vms
	for of in 1 2 1-2; do
		echo $of >$groups/vms/cpuset.cpus
		for vm in spin pinned; do
			echo $(thread $vm) >$groups/vms/cgroup.procs
			check "$vm runs in a group that has CPUs $of" runs $vm
		done
	done
	v3 core-move pinned 0 1
	check "a move counts within the group" [ "$(allowed pinned)" = 1 ]
	for vm in spin pinned; do v3 free -f $vm; done
	rmdir $groups/vms
fi

# Idle VMs and those who wait for them: no load, nothing that hangs.
for n in 1 2 3 4; do
	v3 create halt.img idle$n >/dev/null && v3 launch idle$n
	v3 wait idle$n >/dev/null 2>&1 & waiters="$waiters $!"
done
letter() { cut -d' ' -f3 /proc/$1/stat; }
for n in 1 2 3 4; do until [ "$(v3 stats idle$n | grep -c exit_hlt)" = 1 ] && [ $(letter $(thread idle$n)) = I ]; do :; done; done
echo "ok idle vCPUs sleep, and are no load"
for waiter in $waiters; do until [ "$(tr '\0' ' ' </proc/$waiter/cmdline | cut -d' ' -f1)" = v3 ] && [ $(letter $waiter) = I ]; do :; done; done
echo "ok nor are those who wait for them"
echo 1 >/proc/sys/kernel/hung_task_timeout_secs
watchdog=$(grep -lx khungtaskd /proc/[0-9]*/comm | cut -d/ -f3)
looks() { sed -n 's/^voluntary_ctxt_switches:[^0-9]*//p' /proc/$watchdog/status; }
# It looks once a second; what it saw in two looks it would report at the third.
until_looked() { begin=$(looks); until [ $(looks) -ge $((begin + 4)) ]; do :; done; }
check "the watchdog of tasks looked" until_looked
check "and is silent" sh -c '! dmesg | grep -q "blocked for more than"'
for n in 1 2 3 4; do v3 free -f idle$n; done
wait $waiters

# Somebody switches virtualization off under VMs that run: EFER.SVME, bit 12 of register 0xc0000080.
efer=$((0xc0000080 / 8))
switch_off() {
	msr=/dev/cpu/$1/msr
	set -- $(dd if=$msr bs=8 skip=$efer count=1 2>/dev/null | hexdump -v -e '8/1 "%02x "')
	low=$1 next=$(printf %02x $((0x$2 & 0xef)))
	shift 2
	# In one write: the register is written whole or not at all.
	bytes=$(printf '\\x%s' $low $next $*)
	printf "$bytes" | dd of=$msr bs=8 seek=$efer
}
if modprobe msr; then
	start spin
	start pinned
	start halt
	runs spin
	runs pinned
	off() { for n in 0 1 2; do switch_off $n 2>err || { cat err; return 1; }; done; }
	check "virtualization is switched off by somebody" off
	for vm in spin pinned; do
		v3 wait $vm >/dev/null
		check "$vm ends, and says why" sh -c "v3 info $vm | grep -q 'virtualization was switched off on this host'"
	done
	check "the idle one can be stopped" v3 stop halt
	for vm in spin pinned halt; do v3 free $vm; done
	check "nothing is held after it" nothing_held
	rmmod v3vee && insmod v3vee.ko
	check "loaded again, it runs guests again" ends
fi
check "rmmod" rmmod v3vee
