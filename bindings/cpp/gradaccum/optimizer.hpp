// optimizer.hpp - optimizers and rules of the caller
#ifndef GRADACCUM_OPTIMIZER_HPP
#define GRADACCUM_OPTIMIZER_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "schedule.hpp"
#include "tensor.hpp"

namespace gradaccum {

// Options have the defaults of the C header, and a function for each of its fields, which sets it and returns the
// options, or without an argument reads it: AdamWOptions().learning_rate(3e-4).weight_decay(0.1)

struct SGDOptions : ga_sgd_options {
    using Base = ga_sgd_options;
    SGDOptions() noexcept : Base GA_SGD_OPTIONS_INIT {}
    GRADACCUM_OPTION(SGDOptions, bool, nesterov)
    GRADACCUM_OPTION(SGDOptions, double, learning_rate)
    GRADACCUM_OPTION(SGDOptions, double, momentum)
    GRADACCUM_OPTION(SGDOptions, double, weight_decay)
};

struct AdamOptions : ga_adam_options {
    using Base = ga_adam_options;
    AdamOptions() noexcept : Base GA_ADAM_OPTIONS_INIT {}
    GRADACCUM_OPTION(AdamOptions, double, learning_rate)
    GRADACCUM_OPTION(AdamOptions, double, beta1)
    GRADACCUM_OPTION(AdamOptions, double, beta2)
    GRADACCUM_OPTION(AdamOptions, double, eps)
    GRADACCUM_OPTION(AdamOptions, double, weight_decay)
};

struct AdamWOptions : ga_adamw_options {
    using Base = ga_adamw_options;
    AdamWOptions() noexcept : Base GA_ADAMW_OPTIONS_INIT {}
    GRADACCUM_OPTION(AdamWOptions, double, learning_rate)
    GRADACCUM_OPTION(AdamWOptions, double, beta1)
    GRADACCUM_OPTION(AdamWOptions, double, beta2)
    GRADACCUM_OPTION(AdamWOptions, double, eps)
    GRADACCUM_OPTION(AdamWOptions, double, weight_decay)
};

struct RAdamOptions : ga_radam_options {
    using Base = ga_radam_options;
    RAdamOptions() noexcept : Base GA_RADAM_OPTIONS_INIT {}
    GRADACCUM_OPTION(RAdamOptions, bool, decoupled_weight_decay)
    GRADACCUM_OPTION(RAdamOptions, double, learning_rate)
    GRADACCUM_OPTION(RAdamOptions, double, beta1)
    GRADACCUM_OPTION(RAdamOptions, double, beta2)
    GRADACCUM_OPTION(RAdamOptions, double, eps)
    GRADACCUM_OPTION(RAdamOptions, double, weight_decay)
};

struct NAdamOptions : ga_nadam_options {
    using Base = ga_nadam_options;
    NAdamOptions() noexcept : Base GA_NADAM_OPTIONS_INIT {}
    GRADACCUM_OPTION(NAdamOptions, bool, decoupled_weight_decay)
    GRADACCUM_OPTION(NAdamOptions, double, learning_rate)
    GRADACCUM_OPTION(NAdamOptions, double, beta1)
    GRADACCUM_OPTION(NAdamOptions, double, beta2)
    GRADACCUM_OPTION(NAdamOptions, double, eps)
    GRADACCUM_OPTION(NAdamOptions, double, weight_decay)
    GRADACCUM_OPTION(NAdamOptions, double, momentum_decay)
};

struct LionOptions : ga_lion_options {
    using Base = ga_lion_options;
    LionOptions() noexcept : Base GA_LION_OPTIONS_INIT {}
    GRADACCUM_OPTION(LionOptions, double, learning_rate)
    GRADACCUM_OPTION(LionOptions, double, beta1)
    GRADACCUM_OPTION(LionOptions, double, beta2)
    GRADACCUM_OPTION(LionOptions, double, weight_decay)
};

struct LAMBOptions : ga_lamb_options {
    using Base = ga_lamb_options;
    LAMBOptions() noexcept : Base GA_LAMB_OPTIONS_INIT {}
    GRADACCUM_OPTION(LAMBOptions, double, learning_rate)
    GRADACCUM_OPTION(LAMBOptions, double, beta1)
    GRADACCUM_OPTION(LAMBOptions, double, beta2)
    GRADACCUM_OPTION(LAMBOptions, double, eps)
    GRADACCUM_OPTION(LAMBOptions, double, weight_decay)
};

struct LARSOptions : ga_lars_options {
    using Base = ga_lars_options;
    LARSOptions() noexcept : Base GA_LARS_OPTIONS_INIT {}
    GRADACCUM_OPTION(LARSOptions, double, learning_rate)
    GRADACCUM_OPTION(LARSOptions, double, momentum)
    GRADACCUM_OPTION(LARSOptions, double, weight_decay)
    GRADACCUM_OPTION(LARSOptions, double, trust_coefficient)
};

struct AdafactorOptions : ga_adafactor_options {
    using Base = ga_adafactor_options;
    AdafactorOptions() noexcept : Base GA_ADAFACTOR_OPTIONS_INIT {}
    GRADACCUM_OPTION(AdafactorOptions, double, learning_rate)
    GRADACCUM_OPTION(AdafactorOptions, double, beta2_decay)
    GRADACCUM_OPTION(AdafactorOptions, double, eps1)
    GRADACCUM_OPTION(AdafactorOptions, double, eps2)
    GRADACCUM_OPTION(AdafactorOptions, double, clipping_threshold)
    GRADACCUM_OPTION(AdafactorOptions, double, weight_decay)
};

struct MuonOptions : ga_muon_options {
    using Base = ga_muon_options;
    MuonOptions() noexcept : Base GA_MUON_OPTIONS_INIT {}
    GRADACCUM_OPTION(MuonOptions, bool, nesterov)
    GRADACCUM_OPTION(MuonOptions, double, learning_rate)
    GRADACCUM_OPTION(MuonOptions, double, weight_decay)
    GRADACCUM_OPTION(MuonOptions, double, momentum)
    GRADACCUM_OPTION(MuonOptions, double, ns_coefficient_a)
    GRADACCUM_OPTION(MuonOptions, double, ns_coefficient_b)
    GRADACCUM_OPTION(MuonOptions, double, ns_coefficient_c)
    GRADACCUM_OPTION(MuonOptions, double, eps)
    GRADACCUM_OPTION(MuonOptions, std::int32_t, ns_steps)
    GRADACCUM_OPTION(MuonOptions, MuonAdjust, adjust_lr)
    GRADACCUM_OPTION(MuonOptions, double, adamw_learning_rate_ratio)
    GRADACCUM_OPTION(MuonOptions, double, adamw_beta1)
    GRADACCUM_OPTION(MuonOptions, double, adamw_beta2)
    GRADACCUM_OPTION(MuonOptions, double, adamw_eps)
    GRADACCUM_OPTION(MuonOptions, double, adamw_weight_decay)

