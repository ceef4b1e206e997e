// What the lanes of a warp do together once all of them have come.
#pragma once

#include "contract.hpp"

namespace emulator {

// The CUDA name of it, for messages.
const char* name_of(Together what);

// Does it for `lanes`; `parts` has each lane's part, null for the others.
void perform(Together what, uint32_t lanes, void* const (&parts)[32]);

}  // namespace emulator
