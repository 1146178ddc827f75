// detail.hpp - what the rest is made of: handles, and exceptions of callbacks
#ifndef GRADACCUM_DETAIL_HPP
#define GRADACCUM_DETAIL_HPP

#include <cstdint>
#include <exception>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "error.hpp"
#include "values.hpp"

/// A field of an options struct: a function that sets it and returns the options, and one that reads it. Undefined at
/// the end of gradaccum.hpp.
#define GRADACCUM_OPTION(Options, Type, name) \
    Options &name(Type value) noexcept { \
        Base::name = static_cast<decltype(Base::name)>(value); \
        return *this; \
    } \
    Type name() const noexcept { return static_cast<Type>(Base::name); }

namespace gradaccum {

namespace detail {

/// Owns a handle of the C library.
template <class Object, void (*destroy)(Object *)> class Handle {
public:
    Handle(const Handle &) = delete;
    Handle &operator=(const Handle &) = delete;

    /// Lends the handle to a C call; NULL if this was moved from.
    Object *handle() const noexcept { return handle_; }
    explicit operator bool() const noexcept { return handle_ != nullptr; }

protected:
    Handle() noexcept = default;
    explicit Handle(Object *handle) noexcept : handle_(handle) {}
    Handle(Handle &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Handle &operator=(Handle &&other) noexcept {
        Object *const old = std::exchange(handle_, std::exchange(other.handle_, nullptr));
        if (old != nullptr) destroy(old);
        return *this;
    }
    ~Handle() {
        if (handle_ != nullptr) destroy(handle_);
    }

    Object *give_up() noexcept { return std::exchange(handle_, nullptr); }

private:
    Object *handle_ = nullptr;
};

/// The elements of each parameter. As handles do, it stays what it is when it is moved onto itself, and a vector need not.
class ElementCounts {
public:
    ElementCounts() = default;
    ElementCounts(std::vector<std::int64_t> counts) : counts_(std::move(counts)) {}
    ElementCounts(const ElementCounts &) = default;
    ElementCounts &operator=(const ElementCounts &) = default;
    ElementCounts(ElementCounts &&) noexcept = default;
    ElementCounts &operator=(ElementCounts &&other) noexcept {
        if (this != &other) counts_ = std::move(other.counts_);
        return *this;
    }

    std::size_t size() const noexcept { return counts_.size(); }
    std::int64_t operator[](std::size_t index) const noexcept { return counts_[index]; }

private:
    std::vector<std::int64_t> counts_;
};

/// What a callback throws while a call of this thread runs: it waits on the stack of that call until the C library has
/// returned to it.
class Caught {
public:
    Caught() noexcept : outer_(innermost()) { innermost() = this; }
    ~Caught() { innermost() = outer_; }
    Caught(const Caught &) = delete;
    Caught &operator=(const Caught &) = delete;

    void check(ga_status status) {
        if (status == GA_OK) return;
        if (exception_) std::rethrow_exception(std::exchange(exception_, nullptr));
        throw_error(status);
    }

    /// In a catch (...) of a callback.
    static void keep_current() noexcept {
        if (innermost() != nullptr) innermost()->exception_ = std::current_exception();
    }

private:
    static Caught *&innermost() noexcept {
        static thread_local Caught *caught = nullptr;
        return caught;
    }

    Caught *outer_;
    std::exception_ptr exception_;
};

/// The status of the exception that is being handled; 1, which the library knows not, for what is none of its own.
inline ga_status status_of_current() noexcept {
    try {
        throw;
    } catch (const Error &error) {
        return error.status() < 0 ? error.status() : 1;
    } catch (const std::bad_alloc &) {
        return GA_ERROR_OUT_OF_MEMORY;
    } catch (...) {
        return 1;
    }
}

template <class Enumeration> constexpr std::int32_t constant(Enumeration value) noexcept {
    return static_cast<std::int32_t>(value);
}

template <class T> bool is_element(DType dtype) noexcept {
    if constexpr (std::is_same_v<std::remove_cv_t<T>, std::uint16_t>)
        return dtype == DType::bfloat16 || dtype == DType::float16;
    else
        return ElementType<std::remove_cv_t<T>>::dtype == dtype;
}

} // namespace detail

} // namespace gradaccum

#endif // GRADACCUM_DETAIL_HPP
