// values.hpp - constants of the C header as types, and small values that its functions take
#ifndef GRADACCUM_VALUES_HPP
#define GRADACCUM_VALUES_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>
#if __has_include(<stdfloat>)
#include <stdfloat>
#endif

#include "gradaccum.h"

namespace gradaccum {

// ====== Constants of the C header as types ==============================================================

enum class DType : std::int32_t {
    float32 = GA_FLOAT32,
    bfloat16 = GA_BFLOAT16,
    float16 = GA_FLOAT16,
    int32 = GA_INT32,
    int64 = GA_INT64
};
enum class Gelu : std::int32_t { erf = GA_GELU_ERF, tanh = GA_GELU_TANH };
enum class Reduction : std::int32_t { sum = GA_REDUCTION_SUM, mean = GA_REDUCTION_MEAN };
enum class MuonAdjust : std::int32_t {
    original = GA_MUON_ORIGINAL,
    match_rms_adamw = GA_MUON_MATCH_RMS_ADAMW,
    spectral_unclamped = GA_MUON_SPECTRAL_UNCLAMPED
};
enum class Normalization : std::int32_t { weight = GA_NORMALIZATION_WEIGHT, sum = GA_NORMALIZATION_SUM };
enum class AccumulateInto : std::int32_t {
    gradients = GA_ACCUMULATE_INTO_GRADIENTS,
    moments = GA_ACCUMULATE_INTO_MOMENTS
};
enum class SumFormat : std::int32_t {
    float32 = GA_SUM_FLOAT32,
    bfloat16_stochastic = GA_SUM_BFLOAT16_STOCHASTIC,
    bfloat16_kahan = GA_SUM_BFLOAT16_KAHAN,
    bfloat16 = GA_SUM_BFLOAT16
};
enum class OnNonFinite : std::int32_t { skip = GA_ON_NON_FINITE_SKIP, raise = GA_ON_NON_FINITE_RAISE };
enum class Outcome : std::int32_t {
    applied = GA_STEP_APPLIED,
    skipped_non_finite = GA_STEP_SKIPPED_NON_FINITE,
    skipped_zero_weight = GA_STEP_SKIPPED_ZERO_WEIGHT,
    skipped_outlier = GA_STEP_SKIPPED_OUTLIER,
    pending = GA_STEP_PENDING,
    dropped = GA_STEP_DROPPED,
    empty = GA_STEP_EMPTY,
    micro_batch_non_finite = GA_MICRO_BATCH_NON_FINITE,
    skipped_overflow = GA_STEP_SKIPPED_OVERFLOW
};
enum class Decision : std::int32_t { skip = GA_DECISION_SKIP, raise = GA_DECISION_RAISE, apply = GA_DECISION_APPLY };
enum class Tail : std::int32_t { step = GA_TAIL_STEP, carry = GA_TAIL_CARRY, drop = GA_TAIL_DROP };

/// What a schedule, a ramp or an average reads: applied updates, or the weight of their windows.
enum class Clock : std::int32_t { updates = GA_CLOCK_UPDATES, weight = GA_CLOCK_WEIGHT };
enum class ScheduleKind : std::int32_t {
    constant = GA_SCHEDULE_CONSTANT,
    linear = GA_SCHEDULE_LINEAR,
    cosine = GA_SCHEDULE_COSINE,
    inverse_sqrt = GA_SCHEDULE_INVERSE_SQRT,
    step = GA_SCHEDULE_STEP,
    exponential = GA_SCHEDULE_EXPONENTIAL,
    one_cycle = GA_SCHEDULE_ONE_CYCLE,
    plateau = GA_SCHEDULE_PLATEAU,
    table = GA_SCHEDULE_TABLE
};
enum class Anneal : std::int32_t { cosine = GA_ANNEAL_COSINE, linear = GA_ANNEAL_LINEAR };
enum class PlateauSignal : std::int32_t { window_loss = GA_PLATEAU_WINDOW_LOSS, metric = GA_PLATEAU_METRIC };
enum class PlateauMode : std::int32_t { min = GA_PLATEAU_MIN, max = GA_PLATEAU_MAX };
enum class ThresholdMode : std::int32_t { relative = GA_THRESHOLD_RELATIVE, absolute = GA_THRESHOLD_ABSOLUTE };

/// What the weight of a window, over a base weight, multiplies its learning rate by.
enum class ScalingRule : std::int32_t { none = GA_SCALING_NONE, linear = GA_SCALING_LINEAR, sqrt = GA_SCALING_SQRT };

/// An ignore_index that no target can have.
inline constexpr std::int64_t no_ignore_index = GA_NO_IGNORE_INDEX;

/// The weight of a micro-batch that gets it later, by set_weight.
inline constexpr double weight_later = GA_WEIGHT_LATER;

// ====== Small values ====================================================================================

/// Elements that lie one after the other in somebody else's memory, as std::span of C++20.
template <class T> class Span {
public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;

    constexpr Span() noexcept = default;
    constexpr Span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}

