# What the build takes from outside. Nothing is copied in, nothing is downloaded.

# OpenMP: the plain libgomp.so.1. torch's wheel carries the same soname, so one process has one
# runtime. A vendored copy under another name would be a second one, and the two would fight.
find_package(OpenMP REQUIRED COMPONENTS CXX)

# Python and pybind11 >= 3: scikit-build-core points at them; a plain CMake run asks the interpreter.
if(NOT TAMIS_SANITIZE)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
  if(NOT pybind11_DIR)
    execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
      OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  endif()
  set(PYBIND11_FINDPYTHON ON)
  find_package(pybind11 3.0 CONFIG REQUIRED)
endif()

# GoogleTest: only with TAMIS_TESTS (Debian, Ubuntu: libgtest-dev).
if(TAMIS_TESTS)
  find_package(GTest REQUIRED)
endif()
