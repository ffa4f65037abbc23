# SPDX-License-Identifier: MIT OR Apache-2.0
# `make help` says what there is.

KERNEL ?= stock

.PHONY: help bootstrap modules
help: ## this
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

bootstrap: ## get this machine ready: packages, host root, guest kernels (once)
	@scripts/bootstrap

modules: ## v3vee.ko for the test bed; KERNEL=debug, or KDIR=/lib/modules/RELEASE/build for this machine
	@scripts/build-module $(if $(KDIR),--kdir $(KDIR),--kernel $(KERNEL))

.PHONY: bed
bed: ## an emulated host with v3vee.ko: a shell, or CMD="…"; KERNEL=debug
	@scripts/testbed run --kernel $(KERNEL) -- $(if $(CMD),'$(subst ','\'',$(CMD))',sh)
