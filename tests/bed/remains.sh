# SPDX-License-Identifier: MIT OR Apache-2.0
# What a guest that died leaves behind: what each virtual CPU was at, in text and in JSON.
# bed: --machines svm,vtx --kernel stock --add build/guests/tmk/tmk --timeout 600
. ./common.sh

# dies STATUS TEST [OPTION]…: runs a test that ends its VM, twice: for people into `text`, for programs into `json`.
dies() {
	status=$1 test=$2; shift 2
	v3 run --kernel tmk --mem 64 --append "test=$test" "${@:---timeout=200}" </dev/null >/dev/null 2>text
	[ $? = "$status" ] || { echo "status is not $status"; cat text; return 1; }
	v3 run --json --kernel tmk --mem 64 --append "test=$test" "${@:---timeout=200}" </dev/null 2>/dev/null >json
	[ $? = "$status" ]
}
# says LINE…: the text has each of these, one behind the other; FIELD…: as has the JSON.
says() { [ "$(for line; do grep -E -m 1 -e "$line" text; done | wc -l)" = $# ] || { cat text; return 1; }; }
has() { for field; do grep -qE -e "$field" json || { cat json; return 1; }; done; }
everything() {
	says '^vcpu 0: .*64-bit code' '^  rax +0x' ' rip +0x' ' efer +0x' '^  cs +base 0x.*selector 0x' '^  idtr +base 0x' '^  stack:' \
		'^  last exits, the oldest first:' '^    0x[0-9a-f]+ +exit_' &&
		has '"vcpus":\[\{"vcpu":0,' '"rip":"0x[0-9a-f]+"' '"cs":\{"selector":"0x' '"stack":\[\{"at":"0x' '"exits":\[\{"rip":"0x.*"meaning":"'
}

check "a triple fault ends the guest" dies 127 triple_fault
check "all of it is there" everything
check "the exception that began it" says '^  it began with #UD, invalid opcode'
check "the instruction that raised it" says '^    0x[0-9a-f]+ +0f0b +ud2'
check "both for programs" has '"cause":\{"kind":"exception","vector":6,"error_code":null' '"code":\[\{"at":"0x[0-9a-f]+","bytes":"0f0b","text":"ud2"\}'

check "a triple fault of another CPU" dies 127 triple_fault_elsewhere --cpus=2 --timeout=200
check "that one began it" sh -c 'sed -n "/^vcpu 1:/,\$p" text | grep -q "it began with #UD"'
check "the first one did not" sh -c '! sed -n "/^vcpu 0:/,/^vcpu 1:/p" text | grep -q "it began"'
check "both for programs" has '"vcpu":0,.*"cause":null.*"vcpu":1,.*"cause":\{"kind":"exception","vector":6'

check "a jump to nothing ends the guest" dies 127 jump_to_nothing
check "where it jumped" says 'rip +0x00000000d0000000' '^  code: cannot be read'
check "for programs" has '"rip":"0xd0000000"' '"code":\[\]'

check "an unknown instruction ends the guest" dies 127 unknown_instruction
check "its name" says '^    0x[0-9a-f]+ +dd00 +fld' ' exit_mmio +it touched a device'
check "for programs" has '"text":"fld'

check "a storm of interrupts is stopped" dies 124 'interrupt_storm rounds=1000000000' --timeout=5
check "all of it is there" everything

check "a guest that hangs on two CPUs is stopped" dies 124 all_spin_without_interrupts --cpus=2 --timeout=20
check "both are at the loop" sh -c '[ $(grep -c "ebfe  *jmp" text) = 2 ]'
check "RIP of both" sh -c '[ $(grep -Ec " rip +0x0*[1-9a-f]" text) = 2 ]'
check "for programs" has '"vcpu":0,.*"text":"jmp .*"vcpu":1,.*"text":"jmp '

# Who asks later, as long as the VM is there.
printf 'name = "later"\nmemory = "64M"\nkernel = "tmk"\ncmdline = "test=triple_fault"\n' >later.toml
v3 build later.toml -o later.img && v3 create later.img >/dev/null && v3 launch later
v3 wait later >/dev/null 2>text
check "v3 wait shows it" says '^  it began with #UD'
v3 info later >text
check "v3 info shows it" says '^state: stopped' '^  it began with #UD' 'ud2'
v3 info --json later >json
check "for programs" has '"vcpu_reports":\[\{"vcpu":0,.*"text":"ud2"'
v3 free later

# A guest that ended by its own wish, or runs, leaves nothing to show.
v3 run --kernel tmk --mem 64 --append test=power_off --json </dev/null >json 2>/dev/null
check "a power-off leaves nothing to show" sh -c '! grep -q "\"vcpus\":\[{\"vcpu\"" json'
