// loss_scaler.hpp - loss scaling for half precision
#ifndef GRADACCUM_LOSS_SCALER_HPP
#define GRADACCUM_LOSS_SCALER_HPP

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensor.hpp"

namespace gradaccum {

struct LossScalerOptions : ga_loss_scaler_options {
    using Base = ga_loss_scaler_options;
    LossScalerOptions() noexcept : Base GA_LOSS_SCALER_OPTIONS_INIT {}
    GRADACCUM_OPTION(LossScalerOptions, bool, dynamic)
    GRADACCUM_OPTION(LossScalerOptions, double, init_scale)
    GRADACCUM_OPTION(LossScalerOptions, double, growth_factor)
    GRADACCUM_OPTION(LossScalerOptions, double, backoff_factor)
    GRADACCUM_OPTION(LossScalerOptions, std::int64_t, growth_interval)
    GRADACCUM_OPTION(LossScalerOptions, std::int64_t, hysteresis)
    GRADACCUM_OPTION(LossScalerOptions, double, min_scale)
    GRADACCUM_OPTION(LossScalerOptions, double, max_scale)
    GRADACCUM_OPTION(LossScalerOptions, bool, consecutive_hysteresis)
    GRADACCUM_OPTION(LossScalerOptions, bool, allow_any_scale)
};

/// What another scaler with the same options goes on from: the fields of ga_loss_scaler_state.
struct LossScalerState : ga_loss_scaler_state {
    LossScalerState() noexcept : ga_loss_scaler_state GA_LOSS_SCALER_STATE_INIT {}
};

/// The number that losses are multiplied by. Set for an Accumulator, or several, it does all by itself; unscale() and
/// update() are for gradients of your own.
class LossScaler : public detail::Handle<ga_loss_scaler, ga_loss_scaler_free> {
public:
    /// None, as one that was moved from. LossScaler({}) has the defaults of the C header.
    LossScaler() noexcept = default;

    /// Takes over a handle that a C call made.
    explicit LossScaler(ga_loss_scaler *handle) noexcept : Handle(handle) {}

    explicit LossScaler(const LossScalerOptions &options) : Handle(created(options)) {}

    /// The scale of the next window, or of gradients of your own until update().
    double scale() const {
        double value = 0.0;
        check(ga_loss_scaler_scale(handle(), &value));
        return value;
    }

    /// Divides gradients of your own by the scale that they carry, in place: containers or spans of their elements.
    /// Returns the norm of all, which is finite exactly if all elements are. optimizer: a number that tells your
    /// optimizers apart.
    template <class Gradients, class Elements = decltype(std::data(*std::begin(std::declval<Gradients &>())))>
    double unscale(Gradients &&gradients, double scale, std::int64_t optimizer = 0,
                   DType dtype = ElementType<std::remove_cv_t<std::remove_pointer_t<Elements>>>::dtype) {
        static_assert(!std::is_const_v<std::remove_pointer_t<Elements>>, "gradients are unscaled in place");
        if (!detail::is_element<std::remove_pointer_t<Elements>>(dtype))
            throw DTypeError("unscale: the gradients are of another type than dtype says");
        std::vector<void *> addresses;
        std::vector<std::int64_t> counts;
        for (auto &&gradient : gradients) {
            addresses.push_back(std::data(gradient));
            counts.push_back(static_cast<std::int64_t>(std::size(gradient)));
        }
        return unscale(addresses.data(), counts.data(), static_cast<std::int64_t>(counts.size()), dtype, scale,
                       optimizer);
    }
    double unscale(std::initializer_list<Span<float>> gradients, double scale, std::int64_t optimizer = 0) {
        return unscale(std::vector<Span<float>>(gradients), scale, optimizer);
    }
    /// The same with contiguous tensors, as gradients() returns them.
    double unscale(const std::vector<Tensor> &gradients, double scale, std::int64_t optimizer = 0) {
        std::vector<Span<float>> elements;
        for (const Tensor &gradient : gradients) elements.push_back(gradient.data<float>());
        return unscale(elements, scale, optimizer);
    }
    /// The same with addresses, as in C.
    double unscale(void *const *gradients, const std::int64_t *element_counts, std::int64_t count, DType dtype,
                   double scale, std::int64_t optimizer = 0) {
        double norm = 0.0;
        check(ga_loss_scaler_unscale(handle(), gradients, element_counts, count, detail::constant(dtype), scale,
                                     optimizer, &norm));
        return norm;
    }

    /// Ends a round that unscale() had a part in, and updates the scale.
    void update() { check(ga_loss_scaler_update(handle())); }

    /// Throws StateError in the middle of a round.
    LossScalerState save() const {
        LossScalerState state;
        check(ga_loss_scaler_save(handle(), &state));
        return state;
    }
    void load(const LossScalerState &state) { check(ga_loss_scaler_load(handle(), &state)); }

private:
    static ga_loss_scaler *created(const LossScalerOptions &options) {
        ga_loss_scaler *out = nullptr;
        check(ga_loss_scaler_create(&out, &options));
        return out;
    }
};

} // namespace gradaccum

#endif // GRADACCUM_LOSS_SCALER_HPP
