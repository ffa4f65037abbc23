# SPDX-License-Identifier: MIT OR Apache-2.0
# The host suspends, a user pauses, somebody saves, and guests reset their machines, in a storm against each other: nothing is lost, and nothing is
# stuck. A thousand times each in `make soak`.
# bed: --machines svm --use-cpu-0 --add build/guests/tmk/tmk --timeout 900
# bed test: --kernel stock
# bed soak: --timeout 7200
. ./common.sh
if soak; then times=1000 resets=255 guests=4; else times=25 resets=100 guests=1; fi

# A suspend that goes as far as all tasks stand still, and back: the VMs are held from before that until after it.
echo freezer >/sys/power/pm_test
echo 0 >/sys/module/suspend/parameters/pm_test_delay
suspends() { for n in $(seq $times); do echo mem >/sys/power/state || return 1; done; }
printf 'name = "spins"\nmemory = "32M"\nvcpus = 2\nkernel = "tmk"\ncmdline = "test=spin_without_interrupts"\n' >spins.toml
v3 create -b spins.toml >/dev/null
v3 launch spins
pauses() { for n in $(seq $times); do v3 pause spins && v3 continue spins || return 1; done; }
saves() { for n in $(seq $((times / 10))); do v3 save spins - >saved || return 1; done; }
# Who resets is paused as well, unless it has just ended.
disturbs() { while [ ! -e over ]; do v3 pause resets; v3 continue resets; done 2>/dev/null; }
resets() {
	for n in $(seq $guests); do
		v3 run --name resets --kernel tmk --mem 32 --cpus 2 --append "test=reset_storm times=$resets" --expect 1 </dev/null >log 2>&1 || {
			cat log
			return 1
		}
	done
}
suspends & suspender=$!
pauses & pauser=$!
saves & saver=$!
disturbs & disturber=$!
resets & resetter=$!
check "each suspend came back" wait $suspender
check "and had been one" [ "$(cat /sys/power/suspend_stats/success)" -ge $times ]
check "each pause was had and ended" wait $pauser
check "each save was whole" wait $saver
check "each reset was one" wait $resetter
touch over
wait $disturber
echo none >/sys/power/pm_test
entries() { v3 stats spins | awk '$2 == "entries" { sum += $3 } END { print sum + 0 }'; }
check "who spins, runs" [ "$(v3 info spins | sed -n 's/^state: //p')" = running ]
before=$(entries)
runs_on() { until [ "$(entries)" -gt $before ]; do :; done; }
check "and is entered" runs_on
v3 free -f spins
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
