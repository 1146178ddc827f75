// runtime.hpp - threads, instruction set, compute type and memory
#ifndef GRADACCUM_RUNTIME_HPP
#define GRADACCUM_RUNTIME_HPP

#include <cstddef>
#include <cstdint>

#include "detail.hpp"

namespace gradaccum {

/// The version of the loaded library, as "0.1.0".
inline const char *version() noexcept { return ga_version(); }

/// Of the loaded library: GA_ABI_VERSION is that of the header.
inline std::int32_t abi_version() noexcept { return ga_abi_version(); }

inline void set_num_threads(std::int32_t count) { check(ga_set_num_threads(count)); }

inline std::int32_t num_threads() {
    std::int32_t count = 0;
    check(ga_num_threads(&count));
    return count;
}

inline const char *instruction_set() {
    const char *name = nullptr;
    check(ga_instruction_set(&name));
    return name;
}

inline void set_compute_dtype(DType dtype) { check(ga_set_compute_dtype(detail::constant(dtype))); }

inline DType compute_dtype() {
    std::int32_t dtype = 0;
    check(ga_compute_dtype(&dtype));
    return static_cast<DType>(dtype);
}

/// Computes in another type on this thread for as long as it lives.
class [[nodiscard]] ComputeDTypeGuard {
public:
    explicit ComputeDTypeGuard(DType dtype) : before_(compute_dtype()) { set_compute_dtype(dtype); }
    ~ComputeDTypeGuard() { ga_set_compute_dtype(detail::constant(before_)); }
    ComputeDTypeGuard(const ComputeDTypeGuard &) = delete;
    ComputeDTypeGuard &operator=(const ComputeDTypeGuard &) = delete;

private:
    DType before_;
};

/// Functions that cannot throw, since the library calls them.
using Allocate = void *(*)(std::size_t size_bytes, std::size_t alignment, void *user) noexcept;
using Release = void (*)(void *memory, std::size_t size_bytes, void *user) noexcept;

/// Both nullptr brings the library's own source of memory back.
inline void set_allocator(Allocate allocate, Release release, void *user = nullptr) {
    check(ga_set_allocator(allocate, release, user));
}

using Memory = ga_memory;

inline Memory memory_usage() {
    Memory memory = GA_MEMORY_INIT;
    check(ga_memory_usage(&memory));
    return memory;
}

inline void memory_reset_peak() { check(ga_memory_reset_peak()); }
inline void memory_trim() { check(ga_memory_trim()); }

} // namespace gradaccum

#endif // GRADACCUM_RUNTIME_HPP
