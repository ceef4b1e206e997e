// The device's memory: the host's, with every allocation known.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace emulator {

// All of it: LECTERN_EMULATOR_MEMORY in bytes, 8 GiB without.
size_t memory_total();
size_t memory_free();

// New memory at a multiple of 256, filled with what nobody wants to read; null where there is too little.
void* allocate(size_t bytes);
// Gives it back; false when it is none of ours.
bool release(void* pointer);

// Whether these bytes lie within one allocation; `end` allows for none of them at its end.
bool within(const void* from, size_t bytes);

// Host memory that copies may use while the program goes on.
void* pin(size_t bytes);
bool unpin(void* pointer);
bool pinned(const void* from);

// Ends the program unless the sanitiser thinks these bytes fit to be used.
void usable(const void* from, size_t bytes, const char* what);

}  // namespace emulator
