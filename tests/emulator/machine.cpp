// The machine: schedules the fibres of a block, and lets them meet at barriers and in warps.
#include "machine.hpp"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "fibre.hpp"
#include "together.hpp"

extern "C" {
emulator::Place emulator_place;
void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));
}

namespace emulator {

constexpr uint32_t most_threads = 1024;
constexpr int exit_code = 99;

enum class State : uint8_t { Ready, Barrier, Together, Ended };

struct Thread {
    Fibre fibre;
    State state;
    // What it waits for with its warp.
    uint32_t lanes;
    Together what;
    void* part;
    // Copies on their way, and where each group of them ends.
    std::vector<Copy> copies;
    std::vector<size_t> groups;
};

static Launch launch;
static void** arguments;
static Fibre scheduler;
static std::unique_ptr<Thread[]> threads;
static std::vector<uint32_t> ready;
static uint32_t here, at_barrier, ended;
static bool running = false;
static std::vector<uint64_t> dynamic_shared;
static char* dynamic_begin;

// ---------------------------------------------------------------------------------------------- chance

static uint64_t seed() {
    static const uint64_t value = [] {
        const char* text = getenv("LECTERN_EMULATOR_SEED");
        return text ? strtoull(text, nullptr, 10) : uint64_t(1337);
    }();
    return value;
}

static uint32_t below(uint32_t range) {
    // Steele, Lea and Flood 2014: splitmix64.
    static uint64_t state = seed();
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return uint32_t((z >> 32) * range >> 32);
}

bool chance(uint32_t range) { return below(range) == 0; }

// ---------------------------------------------------------------------------------------------- what went wrong

static void say_where() {
    if (!running) return;
    const Place& place = emulator_place;
    fprintf(stderr, "emulator: in kernel %s<<<(%u, %u, %u), %u>>>, block (%u, %u, %u), thread %u; LECTERN_EMULATOR_SEED=%llu\n",
            launch.kernel->name, launch.blocks.x, launch.blocks.y, launch.blocks.z, launch.threads, place.block.x,
            place.block.y, place.block.z, here, static_cast<unsigned long long>(seed()));
    fflush(stderr);
}

}  // namespace emulator

void emulator_wrong(const char* format, ...) {
    va_list rest;
    va_start(rest, format);
    fputs("emulator: ", stderr);
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    va_end(rest);
    emulator::say_where();
    _exit(emulator::exit_code);
}

namespace emulator {

void spoil(void* from, size_t bytes) { memset(from, 0xff, bytes); }

// Shared memory has red zones between its arrays, which no sanitised write may touch.
__attribute__((no_sanitize_address)) static void spoil_shared(char* from, char* to) {
    for (volatile char* at = from; at < to; ++at) *at = char(0xff);
}

// ---------------------------------------------------------------------------------------------- scheduling

// Goes on with a thread that can, by chance; with the scheduler when none can.
static void leave(bool ends) {
    Fibre& from = threads[here].fibre;
    if (ready.empty()) {
        from.switch_to(scheduler, ends);
    } else {
        const uint32_t place = below(uint32_t(ready.size()));
        const uint32_t next = ready[place];
        ready[place] = ready.back();
        ready.pop_back();
        const uint32_t back = here;
        here = next;
        emulator_place.thread.x = next;
        if (next == back) return;
        from.switch_to(threads[next].fibre, ends);
    }
}

static void go_on(uint32_t thread) {
    threads[thread].state = State::Ready;
    ready.push_back(thread);
}

static void body() {
    Fibre::arrived();
    launch.kernel->run(arguments);
    threads[here].state = State::Ended;
    ++ended;
    leave(true);
    abort();
}

// Says why no thread of a block can go on, though some have not ended.
static void stuck() {
    for (uint32_t i = 0; i < launch.threads; ++i) {
        if (threads[i].state != State::Together) continue;
        here = i;
        uint32_t absent = 0;
        for (uint32_t lane = 0; lane < 32; ++lane) {
            const uint32_t other = i / 32 * 32 + lane;
            const bool wanted = threads[i].lanes >> lane & 1;
            const bool there = other < launch.threads && threads[other].state == State::Together &&
                               threads[other].lanes == threads[i].lanes && threads[other].what == threads[i].what;
            if (wanted && !there) absent |= 1u << lane;
        }
        emulator_wrong("a warp waits for lanes %08x at %s: lanes %08x do not come", threads[i].lanes,
                       name_of(threads[i].what), absent);
    }
    for (uint32_t i = 0; i < launch.threads; ++i) {
        if (threads[i].state != State::Barrier) continue;
        here = i;
        uint32_t absent = 0;
        while (threads[absent].state != State::Ended) ++absent;
        emulator_wrong("%u threads wait at __syncthreads, and thread %u has ended without it", at_barrier, absent);
    }
    emulator_wrong("a block that cannot go on");
}

static void run_block() {
    spoil_shared(launch.shared_begin, launch.shared_end);
    at_barrier = ended = 0;
    ready.clear();
    for (uint32_t i = 0; i < launch.threads; ++i) {
        Thread& thread = threads[i];
        thread.copies.clear();
        thread.groups.clear();
        thread.fibre.begin(body);
        go_on(i);
    }
    const uint32_t first = below(launch.threads);
    ready[first] = ready.back();
    ready.pop_back();
    here = first;
    emulator_place.thread = {first, 0, 0};
    scheduler.switch_to(threads[first].fibre);
    if (ended != launch.threads) stuck();
}

void run(const Launch& wanted, void** given) {
    static const bool told = [] {
        if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(say_where);
        return true;
    }();
    (void)told;
    launch = wanted;
    arguments = given;
    if (!threads) threads.reset(new Thread[most_threads]);
    emulator_place.threads = {launch.threads, 1, 1};
    emulator_place.blocks = launch.blocks;
    const uint64_t count = uint64_t(launch.blocks.x) * launch.blocks.y * launch.blocks.z;
    std::vector<uint64_t> order(count);
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t other = below(uint32_t(i + 1));
        order[i] = order[other];
        order[other] = i;
    }
    running = true;
    for (uint64_t block : order) {
        emulator_place.block = {uint32_t(block % launch.blocks.x), uint32_t(block / launch.blocks.x % launch.blocks.y),
                                uint32_t(block / launch.blocks.x / launch.blocks.y)};
        // Its end is the end of the allocation, where AddressSanitizer looks.
        void* room = nullptr;
        if (posix_memalign(&room, 128, launch.shared_bytes ? launch.shared_bytes : 1) != 0) abort();
        dynamic_begin = static_cast<char*>(room);
        spoil(dynamic_begin, launch.shared_bytes);
        run_block();
        free(room);
        dynamic_begin = nullptr;
    }
    running = false;
}

}  // namespace emulator

