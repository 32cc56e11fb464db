// Memory whose last byte is followed by a page that cannot be touched: one byte too far faults.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

namespace tamis::test {

// Mappings of so many pages between their guards that this thread may use again, closed meanwhile:
// to make one takes the system longer than most kernels run.
inline constexpr size_t kSparePages = 16;
inline std::vector<uint8_t*>& spare_mappings(size_t pages) {
  thread_local std::array<std::vector<uint8_t*>, kSparePages + 1> spare;
  return spare[pages];
}

// `count` elements that end at an inaccessible page, and start after one when `front`. Alignment is
// what the length leaves: arrays are only aligned to their element, as mapped files are.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t count, bool front = false) : count_(count) {
    static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t body = (count * sizeof(T) + page - 1) / page * page;
    bytes_ = body + 2 * page;
    pages_ = body / page;
    if (pages_ > kSparePages || spare_mappings(pages_).empty()) {
      base_ = static_cast<uint8_t*>(
          mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (base_ == MAP_FAILED) std::abort();
      allow(PROT_READ | PROT_WRITE);
    } else {
      base_ = spare_mappings(pages_).back();
      spare_mappings(pages_).pop_back();
      allow(PROT_READ | PROT_WRITE);
      std::memset(base_ + page, 0, body);
    }
    data_ = front ? reinterpret_cast<T*>(base_ + page)
                  : reinterpret_cast<T*>(base_ + page + body - count * sizeof(T));
  }
  explicit Guarded(std::span<const T> source, bool front = false) : Guarded(source.size(), front) {
    if (!source.empty()) std::memcpy(data_, source.data(), source.size_bytes());
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() {
    if (pages_ > kSparePages) {
      munmap(base_, bytes_);
    } else {
      allow(PROT_NONE);
      spare_mappings(pages_).push_back(base_);
    }
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return count_; }
  std::span<T> span() { return {data_, count_}; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  void allow(int protection) {
    const size_t page = bytes_ / (pages_ + 2);
    if (pages_ > 0 && mprotect(base_ + page, pages_ * page, protection) != 0) std::abort();
  }

  size_t count_, bytes_, pages_;
  uint8_t* base_;
  T* data_;
};

}  // namespace tamis::test
