#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

namespace emulator {

#if defined(__x86_64__)

// Saves the registers that a call preserves on the stack, and the stack pointer in `*save`; then the reverse from `load`.
extern "C" void tpgm_emulator_switch(void** save, void* load);

asm(R"(
.text
.type tpgm_emulator_switch, @function
.hidden tpgm_emulator_switch
.globl tpgm_emulator_switch
tpgm_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size tpgm_emulator_switch, . - tpgm_emulator_switch
)");

void Context::prepare(void (*entry)()) {
    // From the top: no caller, the address that `ret` takes, and zeros for the six registers. A function starts with a stack
    // pointer that is 8 below a multiple of 16.
    void** top = reinterpret_cast<void**>(stack + usable);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) {
        *--top = nullptr;
    }
    stack_pointer = top;
}

void Context::jump(Context& to) {
    to.from = this;
    tpgm_emulator_switch(&stack_pointer, to.stack_pointer);
}

#else

void Context::prepare(void (*entry)()) {
    getcontext(&saved);
    saved.uc_stack.ss_sp = stack;
    saved.uc_stack.ss_size = usable;
    saved.uc_link = nullptr;
    makecontext(&saved, entry, 0);
}

void Context::jump(Context& to) {
    to.from = this;
    swapcontext(&saved, &to.saved);
}

#endif

void Context::use_stack(char* bottom, size_t stagger) {
    stack = bottom;
    usable = STACK_BYTES - stagger;
    tracked.use_stack(bottom, STACK_BYTES);
}

void Context::switch_to(Context& to) {
    tracked.leaving(to.tracked, false);
    jump(to);
    tracked.arrived(from->tracked);
}

void Context::end_in(Context& to) {
    tracked.leaving(to.tracked, true);
    jump(to);
}

namespace {
size_t page() { return size_t(sysconf(_SC_PAGESIZE)); }
} // namespace

char* allocate_stacks(size_t count) {
    const size_t bytes = count * (STACK_BYTES + page());
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        throw std::bad_alloc();
    }
    char* stacks = static_cast<char*>(memory);
    for (size_t i = 0; i < count; ++i) {
        mprotect(stack_at(stacks, i) - page(), page(), PROT_NONE);
    }
    return stacks;
}

char* stack_at(char* stacks, size_t index) { return stacks + index * (STACK_BYTES + page()) + page(); }

} // namespace emulator
