# SPDX-License-Identifier: MIT OR Apache-2.0
# What v3vee.h promises, asked of the loaded module: userspace_ctl/tests/module.rs. What it has of devices, attach.sh runs, and of looks into VMs, debug.sh.
# bed: --add build/tools/module-tests
./module-tests --include-ignored --test-threads=1 --skip devices:: --skip debug::
