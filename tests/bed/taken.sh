# SPDX-License-Identifier: MIT OR Apache-2.0
# VT-x is held only while guests run, so KVM can take it in between: VMs say so, and run again when it has gone.
# bed: --machines vtx --no-module --add build/guests/tmk/tmk --timeout 300
. ./common.sh
said() { dmesg | tail -n 5 | grep -q "$1"; }

rounds() { for _ in 1 2 3 4 5; do insmod v3vee.ko && rmmod v3vee || return 1; done; }
check "five times in and out" rounds
modprobe kvm-intel
check "the module is refused while KVM is in" refused "busy" insmod v3vee.ko
check "and says what to unload" said "unload the other hypervisor first (rmmod kvm_amd or kvm_intel)"
rmmod kvm-intel
check "it loads when KVM has gone" insmod v3vee.ko

printf 'memory = "32M"\nkernel = "tmk"\ncmdline = "test=spin_without_interrupts"\n' >spin.toml
v3 build spin.toml -o spin.img
v3 create spin.img spin >/dev/null
v3 launch spin
modprobe kvm-intel
until v3 info spin | grep -q "state: stopped"; do :; done
check "a VM stops when KVM takes VT-x" sh -c 'v3 info spin | grep "another hypervisor took the processor.s virtualization"'
rmmod kvm-intel
v3 free spin
v3 create spin.img spin >/dev/null
check "and starts anew when it has gone" v3 launch spin
check "runs" sh -c 'v3 info spin | grep -q "state: running"'
v3 stop spin
v3 free spin
check "rmmod" rmmod v3vee
