// Status: the result of every public C++ function; carries one sentence when it is not ok.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>

namespace tamis {

enum class Code : uint8_t {
  ok,
  invalid_argument,   // a shape, stride or parameter the caller can correct
  unsupported_dtype,  // the formula exists, not for these dtypes
  no_kernel,          // no row of kernels.def fits this host
  corrupt,            // stored arrays contradict each other
  out_of_memory,
};

// Plain value, no allocation: the sentence lives inside.
struct [[nodiscard]] Status {
  Code code = Code::ok;
  char text[250] = {};

  bool ok() const { return code == Code::ok; }
};

// printf-style constructor of a failed Status. Sentence: function, argument, got, wanted.
__attribute__((format(printf, 2, 3))) inline Status error(Code code, const char* format, ...) {
  Status s{.code = code};
  va_list args;
  va_start(args, format);
  std::vsnprintf(s.text, sizeof s.text, format, args);
  va_end(args);
  return s;
}

}  // namespace tamis

#define TAMIS_RETURN_IF_ERROR(expr)                       \
  do {                                                    \
    if (::tamis::Status s_ = (expr); !s_.ok()) return s_; \
  } while (false)
