# SPDX-License-Identifier: MIT OR Apache-2.0
# A guest with memory above 4 GiB: on the map, and as good as any.
# bed: --mem 6144 --add build/guests/tmk/tmk
# bed test: --kernel debug
v3 run --kernel tmk --mem 4200 --append "test=multiboot_memory_map,memory_above_4_gib,memory_keeps mib=4200" --timeout 200 </dev/null
status=$?
if [ $status = 1 ]; then echo "ok 4200 MiB"; else echo "not ok 4200 MiB: status $status"; fi
