# SPDX-License-Identifier: MIT OR Apache-2.0
# The tiny test kernels: a Multiboot kernel with a module and a command line; its exit status comes back.
# bed: --kernel stock --add build/guests/tmk/tmk --timeout 900
echo "a module's words" >words
v3 run --kernel tmk --module "words=words of a module" --append test=all --timeout 800 </dev/null
status=$?
# The test-exit port gives 2 × value + 1; the value is the number of tests that failed.
if [ $status = 1 ]; then echo "ok tmk ends with its exit status"; else echo "not ok tmk ended with status $status"; fi
