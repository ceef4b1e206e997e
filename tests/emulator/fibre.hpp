// One thread of a block as a fibre: a stack of its own, and a switch to another one. Nothing here knows of kernels.
#pragma once

#include <stddef.h>

namespace emulator {

class Fibre {
public:
    // The fibre of the caller, which has its stack already.
    Fibre() = default;
    // Takes the place of whatever this fibre ran: the next switch to it begins `body`, which never returns.
    void begin(void (*body)());
    // Goes on with another fibre until somebody switches back to this one. `ends` says that nobody will.
    void switch_to(Fibre& other, bool ends = false);
    // To be called first by a body.
    static void arrived();

    Fibre(const Fibre&) = delete;
    Fibre& operator=(const Fibre&) = delete;

private:
    void* pointer_ = nullptr;
    char* stack_ = nullptr;
    // What AddressSanitizer is told about the stack, and what it keeps for a fibre that waits.
    const void* bottom_ = nullptr;
    size_t bytes_ = 0;
    void* kept_ = nullptr;
};

}  // namespace emulator