    /// The places of parameters that AdamW updates.
    MuonOptions &adamw_parameters(std::vector<std::int64_t> places) {
        places_ = std::move(places);
        return *this;
    }
    const std::vector<std::int64_t> &adamw_parameters() const noexcept { return places_; }

    /// As the C call reads them; the list is this object's.
    ga_muon_options with_lists() const noexcept {
        ga_muon_options options = *this;
        options.Base::adamw_parameters = places_.empty() ? nullptr : places_.data();
        options.Base::adamw_parameter_count = static_cast<std::int64_t>(places_.size());
        return options;
    }

private:
    std::vector<std::int64_t> places_;
};

struct AdamW8bitOptions : ga_adamw8bit_options {
    using Base = ga_adamw8bit_options;
    AdamW8bitOptions() noexcept : Base GA_ADAMW8BIT_OPTIONS_INIT {}
    GRADACCUM_OPTION(AdamW8bitOptions, double, learning_rate)
    GRADACCUM_OPTION(AdamW8bitOptions, double, beta1)
    GRADACCUM_OPTION(AdamW8bitOptions, double, beta2)
    GRADACCUM_OPTION(AdamW8bitOptions, double, eps)
    GRADACCUM_OPTION(AdamW8bitOptions, double, weight_decay)
    GRADACCUM_OPTION(AdamW8bitOptions, std::int64_t, min_8bit_size)
};

struct CustomOptions : ga_custom_options {
    using Base = ga_custom_options;
    CustomOptions() noexcept : Base GA_CUSTOM_OPTIONS_INIT {}
    GRADACCUM_OPTION(CustomOptions, bool, elementwise)
    GRADACCUM_OPTION(CustomOptions, double, learning_rate)
    GRADACCUM_OPTION(CustomOptions, std::int64_t, slot_count)
    GRADACCUM_OPTION(CustomOptions, double, weight_decay)
};

struct GroupOptions : ga_group_options {
    using Base = ga_group_options;
    GroupOptions() noexcept : Base GA_GROUP_OPTIONS_INIT {}
    GRADACCUM_OPTION(GroupOptions, double, learning_rate_scale)
    GRADACCUM_OPTION(GroupOptions, double, weight_decay)
    GRADACCUM_OPTION(GroupOptions, double, max_grad_norm)
};

struct ScalingOptions : ga_scaling_options {
    using Base = ga_scaling_options;
    ScalingOptions() noexcept : Base GA_SCALING_OPTIONS_INIT {}
    GRADACCUM_OPTION(ScalingOptions, ScalingRule, rule)
    GRADACCUM_OPTION(ScalingOptions, double, base_weight)
    GRADACCUM_OPTION(ScalingOptions, bool, beta2_half_life)
};

/// What a rule is told besides its arrays.
using Update = ga_update;

/// The arrays that a rule has for a parameter: slots[i] is one of them, and zeros at first.
class Slots {
public:
    Slots(float *const *slots, std::size_t count, std::size_t elements) noexcept
        : slots_(slots), count_(count), elements_(elements) {}

