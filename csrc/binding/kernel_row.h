// One line of tamis.kernels(), the same for every operator and backend.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "base/isa.h"

namespace tamis::binding {

struct KernelRow {
  const char *name, *op, *format, *w_dtype, *x_dtype;
  std::string isa;
  int64_t tile_m, tile_n;
  bool runs_here;
};

inline pybind11::dict dict_of(const KernelRow& row) {
  pybind11::dict entry;
  entry["name"] = row.name;
  entry["op"] = row.op;
  entry["format"] = row.format;
  entry["w_dtype"] = row.w_dtype;
  entry["x_dtype"] = row.x_dtype;
  entry["isa"] = row.isa;
  entry["tile_m"] = row.tile_m;
  entry["tile_n"] = row.tile_n;
  entry["runs_here"] = row.runs_here;
  return entry;
}

// Of a kernel for this processor, without its isa and whether that is here.
inline pybind11::dict dict_of(KernelRow row, IsaBits isa) {
  row.isa = isa_name(isa);
  row.runs_here = (isa & active_isa()) == isa;
  return dict_of(row);
}

}  // namespace tamis::binding
