// What is asked of the emulated libraries, counted, and failures on demand.
//
// LECTERN_EMULATOR_FAIL=NAME:COUNT:CODE makes call number COUNT of NAME return CODE; with COUNT 0 every call does.
// LECTERN_EMULATOR_TRACE=FILE gets, when the program ends, a line `call NAME COUNT` for each function called and a line
// `kernel NAME X Y Z THREADS SHARED COUNT` for each geometry a kernel was run in. Lines are appended.
#pragma once

#include <stdint.h>

namespace emulator {

// Counts a call; what it must return, and 0 where it may go on.
int asked(const char* name);

// Counts a finished launch.
void ran(const char* kernel, uint32_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t shared);

}  // namespace emulator
