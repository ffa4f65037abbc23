# SPDX-License-Identifier: MIT OR Apache-2.0
# The module comes and goes, keeps KVM out while it is in, and is kept out by KVM.
# bed: --no-module
. ./common.sh

rounds() { for _ in 1 2 3 4 5; do insmod v3vee.ko && rmmod v3vee || return 1; done; }
check "five times in and out" rounds
insmod v3vee.ko
check "a second insmod is refused" refused "File exists" insmod v3vee.ko
check "KVM cannot load beside it" refused "" modprobe kvm-amd
rmmod v3vee
check "KVM loads after it" modprobe kvm-amd
check "the module is refused while KVM is in" refused "busy" insmod v3vee.ko
dmesg | tail -n 3
rmmod kvm-amd
rmmod kvm
check "and loads when KVM has gone" insmod v3vee.ko
exec 5</dev/v3vee
check "no rmmod while the control node is open" refused "" rmmod v3vee
exec 5<&-
check "rmmod at the end" rmmod v3vee
