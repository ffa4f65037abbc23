# SPDX-License-Identifier: MIT OR Apache-2.0
# `make help` says what there is.

KERNEL ?= stock
PROFILE ?= release
MACHINE ?= svm
SECONDS ?= 600

.PHONY: help run run-lwk test tmk bed modules tools guests bootstrap fuzz docs-check clean
help: ## this
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

run: ## a Linux guest in a VM on an emulated host: your shell in it, or its words without a terminal; MACHINE=vtx IMAGE=FILE
	@scripts/run $(if $(IMAGE),--image $(IMAGE)) --machine $(MACHINE)

run-lwk: ## the same guest on the lightweight kernel; MACHINE=vtx
	@scripts/run-lwk --machine $(MACHINE)

test: ## all tests; STAGE="NAME…" for some of them (scripts/test --list)
	@scripts/bootstrap packages
	@scripts/test $(STAGE)

bed: modules tools ## an emulated host with v3vee.ko and the tools: a shell, or CMD="…"; KERNEL=debug MACHINE=vtx
	@scripts/testbed run --machine $(MACHINE) --kernel $(KERNEL) -- $(if $(CMD),'$(subst ','\'',$(CMD))',sh)

tmk: ## tests of the tiny test kernels in a VM on an emulated host, by TEST="NAME…" (TEST=list lists them); CPUS=4 KERNEL=debug MACHINE=vtx
	@scripts/tmk $(if $(TEST),'$(TEST)',list) $(if $(CPUS),--cpus $(CPUS)) --kernel $(KERNEL) --machine $(MACHINE)

modules: ## v3vee.ko in build/; KERNEL=debug for the debug kernel, KDIR=/lib/modules/RELEASE/build for this machine; PROFILE=dev or debug
	@scripts/build-module $(if $(KDIR),--kdir $(KDIR),--kernel $(KERNEL)) --profile $(PROFILE)

tools: ## the v3 command, one static program, in build/tools
	@scripts/build-tools

guests: ## the guests, in build/guests
	@for build in guests/*/build; do $$build || exit; done

bootstrap: ## get this machine ready: packages, host root, guest kernels (the others do it when needed)
	@scripts/bootstrap

fuzz: ## the fuzz targets, SECONDS=600 each
	@scripts/fuzz $(SECONDS)

docs-check: ## run every shell block of README and Documentation
	@scripts/docs-check

clean: ## remove build/ and target/; the cache in ~/.cache/v3vee stays
	rm -rf build target
