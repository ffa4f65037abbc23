#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# First process of the emulated host. ttyS0 is the kernel's log, ttyS1 the command's terminal, ttyS2 tells the test bed.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root ENV=/etc/shrc
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm /tmp /root
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs shm /dev/shm
mount -t debugfs debug /sys/kernel/debug
ip link set lo up 2>/dev/null
ln -s /proc/self/fd /dev/fd
. /bed/settings

tell() { echo "$TOKEN $*" >&4; }
mark() { echo "<6>v3vee-bed: $TOKEN $*" >/dev/kmsg; }
finish() {
	# Waits until all that was written has left.
	stty -F /dev/ttyS1 sane
	mark end
	tell "exit $1"
	# The test bed takes the power away.
	while :; do sleep 60; done
}

exec 3<>/dev/ttyS1 4<>/dev/ttyS2
stty -F /dev/ttyS2 raw -echo 115200
if [ "$TERMINAL" = 1 ]; then
	export TERM=linux
	stty -F /dev/ttyS1 sane 115200 rows "$ROWS" cols "$COLUMNS"
else
	# It is a line to the test bed, on which nobody draws.
	export TERM=dumb
	stty -F /dev/ttyS1 raw -echo 115200
fi

# From here on, all that the kernel says counts.
echo 8 >/proc/sys/kernel/printk
mark begin
if [ "$MODULE" = 1 ]; then
	insmod /root/v3vee.ko || { tell "insmod"; finish 1; }
fi
if [ "$DEBUGGER" = 1 ]; then
	tell "sections $(cd /sys/module/v3vee/sections && for s in .*; do [ -f "$s" ] && printf '%s=%s ' "$s" "$(cat "$s")"; done)"
	read -r _ <&4
fi
cd /root
tell "run"
if [ "$TERMINAL" = 1 ]; then
	setsid -c /bed/command <&3 >&3 2>&3 4>&-
else
	/bed/command </dev/null >&3 2>&3 4>&-
fi
finish $?
