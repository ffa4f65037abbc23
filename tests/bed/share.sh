# SPDX-License-Identifier: MIT OR Apache-2.0
# Two VMs with four busy vCPUs each share two CPUs: all time of each vCPU is counted, and each VM gets its half.
# Only the stock kernel's speed is that of other hosts.
# bed test: --kernel stock
# bed: --timeout 300 --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.12
. ./common.sh

VCPUS=4
MEASURE_S=12

# What each vCPU has spent so far, and when it was so, in milliseconds: lines `VM VCPU AT GUEST HANDLING IDLE WAITING`.
snapshot() { for vm in a b; do v3 stats -a --json $vm >$1-$vm; done; }
told() {
	for vm in a b; do
		tr -d ' \n' <$1-$vm | sed 's/"vcpus":\[/\n/; s/},{/\n/g' | awk -v vm=$vm '
			function ms(name) { match($0, "\"" name "\":[0-9]+"); return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) / 1e6 }
			NR == 1 { at = ms("read_at_ns") }
			NR > 1 { print vm, NR - 2, at, ms("guest_ns"), ms("handling_ns"), ms("idle_ns"), ms("waiting_ns") }'
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
	grep -q "^guest: spinning" log-$vm || tail -n 20 log-$vm
done

# The tool is not what is measured.
renice -n -20 -p $$ >/dev/null
snapshot first
sleep $MEASURE_S
snapshot last
steal_ms=$(sed -n 's/^guest: steal \([0-9]*\).*/\1/p' log-a | tail -n 1)
v3 stop a
v3 stop b
wait
told first >before
told last >after

# The guest knows: what it counts as stolen is what its vCPUs waited, but for the last moments.
waited_ms=$(awk '$1 == "a" { sum += $7 } END { print int(sum) }' after)
check "the guest counts ${steal_ms:=0} ms stolen of $waited_ms waited" [ $((steal_ms * 10)) -gt $((waited_ms * 6)) -a $((steal_ms * 10)) -lt $((waited_ms * 11)) ]

paste -d ' ' before after | awk '
	{
		passed = $10 - $3; guest = $11 - $4; handling = $12 - $5; idle = $13 - $6; waiting = $14 - $7
		sum = guest + handling + idle + waiting
		printf "# %s/%d: guest %d + handling %d + idle %d + waiting %d = %d ms of %d\n", $1, $2, guest, handling, idle, waiting, sum, passed
		printf "%s %s/%d: its time adds up\n", (passed > 0 && sum >= 0.98 * passed && sum <= 1.02 * passed) ? "ok" : "not ok", $1, $2
		ran[$1] += (guest + handling) / passed
	}
	END {
		# Eight vCPUs can together have no more than two CPUs, and get most of them.
		cpus = ran["a"] + ran["b"]
		printf "%s together they had %.2f CPUs\n", (cpus > 1.5 && cpus < 2.1) ? "ok" : "not ok", cpus
		share = 100 * ran["a"] / (ran["a"] + ran["b"])
		printf "%s each VM has its half: %.1f to %.1f percent\n", (share > 45 && share < 55) ? "ok" : "not ok", share, 100 - share
	}'
