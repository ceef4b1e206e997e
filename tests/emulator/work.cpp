// Work on streams: the line in which it waits, and what each kind of it does.
#include "work.hpp"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <deque>

#include "faults.hpp"
#include "memory.hpp"

namespace emulator {

static std::deque<Node> line;

static void inside(const void* from, size_t bytes, const char* what) {
    if (!within(from, bytes)) emulator_wrong("%s: %zu bytes at %p lie in no allocation of the device", what, bytes, from);
}

static void run_kernel(Node& node) {
    const Kernel& kernel = *node.function->kernel;
    void* arguments[most_parameters];
    for (uint32_t i = 0; i < kernel.parameters; ++i) {
        arguments[i] = &node.arguments[i];
        const void* pointer = reinterpret_cast<const void*>(node.arguments[i]);
        if (kernel.pointer[i] && pointer && !within(pointer, 0)) {
            emulator_wrong("kernel %s: its parameter %u, %p, is no memory of the device", kernel.name, i, pointer);
        }
    }
    run(Launch{&kernel, node.blocks, node.threads, node.shared_bytes, node.function->shared_begin, node.function->shared_end},
        arguments);
    ran(kernel.name, node.blocks.x, node.blocks.y, node.blocks.z, node.threads, node.shared_bytes);
}

static void copy(const Node& node) {
    for (const void* end : {static_cast<const void*>(node.to), node.from}) {
        if (!pinned(end)) inside(end, node.bytes, "a copy");
        usable(end, node.bytes, "a copy");
    }
    memmove(node.to, node.from, node.bytes);
}

static void fill(const Node& node) {
    inside(node.to, node.bytes, "memset");
    for (size_t i = 0; i < node.bytes; i += node.pattern_bytes) {
        memcpy(static_cast<char*>(node.to) + i, &node.pattern, node.pattern_bytes);
    }
}

static double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return double(time.tv_sec) * 1e3 + double(time.tv_nsec) * 1e-6;
}

static void carry_out(Node& node) {
    switch (node.kind) {
    case Node::Kind::Run: return run_kernel(node);
    case Node::Kind::Copy: return copy(node);
    case Node::Kind::Fill: return fill(node);
    case Node::Kind::Give:
        inside(node.to, node.bytes, "a copy to the device");
        memcpy(node.to, node.given.data(), node.bytes);
        return;
    case Node::Kind::Record: node.event->milliseconds = now(); return;
    case Node::Kind::Call: return node.function_of_host(node.to);
    case Node::Kind::Release:
        if (!release(node.to)) emulator_wrong("cuMemFreeAsync of %p, which is no memory of the device", node.to);
        return;
    }
}

void finish() {
    while (!line.empty()) {
        Node node = std::move(line.front());
        line.pop_front();
        carry_out(node);
    }
}

void put(Stream& stream, Node node) {
    if (stream.recording) {
        stream.recording->nodes.push_back(std::move(node));
        return;
    }
    line.push_back(std::move(node));
    static const bool eager = getenv("LECTERN_EMULATOR_EAGER") != nullptr;
    if (eager || chance(8)) finish();
}

}  // namespace emulator
