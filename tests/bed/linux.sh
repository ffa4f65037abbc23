# SPDX-License-Identifier: MIT OR Apache-2.0
# Stock Debian kernels as guests: up to a shell, time, AVX, exit status, reboot, power-off. The debug kernel, which is slower, runs them in
# `make soak` only.
# bed soak: --timeout 3600
# bed test: --timeout 900 --kernel stock
# bed: --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.1 --add build/guests/linux/vmlinuz-6.12
# bed: --add build/guests/linux/vmlinuz-7
. ./common.sh

# guest SERIES TOKEN SCRIPT: one boot of the guest, its words in `log`.
guest() {
	v3 run --name "$2" --kernel "vmlinuz-$1" --initrd initramfs --append "console=ttyS0 quiet v3.token=$2 v3.script=$3" --timeout 300 \
		</dev/null >log 2>&1
}

for series in 6.1 6.12 7; do
	guest $series token-$series avx,clock,sleep,exit:21
	status=$?
	sed "s/^/$series| /" log
	check "$series comes up and says who it is" grep -q "^guest: Linux .* $series" log
	check "$series sees V3VEE" grep -q "^guest: hypervisor V3VEEV3VEE" log
	check "$series has its command line" grep -q "^guest: token token-$series" log
	for step in avx clock sleep; do check "$series $step" grep -q "^guest: ok $step" log; done
	check "$series ends with its exit status" [ $status = 43 ]

	guest $series off poweroff
	status=$?
	check "$series powers off" [ $status = 0 ]
	[ $status = 0 ] || tail -n 5 log
done

# A guest that reboots comes up again, in the same VM.
guest 6.12 again reboot &
run=$!
for _ in $(seq 150); do
	[ "$(grep -c "^guest: token again" log)" -ge 2 ] && break
	sleep 1
done
check "a reboot comes up again" [ "$(grep -c "^guest: token again" log)" -ge 2 ]
v3 stop again
wait $run
check "rmmod after all" rmmod v3vee
