// What every conformance test leans on: guarded memory faults where it must, also when used again.
#include "guarded.h"

#include <gtest/gtest.h>

namespace tamis::test {
namespace {

int read(const int* p) {
  return *static_cast<const volatile int*>(p);
}

TEST(Guarded, FaultsBesideItsElements) {
  for (int again = 0; again < 2; ++again) {
    const Guarded<int> end(5), front(5, true);
    EXPECT_EQ(read(end.data() + 4), 0);
    EXPECT_DEATH(read(end.data() + 5), "");
    EXPECT_DEATH(read(front.data() - 1), "");
    const Guarded<int> none(0);
    EXPECT_DEATH(read(none.data()), "");
  }
}

TEST(Guarded, FaultsOnceFreed) {
  const int* freed = nullptr;
  {
    Guarded<int> some(5);
    some[0] = 7;
    freed = some.data();
  }
  EXPECT_DEATH(read(freed), "");
  const Guarded<int> again(5);
  EXPECT_EQ(again.data(), freed);
  EXPECT_EQ(again[0], 0);
}

}  // namespace
}  // namespace tamis::test
