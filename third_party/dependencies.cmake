# What the build takes from outside. Nothing is copied in, nothing is downloaded.

# OpenMP: the plain libgomp.so.1. torch's wheel carries the same soname, so one process has one
# runtime. A vendored copy under another name would be a second one, and the two would fight.
find_package(OpenMP REQUIRED COMPONENTS CXX)

# Python and pybind11 >= 3: scikit-build-core points at them; a plain CMake run asks the interpreter.
# A cross build runs this machine's interpreter and takes the headers of the other's.
set(TAMIS_TARGET_ROOT "" CACHE PATH "What .ci/aarch64-root unpacked, for cross-built wheels")
if(TAMIS_EXTENSION)
  if(TAMIS_TARGET_ROOT)
    set(Python_INCLUDE_DIR ${TAMIS_TARGET_ROOT}/usr/include/python3.11)
    set(PYTHON_MODULE_EXTENSION .cpython-311-aarch64-linux-gnu.so)
    set(PYTHON_IS_DEBUG OFF)
    include_directories(SYSTEM ${TAMIS_TARGET_ROOT}/usr/include)  # Debian's pyconfig.h is below
  endif()
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
  if(NOT pybind11_DIR)
    execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
      OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  endif()
  set(PYBIND11_FINDPYTHON ON)
  find_package(pybind11 3.0 CONFIG REQUIRED)
endif()

# GoogleTest: only with TAMIS_TESTS (Debian, Ubuntu: libgtest-dev). A cross build compiles its
# sources, which the package googletest brings.
if(TAMIS_TESTS AND CMAKE_CROSSCOMPILING)
  set(TAMIS_GTEST_SOURCE /usr/src/googletest/googletest CACHE PATH "GoogleTest, for cross builds")
  add_library(tamis_gtest STATIC
    ${TAMIS_GTEST_SOURCE}/src/gtest-all.cc
    ${TAMIS_GTEST_SOURCE}/src/gtest_main.cc)
  target_include_directories(tamis_gtest SYSTEM PUBLIC ${TAMIS_GTEST_SOURCE}/include)
  target_include_directories(tamis_gtest PRIVATE ${TAMIS_GTEST_SOURCE})
  add_library(GTest::gtest_main ALIAS tamis_gtest)
elseif(TAMIS_TESTS)
  find_package(GTest REQUIRED)
endif()