    /// A vector, an array, a std::span, or whatever has data() and size().
    template <class Container,
              class = std::enable_if_t<std::is_convertible_v<
                  std::remove_pointer_t<decltype(std::data(std::declval<Container &>()))> (*)[], T (*)[]>>>
    constexpr Span(Container &&container) noexcept : data_(std::data(container)), size_(std::size(container)) {}

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr T &operator[](std::size_t index) const noexcept { return data_[index]; }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/// The sizes, or the strides, of a tensor's axes: at most GA_MAX_RANK of them, in the object itself.
class Shape {
public:
    Shape() noexcept = default;
    Shape(std::initializer_list<std::int64_t> sizes) noexcept : Shape(sizes.begin(), sizes.size()) {}
    Shape(const std::vector<std::int64_t> &sizes) noexcept : Shape(sizes.data(), sizes.size()) {}
    template <std::size_t n>
    Shape(const std::array<std::int64_t, n> &sizes) noexcept : Shape(sizes.data(), n) {}
    /// The library refuses a rank that is too large by itself; sizes beyond the most are not kept.
    Shape(const std::int64_t *sizes, std::size_t rank) noexcept : rank_(rank) {
        for (std::size_t axis = 0; axis < rank && axis < sizes_.size(); axis++) sizes_[axis] = sizes[axis];
    }

    std::int32_t rank() const noexcept { return static_cast<std::int32_t>(rank_); }
    std::size_t size() const noexcept { return rank_; }
    const std::int64_t *data() const noexcept { return sizes_.data(); }
    const std::int64_t *begin() const noexcept { return sizes_.data(); }
    const std::int64_t *end() const noexcept { return sizes_.data() + (rank_ < sizes_.size() ? rank_ : sizes_.size()); }
    std::int64_t operator[](std::size_t axis) const noexcept { return sizes_[axis]; }

    /// The product of the sizes; nothing if that is no number of elements.
    std::optional<std::int64_t> element_count() const noexcept {
        std::int64_t count = 1;
        for (const std::int64_t size : *this) {
            if (size < 0 || (size > 0 && count > INT64_MAX / size)) return std::nullopt;
            count *= size;
        }
        return count;
    }

    friend bool operator==(const Shape &a, const Shape &b) noexcept {
        if (a.rank_ != b.rank_) return false;
        for (std::size_t axis = 0; axis < a.sizes_.size(); axis++)
            if (a.sizes_[axis] != b.sizes_[axis]) return false;
        return true;
    }
    friend bool operator!=(const Shape &a, const Shape &b) noexcept { return !(a == b); }

private:
    std::array<std::int64_t, GA_MAX_RANK> sizes_{};
    std::size_t rank_ = 0;
};

/// Which element type a C++ type is. Specialise it for a 16-bit floating type of your own; std::uint16_t stands for the
/// bits of both.
template <class T, class = void> struct ElementType;
template <> struct ElementType<float> {
    static constexpr DType dtype = DType::float32;
};
template <class T>
struct ElementType<T, std::enable_if_t<std::is_integral_v<T> && std::is_signed_v<T> && sizeof(T) == 4>> {
    static constexpr DType dtype = DType::int32;
};
template <class T>
struct ElementType<T, std::enable_if_t<std::is_integral_v<T> && std::is_signed_v<T> && sizeof(T) == 8>> {
    static constexpr DType dtype = DType::int64;
};
#if defined(__STDCPP_BFLOAT16_T__)
template <> struct ElementType<std::bfloat16_t> {
    static constexpr DType dtype = DType::bfloat16;
};
#endif
#if defined(__STDCPP_FLOAT16_T__)
template <> struct ElementType<std::float16_t> {
    static constexpr DType dtype = DType::float16;
};
#endif

} // namespace gradaccum

#endif // GRADACCUM_VALUES_HPP
