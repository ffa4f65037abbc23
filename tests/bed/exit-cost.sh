# SPDX-License-Identifier: MIT OR Apache-2.0
# What a CPUID costs a guest, in host instructions: under v3vee, and under KVM in the same boot.
# bed: --kernel stock --icount --no-module --add build/tools/exit_cost
. ./common.sh

./exit_cost kernel cost.elf
insmod v3vee.ko
for run in 1 2; do
	v3 run --kernel cost.elf --mem 16 --timeout 100 </dev/null >sent
	./exit_cost show sent >ours.$run
done
rmmod v3vee
modprobe kvm-amd
./exit_cost kvm >kvm
echo "A CPUID round trip: v3vee $(cat ours.1), KVM $(cat kvm) guest-visible instructions."
check "the figure repeats exactly" cmp ours.1 ours.2
check "a CPUID costs no more than under KVM" [ "$(cat ours.1)" -le "$(cat kvm)" ]
