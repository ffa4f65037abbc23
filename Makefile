# SPDX-License-Identifier: MIT OR Apache-2.0
# `make help` says what there is.

KERNEL ?= stock
MACHINE ?= svm

# No script is a sub-make of this one: the jobserver is not for them.
unexport MAKEFLAGS

.PHONY: help run run-lwk test soak bench bench-compare profile tmk bed modules tools guests bootstrap fuzz docs-check clean
help: ## this
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p; s/^#: /\t/p' $(MAKEFILE_LIST) | expand -t 14

run: ## a Linux guest in a VM on an emulated host
#: IMAGE=FILE      another guest: a guest.img, a guest.toml or a kernel
#: ARGS="…"        options of `v3 run`: --append, --mem, --cpus, --timeout, …
#: LIMIT=60        stops the guest after 60 seconds; 0: never. Without it one that nobody attends is stopped for 300 seconds of silence
#: MACHINE=vtx     Intel VT-x; svm (AMD) is the default, and svm-bochs is a second one
#: GDB=1           waits for gdb before the guest starts, and says how to start it
#: PROFILE=debug   a module whose variables gdb can print
	@scripts/bootstrap packages
	@scripts/run --machine $(MACHINE) --profile $(or $(PROFILE),dev) $(if $(GDB),--gdb) $(if $(IMAGE),--image '$(IMAGE)') \
		$(if $(LIMIT),--limit '$(LIMIT)') -- $(ARGS)

run-lwk: ## the same guest on the lightweight kernel; MACHINE= and GDB= as for run
	@scripts/bootstrap packages
	@scripts/run-lwk --machine $(MACHINE) $(if $(GDB),--gdb)

test: ## all tests; STAGE="NAME…" for some of them (scripts/test --list)
	@scripts/bootstrap packages
	@scripts/test $(STAGE)

soak: ## what is long by nature: fuzzing, and the long forms of tests; STAGE="NAME…" for some of them
#: SECONDS=3600    for each fuzz target
	@scripts/bootstrap packages
	@SOAK_SECONDS=$(SECONDS) scripts/soak $(STAGE)

bench: ## what exits cost under v3vee and under KVM, in instructions; the figures also go to build/bench.json
	@scripts/bootstrap packages
	@scripts/measure table

bench-compare: ## what is different in build/bench.json from the figures in BASE=FILE
	@scripts/measure compare '$(BASE)'

profile: ## instructions of one round of EXIT=cpuid_leaf, or another bench, by function; KVM=1 beside KVM's, LINES=1 by lines of the source
	@scripts/bootstrap packages
	@scripts/measure profile '$(EXIT)' $(if $(KVM),--kvm) $(if $(LINES),--lines)

bed: ## a shell on an emulated host with v3vee.ko, the tools and guests; MACHINE=, GDB= and PROFILE= as for run
#: CMD="LINE"      a line of shell instead
#: ADD="FILE…"     files to bring along
#: KERNEL=debug    a kernel that proves locks and finds leaks
	@scripts/bootstrap packages
	@scripts/run-bed --machine $(MACHINE) --kernel $(KERNEL) --profile $(or $(PROFILE),dev) $(if $(GDB),--gdb) \
		$(foreach file,$(ADD),--add '$(file)') -- $(if $(CMD),'$(subst ','\'',$(CMD))')

tmk: ## tests of the tiny test kernels in a VM on an emulated host, by TEST="NAME…" (without it, lists them); CPUS=4 KERNEL=debug MACHINE=vtx
	@scripts/tmk $(if $(TEST),'$(TEST)',list) $(if $(CPUS),--cpus $(CPUS)) --kernel $(KERNEL) --machine $(MACHINE)

modules: ## v3vee.ko in build/; KERNEL=debug for the debug kernel, KDIR=/lib/modules/RELEASE/build for this machine; PROFILE=dev or debug
	@scripts/build-module $(if $(KDIR),--kdir $(KDIR),--kernel $(KERNEL)) --profile $(or $(PROFILE),release)

tools: ## the v3 command, one static program, in build/tools
	@scripts/step build/logs/build-tools.log "building the v3 command" "about a minute, the first time" scripts/build-tools

guests: ## the guests, in build/guests
	@for build in guests/*/build; do $$build || exit; done

bootstrap: ## get this machine ready: packages, host root, guest kernels (the others do it when needed)
	@scripts/bootstrap

fuzz: ## the fuzz targets under libFuzzer, SECONDS=600 each
	@scripts/fuzz $(or $(SECONDS),600)

docs-check: ## run every shell block of README and Documentation
	@scripts/docs-check

clean: ## remove build/ and target/; the cache in ~/.cache/v3vee stays
	rm -rf build target
