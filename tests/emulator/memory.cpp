// The device's memory and the host's that is pinned.
#include "memory.hpp"

#include <stdlib.h>

#include <map>

#include "machine.hpp"

extern "C" void* __asan_region_is_poisoned(void* from, size_t bytes) __attribute__((weak));

namespace emulator {

using Blocks = std::map<uintptr_t, size_t>;

static Blocks device, host;
static size_t used = 0;

// The block that a place lies in or right behind.
static Blocks::const_iterator block_of(const Blocks& blocks, const void* from) {
    auto after = blocks.upper_bound(reinterpret_cast<uintptr_t>(from));
    if (after == blocks.begin()) return blocks.end();
    --after;
    return reinterpret_cast<uintptr_t>(from) - after->first <= after->second ? after : blocks.end();
}

size_t memory_total() {
    const char* text = getenv("LECTERN_EMULATOR_MEMORY");
    return text ? strtoull(text, nullptr, 10) : size_t(8) << 30;
}

size_t memory_free() { return memory_total() - used; }

void* allocate(size_t bytes) {
    void* pointer = nullptr;
    if (bytes > memory_free() || posix_memalign(&pointer, 256, bytes) != 0) return nullptr;
    spoil(pointer, bytes);
    device[reinterpret_cast<uintptr_t>(pointer)] = bytes;
    used += bytes;
    return pointer;
}

bool release(void* pointer) {
    auto found = device.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == device.end()) return false;
    used -= found->second;
    device.erase(found);
    free(pointer);
    return true;
}

bool within(const void* from, size_t bytes) {
    auto found = block_of(device, from);
    return found != device.end() && reinterpret_cast<uintptr_t>(from) - found->first + bytes <= found->second;
}

void* pin(size_t bytes) {
    void* pointer = nullptr;
    if (posix_memalign(&pointer, 256, bytes ? bytes : 1) != 0) return nullptr;
    spoil(pointer, bytes);
    host[reinterpret_cast<uintptr_t>(pointer)] = bytes;
    return pointer;
}

bool unpin(void* pointer) {
    if (host.erase(reinterpret_cast<uintptr_t>(pointer)) == 0) return false;
    free(pointer);
    return true;
}

bool pinned(const void* from) { return block_of(host, from) != host.end(); }

void usable(const void* from, size_t bytes, const char* what) {
    if (bytes == 0 || __asan_region_is_poisoned == nullptr) return;
    const void* bad = __asan_region_is_poisoned(const_cast<void*>(from), bytes);
    if (bad) emulator_wrong("%s: %zu bytes at %p, of which %p is not to be used", what, bytes, from, bad);
}

}  // namespace emulator
