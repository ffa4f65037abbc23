# SPDX-License-Identifier: MIT OR Apache-2.0
# The features of a guest's processor: `v3 info --cpuid` tells of each, and a guest from which some are taken away lacks them.
# bed: --machines svm,svm-bochs,vtx --add build/guests/tmk/tmk --timeout 300
# bed test: --kernel stock
. ./common.sh
tests=cr4_follows_cpuid,registers_follow_cpuid,registers_of_the_family,efer_refuses,tsc_aux_is_shown,fs_and_gs_bases
runs() { v3 run --kernel tmk --mem 64 --append "test=$tests" --expect 1 --timeout 200 "$@" </dev/null >log 2>&1 || { tail -n 5 log; return 1; }; }

v3 info --cpuid >all
v3 info --cpuid --json >all.json
check "it lists features" [ "$(wc -l <all)" -gt 200 ]
check "no guest has SVM or VMX" [ "$(grep -cE '^(svm|vmx) .* no +a guest cannot run guests' all)" = 2 ]
check "a feature that guests lack has a reason" sh -c '! grep -qE " no$" all'
check "JSON lists as many" [ "$(tr '{' '\n' <all.json | grep -c '"name":')" = "$(($(wc -l <all) - 1))" ]

check "registers follow CPUID" runs
# What the host has of these goes one by one, then all at once.
for feature in pcid fsgsbase smep smap umip pku rdtscp rdpid tsc_adjust mtrr pat sep mca tsc_deadline_timer pge; do
	check "registers follow CPUID without $feature" runs "--cpu=-$feature"
done
check "registers follow CPUID without any" runs --cpu=-pcid,-fsgsbase,-smep,-smap,-umip,-pku,-rdtscp,-rdpid,-tsc_adjust,-xsave

printf 'memory = 64\nkernel = "tmk"\ncmdline = "test=spin_without_interrupts"\ncpu = ["-xsave"]\n' >g.toml
v3 create -b g.toml without >/dev/null
v3 info --cpuid without >of
check "the VM's list says what was taken away" grep -qE "^xsave .* no +the guest's description takes it away" of
check "what needs it says so" grep -qE "^avx .* no +(it needs xsave|the host's processor)" of
v3 free without
printf 'memory = 64\nkernel = "tmk"\ncpu = ["-xsaev"]\n' >bad.toml
v3 build bad.toml >log 2>&1
check "a name that is none is refused with a hint" [ "$?:$(grep -c 'bad.toml:3: cpu: no feature is called `xsaev`; is it `xsave`' log)" = 126:1 ]
