// How the driver calls kernels whose parameters only the compiler knows.
#pragma once

#include "contract.hpp"

namespace emulator {

template <size_t...> struct Places {};
template <size_t count, size_t... places> struct Count : Count<count - 1, count - 1, places...> {};
template <size_t... places> struct Count<0, places...> {
    typedef Places<places...> type;
};

template <class T> struct IsPointer {
    static constexpr bool value = false;
};
template <class T> struct IsPointer<T*> {
    static constexpr bool value = true;
};

template <auto kernel> struct Entry;
template <class... Parameters, void (*kernel)(Parameters...)> struct Entry<kernel> {
    template <size_t... places> static void spread(void** arguments, Places<places...>) {
        (void)arguments;
        kernel(*static_cast<Parameters*>(arguments[places])...);
    }
    static void run(void** arguments) { spread(arguments, typename Count<sizeof...(Parameters)>::type{}); }
    static constexpr Kernel named(const char* name, uint32_t most_threads) {
        static_assert(sizeof...(Parameters) <= most_parameters, "a kernel of too many parameters");
        return Kernel{name,           run, sizeof...(Parameters), {sizeof(Parameters)...}, {IsPointer<Parameters>::value...},
                      most_threads};
    }
};

// The first of what __launch_bounds__ is given.
template <class... Rest> constexpr uint32_t first_of(uint32_t threads, Rest...) { return threads; }

}  // namespace emulator

extern "C" {
extern char __start_emulator_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulator_shared[] __attribute__((weak, visibility("hidden")));
__attribute__((visibility("default"))) char* emulator_shared_begin() { return __start_emulator_shared; }
__attribute__((visibility("default"))) char* emulator_shared_end() { return __stop_emulator_shared; }
}
