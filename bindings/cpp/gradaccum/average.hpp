// average.hpp - averages of weights
#ifndef GRADACCUM_AVERAGE_HPP
#define GRADACCUM_AVERAGE_HPP

#include <cstdint>
#include <vector>

#include "optimizer.hpp"

namespace gradaccum {

struct AverageOptions : ga_average_options {
    using Base = ga_average_options;
    AverageOptions() noexcept : Base GA_AVERAGE_OPTIONS_INIT {}
    GRADACCUM_OPTION(AverageOptions, Clock, clock)
    GRADACCUM_OPTION(AverageOptions, double, decay)
    GRADACCUM_OPTION(AverageOptions, double, half_life)
    GRADACCUM_OPTION(AverageOptions, bool, warmup)
};

/// An exponential moving average of an optimizer's parameters, which moves once per applied update.
class Average : public detail::Handle<ga_average, ga_average_free> {
public:
    /// None, as one that was moved from.
    Average() noexcept = default;

    /// Takes over a handle that a C call made.
    explicit Average(ga_average *handle) noexcept : Handle(handle) {}

    explicit Average(const Optimizer &optimizer, const AverageOptions &options = {})
        : Handle(created(optimizer, options)) {}

    /// A copy of the averaged weights of a parameter, in the optimizer's order.
    Tensor weights(std::int64_t index) const {
        return Tensor::make(ga_average_weights, static_cast<const ga_average *>(handle()), index);
    }

    /// Exchanges the parameters' weights with their averages, as for an evaluation, until swap_out().
    void swap_in() { check(ga_average_swap_in(handle())); }
    void swap_out() { check(ga_average_swap_out(handle())); }

    /// Starts anew from the weights as they are.
    void reset() { check(ga_average_reset(handle())); }

    /// The updates that it has seen since it was created, reset or loaded.
    std::int64_t updates() const {
        std::int64_t out = 0;
        check(ga_average_updates(handle(), &out));
        return out;
    }

    /// Goes on from averages of before, one per parameter, which are copied.
    void load(const std::vector<Tensor> &weights, std::int64_t updates) {
        std::vector<const ga_tensor *> handles;
        for (const Tensor &each : weights) handles.push_back(each.handle());
        check(ga_average_load(handle(), handles.data(), static_cast<std::int64_t>(handles.size()), updates));
    }

private:
    static ga_average *created(const Optimizer &optimizer, const AverageOptions &options) {
        ga_average *out = nullptr;
        check(ga_average_create(&out, optimizer.handle(), &options));
        return out;
    }
};

/// Has the averages in for as long as it lives.
class [[nodiscard]] AverageGuard {
public:
    explicit AverageGuard(Average &average) : average_(average) { average.swap_in(); }
    ~AverageGuard() { ga_average_swap_out(average_.handle()); }
    AverageGuard(const AverageGuard &) = delete;
    AverageGuard &operator=(const AverageGuard &) = delete;

private:
    Average &average_;
};

} // namespace gradaccum

#endif // GRADACCUM_AVERAGE_HPP
