// What a file of kernels compiled for the host and the emulated driver agree on.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace emulator {

// Three sizes or places, as CUDA has them.
struct Three {
    uint32_t x, y, z;
};

// Where the running thread is.
struct Place {
    Three thread, block, threads, blocks;
};

// What a warp does together.
enum class Together : uint32_t { Wait, Shuffle, Ballot, Multiply, LoadMatrix };

// A lane's part in a shuffle or ballot: what it gives, which lane it reads, and what it gets. A reader of a lane that
// does not take part, or outside the warp, keeps its own.
struct Exchange {
    uint64_t given;
    uint32_t from;
    uint64_t got;
};

// A lane's fragments of a product on tensor cores.
struct Product {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
};

// A lane's row of four matrices of 8 x 8, and the registers that it gets.
struct Matrices {
    uint16_t row[8];
    uint32_t got[4];
    bool transposed;
};

// Sixteen bytes on their way to shared memory.
struct Copy {
    void* to;
    uint8_t bytes[16];
};

constexpr uint32_t most_parameters = 32;

// A kernel of a file. The list ends with one without a name.
struct Kernel {
    const char* name;
    void (*run)(void** arguments);
    uint32_t parameters;
    uint32_t bytes[most_parameters];
    bool pointer[most_parameters];
    // What __launch_bounds__ says; 0 without.
    uint32_t most_threads;
};

}  // namespace emulator

extern "C" {
// The driver's side, which compiled kernels call.
extern emulator::Place emulator_place;
void emulator_barrier();
void emulator_together(uint32_t lanes, emulator::Together what, void* part);
void emulator_copy(const emulator::Copy* copy);
void emulator_copy_commit();
void emulator_copy_wait(uint32_t pending);
void* emulator_dynamic_shared();
[[noreturn]] void emulator_wrong(const char* format, ...) __attribute__((format(printf, 1, 2)));
}