    std::size_t size() const noexcept { return count_; }
    Span<float> operator[](std::size_t index) const noexcept { return {slots_[index], elements_}; }

private:
    float *const *slots_;
    std::size_t count_;
    std::size_t elements_;
};

namespace detail {

/// A rule that the library runs, and what it threw last: an elementwise one does so on a thread of the library.
class Rule {
public:
    virtual ~Rule() = default;
    Rule(const Rule &) = delete;
    Rule &operator=(const Rule &) = delete;

    void forget() noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        exception_ = nullptr;
    }

    std::exception_ptr take() noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        return std::exchange(exception_, nullptr);
    }

    static ga_status call(float *parameter, const float *gradient, float *const *slots, std::int64_t count,
                          const ga_update *update, void *user) noexcept {
        Rule &rule = *static_cast<Rule *>(user);
        try {
            const auto elements = static_cast<std::size_t>(count);
            rule.run({parameter, elements}, {gradient, elements}, Slots(slots, rule.slot_count_, elements), *update);
            return GA_OK;
        } catch (...) {
            const ga_status status = status_of_current();
            const std::lock_guard<std::mutex> lock(rule.mutex_);
            rule.exception_ = std::current_exception();
            return status;
        }
    }

    static void release(void *user) noexcept { delete static_cast<Rule *>(user); }

protected:
    explicit Rule(std::int64_t slot_count) noexcept
        : slot_count_(slot_count < 0 ? 0 : static_cast<std::size_t>(slot_count)) {}

private:
    virtual void run(Span<float> parameter, Span<const float> gradient, Slots slots, const Update &update) = 0;

    std::size_t slot_count_;
    std::mutex mutex_;
    std::exception_ptr exception_;
};

template <class Function> class RuleOf final : public Rule {
public:
    RuleOf(Function function, std::int64_t slot_count) : Rule(slot_count), function_(std::move(function)) {}

private:
    void run(Span<float> parameter, Span<const float> gradient, Slots slots, const Update &update) override {
        function_(parameter, gradient, slots, update);
    }

    Function function_;
};

} // namespace detail

