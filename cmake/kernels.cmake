# ISA flags. A file named <format>_<isa>.cc gets exactly the flags of <isa>; nothing else sets -m flags.

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(TAMIS_X86 ON)
else()
  set(TAMIS_X86 OFF)
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(TAMIS_ARM ON)
else()
  set(TAMIS_ARM OFF)
endif()

# make test-simde: a copy of the sources that takes NEON rows, as far as SIMDe covers them, compiled
# for x86 under sanitizers.
option(TAMIS_SIMDE "Compile the NEON kernels for x86" OFF)
if(TAMIS_SIMDE)
  set(TAMIS_X86 OFF)
  set(TAMIS_ARM ON)
  add_compile_definitions(TAMIS_SIMDE)
  include_directories(BEFORE SYSTEM ${CMAKE_SOURCE_DIR}/tests/cpp/simde)
endif()

set(TAMIS_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt)
set(TAMIS_FLAGS_avx512 ${TAMIS_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd)
set(TAMIS_FLAGS_avx512vbmi2 ${TAMIS_FLAGS_avx512}
  -mavx512vbmi -mavx512vbmi2 -mavx512vnni -mavx512vpopcntdq -mavx512bitalg)
set(TAMIS_FLAGS_avx512bf16 ${TAMIS_FLAGS_avx512vbmi2} -mavx512bf16)
# Nothing throws there, but the release of tile registers would leave a mergeable symbol.
set(TAMIS_FLAGS_amx ${TAMIS_FLAGS_avx512bf16} -mamx-tile -mamx-int8 -mamx-bf16 -fno-exceptions)

set(TAMIS_LEVELS_X86 avx2 avx512 avx512vbmi2 avx512bf16 amx)

# Every AArch64 has neon. Not in any later level by itself: half precision FHM is not on Neoverse N1.
set(TAMIS_FLAGS_neon -march=armv8-a)
set(TAMIS_FLAGS_neon_dot -march=armv8.2-a+fp16+dotprod)
set(TAMIS_FLAGS_neon_fhm ${TAMIS_FLAGS_neon_dot}+fp16fml)
set(TAMIS_FLAGS_neon_bf16 ${TAMIS_FLAGS_neon_fhm}+bf16+i8mm)
set(TAMIS_LEVELS_ARM neon neon_dot neon_fhm neon_bf16)
if(TAMIS_SIMDE)
  set(TAMIS_LEVELS_ARM neon neon_dot)
  set(TAMIS_FLAGS_neon ${TAMIS_FLAGS_avx2})
  set(TAMIS_FLAGS_neon_dot ${TAMIS_FLAGS_avx2})
endif()

# tamis_add_kernels(<op> source...): one object library tamis_<op>_<isa> per ISA level named by the
# sources, linked into tamis_core, or for the op `format` into tamis_formats. Off their processors
# these files vanish, as their rows in kernels.def do. TAMIS_KERNEL_LIBRARIES lists what there is.
function(tamis_add_kernels op)
  if(TAMIS_SIMDE AND op STREQUAL kv)
    return()
  endif()
  foreach(source IN LISTS ARGN)
    if(NOT source MATCHES "_(avx2|avx512|avx512vbmi2|avx512bf16|amx|neon|neon_dot|neon_fhm|neon_bf16)\\.cc$")
      message(FATAL_ERROR "tamis_add_kernels: ${source}: the name ends in no known ISA")
    endif()
    set(isa ${CMAKE_MATCH_1})
    if(NOT ((TAMIS_X86 AND isa IN_LIST TAMIS_LEVELS_X86) OR
            (TAMIS_ARM AND isa IN_LIST TAMIS_LEVELS_ARM)))
      continue()
    endif()
    set(library tamis_${op}_${isa})
    if(NOT TARGET ${library})
      add_library(${library} OBJECT)
      set_property(GLOBAL APPEND PROPERTY TAMIS_KERNEL_LIBRARIES ${library})
      target_compile_options(${library} PRIVATE ${TAMIS_FLAGS_${isa}})
      set(user tamis_core)
      if(op STREQUAL format)
        set(user tamis_formats)
      endif()
      target_link_libraries(${user} INTERFACE $<TARGET_OBJECTS:${library}>)
    endif()
    target_sources(${library} PRIVATE ${source})
  endforeach()
endfunction()
