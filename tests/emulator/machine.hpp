// The machine that runs launches: blocks one after the other, their threads as fibres, both in an order that
// LECTERN_EMULATOR_SEED decides.
#pragma once

#include "contract.hpp"

namespace emulator {

// What a launch asks for.
struct Launch {
    const Kernel* kernel;
    Three blocks;
    uint32_t threads;
    uint32_t shared_bytes;
    // The file's static shared memory.
    char* shared_begin;
    char* shared_end;
};

// Runs all of it. What a kernel may not do ends the program with a message that names kernel, block and thread.
void run(const Launch& launch, void** arguments);

// Whether it happens, once in `range`.
bool chance(uint32_t range);

// Fills memory with what no kernel wants to read: each float of it is no number, each index is out of bounds.
void spoil(void* from, size_t bytes);

}  // namespace emulator