/// What updates parameters at the step of an Accumulator; the classes below create one.
class Optimizer : public detail::Handle<ga_optimizer, ga_optimizer_free> {
public:
    /// None, as one that was moved from.
    Optimizer() noexcept = default;

    /// Takes over a handle that a C call made.
    explicit Optimizer(ga_optimizer *handle) noexcept : Handle(handle) {}

    /// The learning rate as it was set: that of every update, or what a schedule multiplies.
    double learning_rate() const {
        double value = 0.0;
        check(ga_optimizer_learning_rate(handle(), &value));
        return value;
    }
    void set_learning_rate(double learning_rate) { check(ga_optimizer_set_learning_rate(handle(), learning_rate)); }

    /// With the factor of the schedule, but not what a scaling makes of it.
    double next_learning_rate() const {
        double value = 0.0;
        check(ga_optimizer_next_learning_rate(handle(), &value));
        return value;
    }

    void set_schedule(const Schedule &schedule) {
        const ga_schedule_options options = schedule.with_lists();
        check(ga_optimizer_set_schedule(handle(), &options));
    }
    void remove_schedule() { check(ga_optimizer_set_schedule(handle(), nullptr)); }

    /// Shows a metric, such as a loss of validation, to a plateau that looks at metrics.
    void report_metric(double metric) { check(ga_optimizer_report_metric(handle(), metric)); }

    /// Lets updates follow the weight of their window.
    void set_scaling(const ScalingOptions &options) { check(ga_optimizer_set_scaling(handle(), &options)); }
    void remove_scaling() { check(ga_optimizer_set_scaling(handle(), nullptr)); }

    /// How many updates were applied, or how much weight.
    double clock(Clock clock = Clock::updates) const {
        double value = 0.0;
        check(ga_optimizer_clock(handle(), detail::constant(clock), &value));
        return value;
    }

    /// What updates have made of the optimizer, for load_state of another with the same rule and shapes.
    std::vector<std::byte> save_state() const {
        std::int64_t size = 0;
        check(ga_optimizer_state_bytes(handle(), &size));
        std::vector<std::byte> state(static_cast<std::size_t>(size));
        check(ga_optimizer_save_state(handle(), state.data(), size));
        return state;
    }
    /// Goes on from a state; with the weights of then, to the bit. What it refuses changes nothing.
    void load_state(Span<const std::byte> state) {
        check(ga_optimizer_load_state(handle(), state.data(), static_cast<std::int64_t>(state.size())));
    }

    /// Makes a group of some of the parameters, and returns its number.
    std::int64_t add_group(const TensorList &parameters, const GroupOptions &options = {}) {
        std::int64_t number = 0;
        check(ga_optimizer_add_group(handle(), parameters.data(), parameters.count(), &options, &number));
        return number;
    }
    void set_group(std::int64_t group, const GroupOptions &options) {
        check(ga_optimizer_set_group(handle(), group, &options));
    }
    GroupOptions group(std::int64_t group) const {
        GroupOptions options;
        check(ga_optimizer_group(handle(), group, &options));
        return options;
    }
    std::int64_t group_count() const {
        std::int64_t count = 0;
        check(ga_optimizer_group_count(handle(), &count));
        return count;
    }

protected:
    template <class Options>
    Optimizer(ga_status (*create)(ga_optimizer **, ga_tensor *const *, std::int64_t, const Options *),
              const TensorList &parameters, const Options &options)
        : Handle(created(create, parameters, &options)), element_counts_(counts(parameters)) {}

    Optimizer(std::unique_ptr<detail::Rule> rule, const TensorList &parameters, const CustomOptions &options)
        : Handle(created(ga_custom_create, parameters, &detail::Rule::call, static_cast<void *>(rule.get()),
                         &detail::Rule::release, &options)),
          rule_(rule.release()), element_counts_(counts(parameters)) {}

private:
    friend class Accumulator;

