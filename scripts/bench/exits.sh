# SPDX-License-Identifier: MIT OR Apache-2.0
# exits.sh BENCHES [kvm] [symbols]: runs the benches of guests/tmk on an emulated host: under v3vee twice, and then under KVM with QEMU. Each part of
# what it prints begins with a line `== NAME`. With `symbols` the last parts are the addresses of the kernel's functions and of the modules'.
benches=$1
shift
wants() { case " $words " in *" $1 "*) true ;; *) false ;; esac; }
words=$*
# Memory behind the last whole large page, so that the guest has small ones there.
memory=257

# The functions that are there now, packed; of the kernel's own only if it is the first call.
symbols() {
	wants symbols || return 0
	echo "== symbols of $1"
	if [ $1 = v3vee ]; then cat /proc/kallsyms; else grep '\[kvm' /proc/kallsyms; fi | grep -i ' [tw] ' | gzip -1 | base64
}

insmod v3vee.ko
for run in v3vee again; do
	echo "== $run"
	v3 run --kernel tmk --mem $memory --append "bench=$benches" </dev/null
done
symbols v3vee
rmmod v3vee

wants kvm || exit 0
. ./qemu-kvm.sh
# The emulator now and then delivers an interrupt twice, and the guest then hangs: once more.
under_kvm() {
	for try in 1 2 3; do
		timeout 40 $qemu_kvm -m $memory -device isa-debug-exit,iobase=0xf4,iosize=4 -kernel tmk -append "$1" </dev/null
		# What the guest writes to end with 0.
		[ $? = 1 ] && return
	done
}
echo "== kvm"
under_kvm "bench=$benches"
case ",$benches," in
*,all,* | *,touch_4k,*)
	# KVM's small pages are those of a host that makes no large ones.
	echo never >/sys/kernel/mm/transparent_hugepage/enabled
	echo "== kvm with small pages"
	under_kvm "bench=empty,touch_4k at=$((16 << 20))"
	;;
esac
symbols kvm
echo "== end"
