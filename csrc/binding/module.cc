// tamis._C: the Python extension. Everything here converts; nothing computes.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "base/isa.h"
#include "base/parallel.h"
#include "base/stream.h"
#include "binding/activation.h"
#include "binding/conv2d.h"
#include "binding/cost.h"
#include "binding/cuda.h"
#include "binding/cuda_activation.h"
#include "binding/cuda_kv.h"
#include "binding/cuda_matrix.h"
#include "binding/decoder.h"
#include "binding/kv.h"
#include "binding/kv_edit.h"
#include "binding/kv_fetch.h"
#include "binding/kv_select.h"
#include "binding/matrix.h"
#include "binding/pack.h"
#include "binding/prefill.h"
#include "binding/spgemm.h"
#include "binding/spmm.h"
#include "binding/spmm_grad.h"
#include "binding/watch.h"

namespace tamis::binding {
namespace {

py::dict isa_names() {
  py::dict names;
  names["host"] = isa_name(host_isa());
  names["active"] = isa_name(active_isa());
  return names;
}

double stream_read(int threads, int64_t bytes) {
  constexpr int64_t kLine = 64, kMost = int64_t{1} << 36;
  if (threads < 1 || bytes < kLine || bytes > kMost) {
    throw py::value_error("stream_read: threads, bytes: got " + std::to_string(threads) + " and " +
                          std::to_string(bytes) + ", wanted at least 1 and 64 to 2^36");
  }
  const auto align = std::align_val_t{kLine};
  const auto release_buffer = [align](void* p) { ::operator delete(p, align); };
  const std::unique_ptr<void, decltype(release_buffer)> buffer(
      ::operator new(static_cast<size_t>(bytes), align), release_buffer);
  const py::gil_scoped_release release;
  std::memset(buffer.get(), 1, static_cast<size_t>(bytes));  // maps the pages
  return 1e-9 *
         stream_read_bytes_per_second(static_cast<const uint64_t*>(buffer.get()), bytes, threads);
}

}  // namespace
}  // namespace tamis::binding

PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  using namespace pybind11::literals;
  namespace binding = tamis::binding;
  m.doc() = "C++ core of tamis.";
  m.def("isa", &binding::isa_names);
  m.def("num_threads", &tamis::num_threads);
  m.def("set_num_threads", &tamis::set_num_threads, "n"_a);
  m.def("stream_read", &binding::stream_read, "threads"_a, "bytes"_a);
  binding::bind_pack(m);
  binding::bind_matrix(m);
  binding::bind_spgemm(m);
  binding::bind_spmm(m);
  binding::bind_spmm_grad(m);
  binding::bind_conv2d(m);
  binding::bind_cost(m);
  binding::bind_cuda(m);
  binding::bind_cuda_activation(m);
  binding::bind_cuda_kv(m);
  binding::bind_cuda_matrix(m);
  binding::bind_decoder(m);
  binding::bind_kv(m);
  binding::bind_kv_edit(m);
  binding::bind_kv_fetch(m);
  binding::bind_kv_select(m);
  binding::bind_prefill(m);
  binding::bind_activation(m);
  binding::bind_watch(m);
}
