// Work that is put on a stream: done later, or recorded to be done again.
//
// Every stream's work waits in one line, in the order in which it was put there, until something waits for it or chance
// has it done: so a program that reads too early sees what nobody wants to read. LECTERN_EMULATOR_EAGER=1 does it at once.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

#include "machine.hpp"

namespace emulator {

// A kernel of a loaded file.
struct Function {
    const Kernel* kernel;
    char* shared_begin;
    char* shared_end;
    uint32_t most_shared;
};

struct Event {
    double milliseconds = 0;
};

struct Node {
    enum class Kind { Run, Copy, Fill, Give, Record, Release, Call } kind;
    explicit Node(Kind kind) : kind(kind) {}
    // Run.
    Function* function = nullptr;
    Three blocks{};
    uint32_t threads = 0, shared_bytes = 0;
    std::vector<uint64_t> arguments;
    // Copy within the device or from host memory that may be read later, and Fill.
    void* to = nullptr;
    const void* from = nullptr;
    size_t bytes = 0;
    uint32_t pattern = 0, pattern_bytes = 1;
    // Give: bytes that were taken from the host when they were offered.
    std::vector<char> given;
    // Call.
    void (*function_of_host)(void*) = nullptr;
    // Record.
    Event* event = nullptr;
};

struct Graph {
    std::vector<Node> nodes;
};

struct Stream {
    Graph* recording = nullptr;
    bool spoiled = false;
};

// Puts work on a stream, or into what it records.
void put(Stream& stream, Node node);
// Does all that waits.
void finish();

}  // namespace emulator