    template <class Create, class... Arguments>
    static ga_optimizer *created(Create create, const TensorList &parameters, Arguments... arguments) {
        ga_optimizer *out = nullptr;
        check(create(&out, parameters.data(), parameters.count(), arguments...));
        return out;
    }

    static std::vector<std::int64_t> counts(const TensorList &parameters) {
        std::vector<std::int64_t> counts(parameters.size());
        for (std::size_t i = 0; i < counts.size(); i++)
            check(ga_tensor_element_count(parameters.data()[i], &counts[i]));
        return counts;
    }

    detail::Rule *rule_ = nullptr; // the library's, which keeps it as long as the optimizer
    detail::ElementCounts element_counts_;
};

class SGD : public Optimizer {
public:
    explicit SGD(const TensorList &parameters, const SGDOptions &options = {})
        : Optimizer(ga_sgd_create, parameters, static_cast<const ga_sgd_options &>(options)) {}
};

class Adam : public Optimizer {
public:
    explicit Adam(const TensorList &parameters, const AdamOptions &options = {})
        : Optimizer(ga_adam_create, parameters, static_cast<const ga_adam_options &>(options)) {}
};

class AdamW : public Optimizer {
public:
    explicit AdamW(const TensorList &parameters, const AdamWOptions &options = {})
        : Optimizer(ga_adamw_create, parameters, static_cast<const ga_adamw_options &>(options)) {}
};

class RAdam : public Optimizer {
public:
    explicit RAdam(const TensorList &parameters, const RAdamOptions &options = {})
        : Optimizer(ga_radam_create, parameters, static_cast<const ga_radam_options &>(options)) {}
};

class NAdam : public Optimizer {
public:
    explicit NAdam(const TensorList &parameters, const NAdamOptions &options = {})
        : Optimizer(ga_nadam_create, parameters, static_cast<const ga_nadam_options &>(options)) {}
};

class Lion : public Optimizer {
public:
    explicit Lion(const TensorList &parameters, const LionOptions &options = {})
        : Optimizer(ga_lion_create, parameters, static_cast<const ga_lion_options &>(options)) {}
};

class LAMB : public Optimizer {
public:
    explicit LAMB(const TensorList &parameters, const LAMBOptions &options = {})
        : Optimizer(ga_lamb_create, parameters, static_cast<const ga_lamb_options &>(options)) {}
};

class LARS : public Optimizer {
public:
    explicit LARS(const TensorList &parameters, const LARSOptions &options = {})
        : Optimizer(ga_lars_create, parameters, static_cast<const ga_lars_options &>(options)) {}
};

class Adafactor : public Optimizer {
public:
    explicit Adafactor(const TensorList &parameters, const AdafactorOptions &options = {})
        : Optimizer(ga_adafactor_create, parameters, static_cast<const ga_adafactor_options &>(options)) {}
};

class Muon : public Optimizer {
public:
    explicit Muon(const TensorList &parameters, const MuonOptions &options = {})
        : Optimizer(ga_muon_create, parameters, options.with_lists()) {}
};

class AdamW8bit : public Optimizer {
public:
    explicit AdamW8bit(const TensorList &parameters, const AdamW8bitOptions &options = {})
        : Optimizer(ga_adamw8bit_create, parameters, static_cast<const ga_adamw8bit_options &>(options)) {}
};

/// With a rule of the caller: rule(Span<float> parameter, Span<const float> gradient, Slots slots, const Update &
/// update) changes the parameter and the slots. One that is elementwise is called on several threads at once. An
/// exception of it comes out of the step that ran it.
class CustomOptimizer : public Optimizer {
public:
    template <class Function,
              class = std::enable_if_t<
                  std::is_invocable_v<Function &, Span<float>, Span<const float>, Slots, const Update &>>>
    CustomOptimizer(const TensorList &parameters, Function rule, const CustomOptions &options = {})
        : Optimizer(std::make_unique<detail::RuleOf<Function>>(std::move(rule), options.slot_count()), parameters,
                    options) {}
};

} // namespace gradaccum

#endif // GRADACCUM_OPTIMIZER_HPP
