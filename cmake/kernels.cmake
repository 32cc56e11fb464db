# ISA flags. A file named <format>_<isa>.cc gets exactly the flags of <isa>; nothing else sets -m flags.

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(TAMIS_X86 ON)
else()
  set(TAMIS_X86 OFF)
endif()

set(TAMIS_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt)
set(TAMIS_FLAGS_avx512 ${TAMIS_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd)
set(TAMIS_FLAGS_avx512vbmi2 ${TAMIS_FLAGS_avx512}
  -mavx512vbmi -mavx512vbmi2 -mavx512vnni -mavx512vpopcntdq -mavx512bitalg)
set(TAMIS_FLAGS_avx512bf16 ${TAMIS_FLAGS_avx512vbmi2} -mavx512bf16)

# tamis_add_kernels(<op> source...): one object library tamis_<op>_<isa> per ISA level named by the
# sources, linked into tamis_core, or for the op `format` into tamis_formats. Off x86-64 these files
# vanish, as their rows in kernels.def do.
function(tamis_add_kernels op)
  foreach(source IN LISTS ARGN)
    if(NOT source MATCHES "_(avx2|avx512|avx512vbmi2|avx512bf16)\\.cc$")
      message(FATAL_ERROR "tamis_add_kernels: ${source}: the name ends in no known ISA")
    endif()
    set(isa ${CMAKE_MATCH_1})
    if(NOT TAMIS_X86)
      continue()
    endif()
    set(library tamis_${op}_${isa})
    if(NOT TARGET ${library})
      add_library(${library} OBJECT)
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
