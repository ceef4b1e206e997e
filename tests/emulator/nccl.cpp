// An emulated NCCL, libnccl.so.2: sums over processes of one machine, through sockets, in the order of their ranks.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <vector>

extern "C" int cuLaunchHostFunc(void* stream, void (*work)(void*), void* told);

namespace {

enum Result { Success = 0, UnhandledCudaError = 1, SystemError = 2, InvalidArgument = 4 };

struct Id {
    char bytes[128];
};

// What the first process waits at, and tells the others.
struct Place {
    int listener;
    uint16_t port;
};

struct Communicator {
    int world, rank;
    // Of the first: one socket a process, its own unused. Of others: the first's alone.
    std::vector<int> sockets;
    std::atomic<bool> aborted{false};
};

// As the library does where another process is gone: for ever, unless somebody gives it all up.
void wait_for_abort(const Communicator& all) {
    while (!all.aborted) usleep(1000);
}

struct Work {
    Communicator* communicator;
    void* numbers;
    size_t count;
    int type;
};

bool whole(int socket, void* at, size_t bytes, bool reading) {
    char* place = static_cast<char*>(at);
    while (bytes > 0) {
        const ssize_t done = reading ? recv(socket, place, bytes, 0) : send(socket, place, bytes, MSG_NOSIGNAL);
        if (done <= 0) return false;
        place += done;
        bytes -= size_t(done);
    }
    return true;
}

template <class T> void sum(const Work& work) {
    T* numbers = static_cast<T*>(work.numbers);
    const Communicator& all = *work.communicator;
    const size_t bytes = work.count * sizeof(T);
    if (all.rank > 0) {
        if (!whole(all.sockets[0], numbers, bytes, false) || !whole(all.sockets[0], numbers, bytes, true)) wait_for_abort(all);
        return;
    }
    std::vector<T> other(work.count);
    for (int rank = 1; rank < all.world; ++rank) {
        if (!whole(all.sockets[size_t(rank)], other.data(), bytes, true)) return wait_for_abort(all);
        for (size_t i = 0; i < work.count; ++i) numbers[i] += other[i];
    }
    for (int rank = 1; rank < all.world; ++rank) {
        if (!whole(all.sockets[size_t(rank)], numbers, bytes, false)) return wait_for_abort(all);
    }
}

void carry_out(void* told) {
    // A recorded sum is carried out many times, so what it was told is kept.
    const Work& work = *static_cast<const Work*>(told);
    work.type == 7 ? sum<float>(work) : sum<double>(work);
}

sockaddr_in address(uint16_t port) {
    sockaddr_in result{};
    result.sin_family = AF_INET;
    result.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    result.sin_port = htons(port);
    return result;
}

}  // namespace

extern "C" {

int ncclGetUniqueId(Id* id) {
    memset(id, 0, sizeof *id);
    Place place{socket(AF_INET, SOCK_STREAM, 0), 0};
    sockaddr_in at = address(0);
    socklen_t length = sizeof at;
    if (place.listener < 0 || bind(place.listener, reinterpret_cast<sockaddr*>(&at), sizeof at) ||
        listen(place.listener, 64) || getsockname(place.listener, reinterpret_cast<sockaddr*>(&at), &length)) {
        return SystemError;
    }
    place.port = ntohs(at.sin_port);
    memcpy(id, &place, sizeof place);
    return Success;
}

int ncclCommInitRank(Communicator** communicator, int world, Id id, int rank) {
    if (world < 1 || rank < 0 || rank >= world) return InvalidArgument;
    Place place;
    memcpy(&place, &id, sizeof place);
    Communicator* made = new Communicator{world, rank, std::vector<int>(size_t(rank == 0 ? world : 1), -1)};
    if (rank > 0) {
        const sockaddr_in at = address(place.port);
        made->sockets[0] = socket(AF_INET, SOCK_STREAM, 0);
        int32_t number = rank;
        if (connect(made->sockets[0], reinterpret_cast<const sockaddr*>(&at), sizeof at) ||
            !whole(made->sockets[0], &number, sizeof number, false)) {
            return SystemError;
        }
    }
    for (int joined = 1; rank == 0 && joined < world; ++joined) {
        const int other = accept(place.listener, nullptr, nullptr);
        int32_t number = 0;
        if (other < 0 || !whole(other, &number, sizeof number, true)) return SystemError;
        if (number < 1 || number >= world || made->sockets[size_t(number)] != -1) return InvalidArgument;
        made->sockets[size_t(number)] = other;
    }
    if (rank == 0) close(place.listener);
    *communicator = made;
    return Success;
}

int ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, Communicator* communicator,
                  void* stream) {
    if (from != to || (type != 7 && type != 8) || operation != 0 || !communicator) return InvalidArgument;
    Work* work = new Work{communicator, to, count, type};
    return cuLaunchHostFunc(stream, carry_out, work) ? UnhandledCudaError : Success;
}

int ncclCommDestroy(Communicator* communicator) {
    for (int socket : communicator->sockets) {
        if (socket >= 0) close(socket);
    }
    delete communicator;
    return Success;
}

// What is being summed may still look at it, so that it is kept.
int ncclCommAbort(Communicator* communicator) {
    communicator->aborted = true;
    for (int socket : communicator->sockets) {
        if (socket >= 0) shutdown(socket, SHUT_RDWR);
    }
    return Success;
}

const char* ncclGetErrorString(int result) {
    switch (result) {
    case Success: return "no error";
    case UnhandledCudaError: return "unhandled cuda error";
    case SystemError: return "unhandled system error";
    default: return "invalid argument";
    }
}

}  // extern "C"
