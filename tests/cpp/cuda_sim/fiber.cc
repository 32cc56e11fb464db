// Eight instructions on x86-64, ucontext (which also saves signal masks, ten times slower)
// elsewhere.
#include "cuda_sim/fiber.h"

#include <cstdint>

#if TAMIS_SIM_SWITCH
// Saves the callee-saved registers on this stack, its pointer in *from, and continues on `to`.
extern "C" void tamis_sim_switch(void** from, void* to);
asm(R"(
.text
.globl tamis_sim_switch
.type tamis_sim_switch,@function
tamis_sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tamis_sim_switch,.-tamis_sim_switch
)");
#endif

namespace tamis::sim {

#if TAMIS_SIM_SWITCH

void Fiber::reset(void (*entry)()) {
  if (!stack_) stack_ = std::make_unique_for_overwrite<char[]>(kStackBytes);
  const auto end = reinterpret_cast<uintptr_t>(stack_.get() + kStackBytes) & ~uintptr_t{63};
  auto** top = reinterpret_cast<void**>(end);
  *--top = nullptr;  // the return address of entry, which never returns
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  inside_ = top;
}
void Fiber::enter() {
  tamis_sim_switch(&outside_, inside_);
}
void Fiber::leave() {
  tamis_sim_switch(&inside_, outside_);
}

#else

void Fiber::reset(void (*entry)()) {
  if (!stack_) stack_ = std::make_unique_for_overwrite<char[]>(kStackBytes);
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_.get();
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  makecontext(&inside_, entry, 0);
}
void Fiber::enter() {
  swapcontext(&outside_, &inside_);
}
void Fiber::leave() {
  swapcontext(&inside_, &outside_);
}

#endif

}  // namespace tamis::sim
