// split.hpp - micro-batches of a batch
#ifndef GRADACCUM_SPLIT_HPP
#define GRADACCUM_SPLIT_HPP

#include <cstddef>
#include <cstdint>
#include <vector>

#include "error.hpp"

namespace gradaccum {

/// The consecutive samples begin ... end - 1 of a micro-batch.
struct SampleRange {
    std::int64_t begin;
    std::int64_t end;

    std::int64_t size() const noexcept { return end - begin; }
};

namespace detail {

template <class Function, class... Arguments>
std::vector<SampleRange> split(Function function, Arguments... arguments) {
    std::int64_t count = 0;
    check(function(nullptr, 0, &count, arguments...));
    std::vector<std::int64_t> boundaries(static_cast<std::size_t>(count) + 1);
    check(function(boundaries.data(), count + 1, &count, arguments...));
    std::vector<SampleRange> ranges(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < ranges.size(); i++) ranges[i] = {boundaries[i], boundaries[i + 1]};
    return ranges;
}

} // namespace detail

inline std::vector<SampleRange> split_by_count(std::int64_t samples, std::int64_t micro_batches) {
    return detail::split(ga_split_by_count, samples, micro_batches);
}

inline std::vector<SampleRange> split_by_size(std::int64_t samples, std::int64_t size) {
    return detail::split(ga_split_by_size, samples, size);
}

inline std::vector<SampleRange> split_by_tokens(const std::vector<std::int64_t> &lengths, std::int64_t token_budget,
                                                bool padded) {
    return detail::split(ga_split_by_tokens, lengths.data(), static_cast<std::int64_t>(lengths.size()), token_budget,
                         padded ? 1 : 0);
}

} // namespace gradaccum

#endif // GRADACCUM_SPLIT_HPP
