#!/bin/sh
# No wide-register code outside the kernel objects, and nothing in those that the linker may merge:
# either way a host without AVX would run AVX code. On AArch64 every object may use NEON, and plain
# ones are built without more, so only the second half finds anything.
#   check_isa.sh PLAIN_OBJECT... -- KERNEL_OBJECT...
set -u
status=0
kernels=false
checked=0
for object in "$@"; do
  if [ "$object" = -- ]; then
    kernels=true
    continue
  fi
  checked=$((checked + 1))
  if $kernels; then
    found=$(${NM:-nm} --demangle "$object" | grep -E ' [VWu] ')
    what="a symbol that the linker may merge"
  else
    found=$(${OBJDUMP:-objdump} --disassemble --no-show-raw-insn "$object" | grep -E '%[yz]mm|%k[0-7]')
    what="code for wide registers"
  fi
  if [ -n "$found" ]; then
    echo "$object: $what:"
    echo "$found" | head -5
    status=1
  fi
done
[ "$checked" -gt 0 ] || { echo "no objects given"; exit 1; }
exit $status
