# tamis_cuda: the GPU code as a second library beside _C, which opens it on first use. AUTO builds it
# where nvcc is found, ON insists, OFF makes the CPU wheel.

set(TAMIS_CUDA AUTO CACHE STRING "Build the CUDA library: AUTO, ON or OFF")
set_property(CACHE TAMIS_CUDA PROPERTY STRINGS AUTO ON OFF)

set(TAMIS_CUDA_FOUND OFF)
if(NOT TAMIS_CUDA STREQUAL "OFF" AND NOT TAMIS_SANITIZE)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80)  # what CMake tries the compiler with
    endif()
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has C++20
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(TAMIS_CUDA_FOUND ON)
  elseif(TAMIS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TAMIS_CUDA=ON: no nvcc found; put it on PATH or set CMAKE_CUDA_COMPILER.")
  endif()
endif()
message(STATUS "CUDA library: ${TAMIS_CUDA_FOUND} (TAMIS_CUDA=${TAMIS_CUDA})")

# One object library per level, because a level is a set of architectures: machine code for each, and
# PTX of compute_80 for the driver to compile on everything later. sm_89's comes from that PTX, as no
# source tells 89 from 80: PTX of its own gives the same instructions for a quarter more time.
set(TAMIS_CODE_sm80 arch=compute_80,code=[compute_80,sm_80,sm_89])
set(TAMIS_CODE_sm90 arch=compute_90a,code=[sm_90a])
# One source for all of them: what differs is decided by the architecture it is compiled for.
set(TAMIS_CODE_sm80up ${TAMIS_CODE_sm80} arch=compute_90,code=[sm_90])

# tamis_add_cuda_kernels(source...): <format>_sm<NN>.cu into tamis_cuda.
function(tamis_add_cuda_kernels)
  foreach(source IN LISTS ARGN)
    if(NOT source MATCHES "_(sm80|sm90|sm80up)\\.cu$")
      message(FATAL_ERROR "tamis_add_cuda_kernels: ${source}: the name ends in no known level")
    endif()
    set(level ${CMAKE_MATCH_1})
    set(library tamis_cuda_${level})
    if(NOT TARGET ${library})
      add_library(${library} OBJECT)
      set_target_properties(${library} PROPERTIES CUDA_ARCHITECTURES OFF)
      list(TRANSFORM TAMIS_CODE_${level} PREPEND --generate-code= OUTPUT_VARIABLE code)
      target_compile_options(${library} PRIVATE ${code})
      target_link_libraries(tamis_cuda PRIVATE $<TARGET_OBJECTS:${library}>)
    endif()
    target_sources(${library} PRIVATE ${source})
  endforeach()
endfunction()