// ---------------------------------------------------------------------------------------------- what threads call

using namespace emulator;

void emulator_barrier() {
    if (++at_barrier == launch.threads) {
        at_barrier = 0;
        for (uint32_t i = 0; i < launch.threads; ++i) {
            if (i != here) go_on(i);
        }
        go_on(here);
    } else {
        threads[here].state = State::Barrier;
    }
    leave(false);
}

void emulator_together(uint32_t lanes, Together what, void* part) {
    Thread& self = threads[here];
    const uint32_t first = here / 32 * 32;
    if (!(lanes >> (here - first) & 1)) emulator_wrong("%s for lanes %08x, of which this is none", name_of(what), lanes);
    self.state = State::Together;
    self.lanes = lanes;
    self.what = what;
    self.part = part;
    // Most come before the last: the lane that was absent a moment ago is looked at first.
    static uint32_t absent[most_threads / 32];
    uint32_t& looked_for = absent[first / 32];
    void* parts[32] = {};
    for (uint32_t i = 0; i < 32; ++i) {
        const uint32_t lane = (looked_for + i) % 32;
        if (!(lanes >> lane & 1)) continue;
        const uint32_t other = first + lane;
        if (other >= launch.threads) emulator_wrong("%s for lanes %08x in a warp of %u", name_of(what), lanes, launch.threads - first);
        const Thread& thread = threads[other];
        if (thread.state != State::Together || thread.lanes != lanes || thread.what != what) {
            looked_for = lane;
            return leave(false);
        }
        parts[lane] = thread.part;
    }
    perform(what, lanes, parts);
    for (uint32_t lane = 0; lane < 32; ++lane) {
        if (lanes >> lane & 1) go_on(first + lane);
    }
    leave(false);
}

void emulator_copy(const Copy* copy) { threads[here].copies.push_back(*copy); }

void emulator_copy_commit() { threads[here].groups.push_back(threads[here].copies.size()); }

void emulator_copy_wait(uint32_t pending) {
    Thread& self = threads[here];
    if (self.groups.size() <= pending) return;
    const size_t groups = self.groups.size() - pending, copies = self.groups[groups - 1];
    for (size_t i = 0; i < copies; ++i) memcpy(self.copies[i].to, self.copies[i].bytes, 16);
    self.copies.erase(self.copies.begin(), self.copies.begin() + ptrdiff_t(copies));
    self.groups.erase(self.groups.begin(), self.groups.begin() + ptrdiff_t(groups));
    for (size_t& end : self.groups) end -= copies;
}

void* emulator_dynamic_shared() { return dynamic_begin; }
