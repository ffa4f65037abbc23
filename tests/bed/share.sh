# SPDX-License-Identifier: MIT OR Apache-2.0
# Two VMs with four busy vCPUs each share two CPUs: all time of each vCPU is counted, and each VM gets its half.
# bed: --timeout 300 --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.12
check() { name=$1; shift; if "$@"; then echo "ok $name"; else echo "not ok $name"; fi; }

VCPUS=4
MEASURE_S=12

# What each vCPU has spent so far, between the host's times of before and after (milliseconds): lines
# `VM VCPU BEFORE AFTER GUEST HANDLING IDLE WAITING`.
snapshot() {
	for vm in a b; do
		before=$(sed 's/\.\([0-9]*\).*/\10/' /proc/uptime)
		v3 stats -a --json $vm >stats
		after=$(sed 's/\.\([0-9]*\).*/\10/' /proc/uptime)
		tr -d ' \n' <stats | sed 's/.*"vcpus":\[//; s/},{/\n/g' | awk -v vm=$vm -v before="$before" -v after="$after" '
			function ms(name) { match($0, "\"" name "\":[0-9]+"); return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) / 1e6 }
			{ print vm, NR - 1, before, after, ms("guest_ns"), ms("handling_ns"), ms("idle_ns"), ms("waiting_ns") }'
	done
}

for vm in a b; do
	v3 run --name $vm --cpus $VCPUS --mem 256 --kernel vmlinuz-6.12 --initrd initramfs \
		--append "console=ttyS0 quiet v3.token=$vm v3.script=spin" </dev/null >log-$vm 2>&1 &
	eval run_$vm=$!
done
for vm in a b; do
	eval run=\$run_$vm
	until grep -q "^guest: spinning" log-$vm || ! kill -0 $run 2>/dev/null; do sleep 0.2; done
	check "$vm has $VCPUS busy vCPUs" grep -q "^guest: spinning $VCPUS" log-$vm
done

# The tool is not what is measured.
renice -n -20 -p $$ >/dev/null
snapshot >first
sleep $MEASURE_S
snapshot >last
v3 stop a
v3 stop b
wait

paste -d ' ' first last | awk '
	{
		guest = $13 - $5; handling = $14 - $6; idle = $15 - $7; waiting = $16 - $8
		sum = guest + handling + idle + waiting
		least = $11 - $4; most = $12 - $3
		printf "# %s/%d: guest %d handling %d idle %d waiting %d ms, of %d to %d\n", $1, $2, guest, handling, idle, waiting, least, most
		printf "%s %s/%d: its time adds up\n", (sum >= 0.98 * least && sum <= 1.02 * most && most <= 1.1 * least) ? "ok" : "not ok", $1, $2
		ran[$1] += guest + handling
	}
	END {
		share = 100 * ran["a"] / (ran["a"] + ran["b"])
		printf "%s each VM has its half: %.1f to %.1f percent\n", (share > 45 && share < 55) ? "ok" : "not ok", share, 100 - share
	}'
