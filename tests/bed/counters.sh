# SPDX-License-Identifier: MIT OR Apache-2.0
# A guest that executes exactly so many CPUIDs and OUTs moves the counters by exactly so many.
# bed: --add build/guests/tmk/tmk
counter() { sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" log | head -n 1; }
run() { v3 run --kernel tmk --mem 64 --append "test=counted cpuids=$1 outs=$2" --timeout 60 --json </dev/null >log 2>err; }

# The difference of two runs that differ in these alone: all else the kernel does is the same.
run 1000 1000
cpuids=$(counter exit_cpuid) outs=$(counter exit_port_out)
run 4321 7777
more_cpuids=$(($(counter exit_cpuid) - cpuids)) more_outs=$(($(counter exit_port_out) - outs))
if [ $more_cpuids = 3321 ]; then echo "ok 3321 CPUIDs"; else echo "not ok 3321 CPUIDs: $more_cpuids"; fi
if [ $more_outs = 6777 ]; then echo "ok 6777 OUTs"; else echo "not ok 6777 OUTs: $more_outs"; fi
