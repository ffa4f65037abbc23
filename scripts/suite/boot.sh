# SPDX-License-Identifier: MIT OR Apache-2.0
# boot.sh MARK NAME…: on an emulated host, runs tests NAME.sh one after the other, each in a folder of its own, with v3vee.ko freshly
# inserted; NAME:no-module without it. The test's begin and end are marked in the output and in the kernel's log.
mark=$1
shift
tell() { echo "$mark $*"; echo "<6>$mark $*" >/dev/kmsg; }

# What a test left is taken away, and nothing of the module's may stay in use.
tidy() {
	[ -e /sys/module/v3vee ] || return 0
	for vm in /dev/v3-vm*; do [ ! -e "$vm" ] || v3 free -f "$vm"; done
	rmmod v3vee || echo "not ok v3vee.ko can be removed after $name"
}

for test; do
	name=${test%:*}
	# A test may look for what the kernel said, but not to those before it.
	dmesg -c >/dev/null
	tell "begin $name"
	mkdir "/tmp/$name" && cd "/tmp/$name" && ln -s /root/* . && mv "$name.skips" skips || exit
	case $test in *:no-module) ;; *) insmod v3vee.ko || echo "not ok v3vee.ko can be inserted for $name" ;; esac
	sh "./$name.sh" </dev/null
	status=$?
	tidy
	cd / && rm -rf "/tmp/$name"
	tell "end $name $status"
done
