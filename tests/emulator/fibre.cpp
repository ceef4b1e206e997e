// Fibres: a switch saves what a call preserves and exchanges stacks.
#include "fibre.hpp"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

// AddressSanitizer's view of stacks, where it is loaded.
extern "C" {
void __sanitizer_start_switch_fiber(void** kept, const void* bottom, size_t bytes) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void* kept, const void** bottom, size_t* bytes) __attribute__((weak));
// `pointer` gets the old stack's place; execution goes on with `next`.
void emulator_exchange(void** pointer, void* next);
}

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_exchange
.hidden emulator_exchange
.type emulator_exchange,@function
emulator_exchange:
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
.size emulator_exchange, .-emulator_exchange
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_exchange
.hidden emulator_exchange
.type emulator_exchange,%function
emulator_exchange:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_exchange, .-emulator_exchange
)");
#else
#error "fibres know x86-64 and aarch64"
#endif

namespace emulator {

constexpr size_t page = 4096;
constexpr size_t stack_bytes = 32 * page;

// Whom the latest switch left, for the side that goes on.
static Fibre* left = nullptr;

void Fibre::begin(void (*body)()) {
    if (stack_ == nullptr) {
        // The lowest page is not to be touched: a stack that runs over ends the program there.
        void* room = mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (room == MAP_FAILED || mprotect(room, page, PROT_NONE) != 0) {
            perror("emulator: a fibre's stack");
            abort();
        }
        stack_ = static_cast<char*>(room) + page;
        bottom_ = stack_;
        bytes_ = stack_bytes;
    }
    kept_ = nullptr;
    void** top = reinterpret_cast<void**>(stack_ + stack_bytes);
#if defined(__x86_64__)
    // Where the body would return to, the body, and six registers. On entry the stack is 8 below a multiple of 16.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(body);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
    top -= 20;
    for (int i = 0; i < 20; ++i) top[i] = nullptr;
    top[11] = reinterpret_cast<void*>(body);
#endif
    pointer_ = top;
}

void Fibre::switch_to(Fibre& other, bool ends) {
    left = this;
    if (__sanitizer_start_switch_fiber) {
        __sanitizer_start_switch_fiber(ends ? nullptr : &kept_, other.bottom_, other.bytes_);
    }
    emulator_exchange(&pointer_, other.pointer_);
    if (__sanitizer_finish_switch_fiber) {
        const void* bottom;
        size_t bytes;
        __sanitizer_finish_switch_fiber(kept_, &bottom, &bytes);
        if (left->stack_ == nullptr) {
            left->bottom_ = bottom;
            left->bytes_ = bytes;
        }
    }
}

void Fibre::arrived() {
    if (__sanitizer_finish_switch_fiber) {
        const void* bottom;
        size_t bytes;
        __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
        if (left->stack_ == nullptr) {
            left->bottom_ = bottom;
            left->bytes_ = bytes;
        }
    }
}

}  // namespace emulator
