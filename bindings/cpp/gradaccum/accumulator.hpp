// accumulator.hpp - the accumulation window
#ifndef GRADACCUM_ACCUMULATOR_HPP
#define GRADACCUM_ACCUMULATOR_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "loss_scaler.hpp"
#include "optimizer.hpp"

namespace gradaccum {

struct AccumulatorOptions : ga_accumulator_options {
    using Base = ga_accumulator_options;
    AccumulatorOptions() noexcept : Base GA_ACCUMULATOR_OPTIONS_INIT {}
    GRADACCUM_OPTION(AccumulatorOptions, Reduction, loss_reduction)
    GRADACCUM_OPTION(AccumulatorOptions, std::int64_t, accumulation_steps)
    GRADACCUM_OPTION(AccumulatorOptions, double, max_grad_norm)
    GRADACCUM_OPTION(AccumulatorOptions, double, max_grad_value)
    GRADACCUM_OPTION(AccumulatorOptions, double, agc_clipping)
    GRADACCUM_OPTION(AccumulatorOptions, double, agc_eps)
    GRADACCUM_OPTION(AccumulatorOptions, bool, isolated)
    GRADACCUM_OPTION(AccumulatorOptions, Normalization, normalization)
    GRADACCUM_OPTION(AccumulatorOptions, OnNonFinite, on_non_finite)
    GRADACCUM_OPTION(AccumulatorOptions, AccumulateInto, accumulate_into)
    GRADACCUM_OPTION(AccumulatorOptions, std::int64_t, max_consecutive_skips)
    GRADACCUM_OPTION(AccumulatorOptions, double, max_loss_z_score)
    GRADACCUM_OPTION(AccumulatorOptions, double, max_norm_z_score)
    GRADACCUM_OPTION(AccumulatorOptions, std::int64_t, outlier_warmup)
    GRADACCUM_OPTION(AccumulatorOptions, SumFormat, sum_format)
    GRADACCUM_OPTION(AccumulatorOptions, bool, count_underflow)
};

/// What a window held, and what a step did: the fields of ga_report.
struct Report : ga_report {
    Report() noexcept : ga_report GA_REPORT_INIT {}

    /// A copy of what a library of this version or another has filled in.
    explicit Report(const ga_report &report) noexcept : Report() {
        const std::size_t size = report.struct_size < sizeof(ga_report) ? report.struct_size : sizeof(ga_report);
        std::memcpy(static_cast<ga_report *>(this), &report, size);
        struct_size = sizeof(ga_report);
    }

    Outcome result() const noexcept { return static_cast<Outcome>(outcome); }

    /// Whether the parameters were updated.
    bool applied() const noexcept { return outcome == GA_STEP_APPLIED; }
};

using SkipHandler = std::function<Decision(const Report &)>;
using RetryHandler = std::function<bool(const Report &)>;

class MicroBatch;

/// Adds up the gradients of micro-batches and updates an optimizer's parameters at the step. Settle the window before
/// it is freed, by step, end_data or zero: what it holds is lost otherwise.
class Accumulator : public detail::Handle<ga_accumulator, ga_accumulator_free> {
public:
    /// None, as one that was moved from.
    Accumulator() noexcept = default;

    /// Takes over a handle that a C call made.
    explicit Accumulator(ga_accumulator *handle) noexcept : Handle(handle) {}

    explicit Accumulator(const Optimizer &optimizer, const AccumulatorOptions &options = {})
        : Handle(created(optimizer, options)), rule_(optimizer.rule_), element_counts_(optimizer.element_counts_) {}

    std::int64_t accumulation_steps() const {
        std::int64_t value = 0;
        check(ga_accumulator_accumulation_steps(handle(), &value));
        return value;
    }
    void set_accumulation_steps(std::int64_t value) { check(ga_accumulator_set_accumulation_steps(handle(), value)); }

    /// Lets the number follow a ramp: accumulation_steps[i] from times[i] on, as the optimizer's clock has them.
    void set_ramp(const std::vector<double> &times, const std::vector<std::int64_t> &accumulation_steps,
                  Clock clock = Clock::updates, bool interpolated = false) {
        if (times.size() != accumulation_steps.size())
            throw InvalidArgumentError("set_ramp: there are " + std::to_string(times.size()) + " times and " +
                                       std::to_string(accumulation_steps.size()) + " numbers of micro-batches");
        check(ga_accumulator_set_ramp(handle(), detail::constant(clock), interpolated ? 1 : 0, times.data(),
                                      accumulation_steps.data(), static_cast<std::int64_t>(times.size())));
    }

    /// Runs backward from a scalar loss and adds the gradients to the window.
    void accumulate(const Tensor &loss, double weight) {
        run([&] { return ga_accumulate(handle(), loss.handle(), weight); });
    }

    /// Adds gradients that the caller computed, one for each parameter in the optimizer's order: containers or spans of
    /// their elements, of which an empty one adds nothing. They are read where they are.
    template <class Gradients, class Elements = decltype(std::data(*std::begin(std::declval<const Gradients &>())))>
    void accumulate_gradients(const Gradients &gradients, double loss, double weight,
                              DType dtype = ElementType<std::remove_cv_t<std::remove_pointer_t<Elements>>>::dtype) {
        gather<Elements>(gradients, dtype);
        accumulate_gradients(addresses_.data(), count(), dtype, loss, weight);
    }
    void accumulate_gradients(std::initializer_list<Span<const float>> gradients, double loss, double weight) {
        gather<const float *>(gradients);
        accumulate_gradients(addresses_.data(), count(), DType::float32, loss, weight);
    }
    /// The same with contiguous tensors, as gradients() returns them.
    void accumulate_gradients(const std::vector<Tensor> &gradients, double loss, double weight) {
        gather(gradients);
        accumulate_gradients(addresses_.data(), count(), DType::float32, loss, weight);
    }
    /// The same with addresses, as in C: each array is as long as its parameter.
    void accumulate_gradients(const void *const *gradients, std::int64_t count, DType dtype, double loss,
                              double weight) {
        run([&] {
            return ga_accumulate_gradients(handle(), gradients, count, detail::constant(dtype), loss, weight);
        });
    }

    /// Adds gradients that carry a loss scale, whatever the window's own is.
    template <class Gradients, class Elements = decltype(std::data(*std::begin(std::declval<const Gradients &>())))>
    void accumulate_scaled_gradients(
        const Gradients &gradients, double gradient_scale, double loss, double weight,
        DType dtype = ElementType<std::remove_cv_t<std::remove_pointer_t<Elements>>>::dtype) {
        gather<Elements>(gradients, dtype);
        accumulate_scaled_gradients(addresses_.data(), count(), dtype, gradient_scale, loss, weight);
    }
    void accumulate_scaled_gradients(std::initializer_list<Span<const float>> gradients, double gradient_scale,
                                     double loss, double weight) {
        gather<const float *>(gradients);
        accumulate_scaled_gradients(addresses_.data(), count(), DType::float32, gradient_scale, loss,
                                    weight);
    }
    /// The same with addresses, as in C.
    void accumulate_scaled_gradients(const void *const *gradients, std::int64_t count, DType dtype,
                                     double gradient_scale, double loss, double weight) {
        run([&] {
            return ga_accumulate_scaled_gradients(handle(), gradients, count, detail::constant(dtype), gradient_scale,
                                                  loss, weight);
        });
    }

    /// Adds the gradient of one parameter to the open micro-batch, times scale. accumulate_gradients with nothing for
    /// every parameter gives the loss and the weight, which a commit needs.
    template <class Gradient, class Elements = decltype(std::data(std::declval<const Gradient &>()))>
    void accumulate_gradient(std::int64_t index, const Gradient &gradient, double scale = 1.0,
                             DType dtype = ElementType<std::remove_cv_t<std::remove_pointer_t<Elements>>>::dtype) {
        require_element<Elements>(dtype, "accumulate_gradient");
        const bool is_known = require_count(
            index, std::size(gradient), [] { return std::string("accumulate_gradient: gradient"); });
        if (is_known && std::size(gradient) == 0) return; // which may have no address
        check(ga_accumulate_gradient(handle(), index, std::data(gradient), detail::constant(dtype), scale));
    }

    /// Runs body(micro_batch) or body() as one micro-batch, which is committed after it, and aborted if it throws.
    template <class Body> void micro_batch(Body &&body);

    /// Gives a micro-batch the weight that was weight_later.
    void set_weight(std::int64_t micro_batch, double weight) {
        check(ga_micro_batch_set_weight(handle(), micro_batch, weight));
    }

    bool step_due() const {
        std::int32_t value = 0;
        check(ga_step_due(handle(), &value));
        return value != 0;
    }

    /// Ends the window: divides by its weight, clips, updates the parameters and empties the accumulators.
    Report step() {
        Report report;
        run([&] { return ga_step(handle(), &report); });
        return report;
    }

    /// What the window holds so far.
    Report window() const {
        Report report;
        check(ga_window_report(handle(), &report));
        return report;
    }

    /// Asks handler about windows, and in isolated mode micro-batches, that would be skipped; an empty one ends that.
    /// An exception of it comes out of the call that asked, after the drop.
    void set_skip_handler(SkipHandler handler) {
        set_handler(skip_handler_, std::move(handler), ga_accumulator_set_skip_handler, &decide);
    }

    /// Multiplies losses by the scale of a scaler, from the next window on.
    void set_loss_scaler(const LossScaler &scaler) {
        if (!scaler) throw InvalidArgumentError("set_loss_scaler: the loss scaler was moved from: pass a live one");
        check(ga_accumulator_set_loss_scaler(handle(), scaler.handle()));
    }
    void remove_loss_scaler() { check(ga_accumulator_set_loss_scaler(handle(), nullptr)); }

    /// Has handler compute a window again that overflowed: it accumulates the same micro-batches and returns true, or
    /// false for a skip; an empty one ends that. An exception of it comes out of the step, after the drop.
    void set_retry_handler(RetryHandler handler) {
        set_handler(retry_handler_, std::move(handler), ga_accumulator_set_retry_handler, &retry);
    }

    /// Ends the additions to the window, and returns the norm of its mean gradient before clipping. A step does not need
    /// this.
    double unscale() {
        double norm = 0.0;
        check(ga_unscale(handle(), &norm));
        return norm;
    }

    void begin_data() { check(ga_data_begin(handle())); }

    Report end_data(Tail tail = Tail::step) {
        Report report;
        run([&] { return ga_data_end(handle(), detail::constant(tail), &report); });
        return report;
    }

    /// The norm of each parameter's mean gradient in the window of the last step, before clipping.
    std::vector<double> gradient_norms() const {
        std::vector<double> norms(element_counts_.size());
        gradient_norms(norms);
        return norms;
    }
    /// The same into a span with an entry for each parameter.
    void gradient_norms(Span<double> out) const {
        check(ga_gradient_norms(handle(), out.data(), static_cast<std::int64_t>(out.size())));
    }

    /// Additions of numbers other than 0 to elements of a sum in bfloat16, and those of them that have changed nothing.
    struct Stagnation {
        std::vector<std::int64_t> additions, unchanged;
    };

    /// What became of additions to each parameter's sum in bfloat16, in the window of the last step.
    Stagnation stagnation() const {
        const std::size_t count = element_counts_.size();
        Stagnation found = {std::vector<std::int64_t>(count), std::vector<std::int64_t>(count)};
        check(ga_stagnation(handle(), found.additions.data(), found.unchanged.data(), static_cast<std::int64_t>(count)));
        return found;
    }

    /// Drops what was accumulated, an open micro-batch included.
    void zero() { check(ga_zero(handle())); }

    /// A copy of the accumulated sum of a parameter, in the optimizer's order.
    Tensor accumulated_gradient(std::int64_t index) const {
        return Tensor::make(ga_accumulated_gradient, static_cast<const ga_accumulator *>(handle()), index);
    }

private:
    friend class MicroBatch;

    static ga_accumulator *created(const Optimizer &optimizer, const AccumulatorOptions &options) {
        ga_accumulator *out = nullptr;
        check(ga_accumulator_create(&out, optimizer.handle(), &options));
        return out;
    }

    /// Makes a call that may run callbacks, and throws what those threw; returns its status to result before that.
    template <class Call> void run(Call call, ga_status *result = nullptr) {
        if (rule_ != nullptr) rule_->forget();
        detail::Caught caught;
        const ga_status status = call();
        if (result != nullptr) *result = status;
        if (status != GA_OK && rule_ != nullptr)
            if (std::exception_ptr exception = rule_->take()) std::rethrow_exception(std::move(exception));
        caught.check(status);
    }

    /// Takes down the addresses of gradients, of which there are then count().
    template <class Elements, class Gradients>
    void gather(const Gradients &gradients, DType dtype = DType::float32) {
        require_element<Elements>(dtype, "accumulate_gradients");
        addresses_.clear();
        for (const auto &gradient : gradients) add_address(std::data(gradient), std::size(gradient));
    }
    void gather(const std::vector<Tensor> &gradients) {
        addresses_.clear();
        for (const Tensor &gradient : gradients) {
            const Span<const float> elements = gradient.data<const float>();
            add_address(elements.data(), elements.size());
        }
    }
    std::int64_t count() const noexcept { return static_cast<std::int64_t>(addresses_.size()); }

    void add_address(const void *address, std::size_t size) {
        const std::size_t index = addresses_.size();
        if (size > 0)
            require_count(static_cast<std::int64_t>(index), size,
                          [=] { return "accumulate_gradients: gradients[" + std::to_string(index) + "]"; });
        addresses_.push_back(size > 0 ? address : nullptr);
    }

    template <class Elements> static void require_element(DType dtype, const char *function) {
        if (!detail::is_element<std::remove_pointer_t<Elements>>(dtype))
            throw DTypeError(std::string(function) + ": the elements are of another type than dtype says");
    }

    /// Checks the length that C does not know; whether it is known here, where the optimizer was created.
    template <class Name> bool require_count(std::int64_t index, std::size_t size, const Name &name) const {
        const auto place = static_cast<std::size_t>(index); // one below 0 is beyond the last, which the library refuses
        if (place >= element_counts_.size()) return false;
        if (static_cast<std::int64_t>(size) != element_counts_[place])
            throw ShapeError(name() + " has " + std::to_string(size) + " elements and its parameter " +
                             std::to_string(element_counts_[place]));
        return true;
    }

    /// A handler, which must live until it returns, though it replaces itself, and whose address stays when this moves.
    template <class Handler> using Held = std::unique_ptr<std::shared_ptr<Handler>>;

    /// Sets a handler by a C function, or with an empty one ends that.
    template <class Handler, class Function>
    void set_handler(Held<Handler> &held, Handler handler, ga_status (*set)(ga_accumulator *, Function, void *),
                     std::common_type_t<Function> call) {
        if (!handler) {
            check(set(handle(), nullptr, nullptr));
            return;
        }
        if (!held) held = std::make_unique<std::shared_ptr<Handler>>();
        auto replacement = std::make_shared<Handler>(std::move(handler));
        check(set(handle(), call, held.get()));
        *held = std::move(replacement);
    }

    /// Calls a handler, and keeps what it throws: that is then `otherwise`.
    template <class Handler>
    static std::int32_t ask(const ga_report *report, void *user, std::int32_t otherwise) noexcept {
        try {
            const std::shared_ptr<Handler> handler = *static_cast<std::shared_ptr<Handler> *>(user);
            return static_cast<std::int32_t>((*handler)(Report(*report)));
        } catch (...) {
            detail::Caught::keep_current();
            return otherwise;
        }
    }
    static std::int32_t decide(const ga_report *report, void *user) noexcept {
        return ask<SkipHandler>(report, user, GA_DECISION_RAISE);
    }
    /// -1 is no answer, which ends the step with an error.
    static std::int32_t retry(const ga_report *report, void *user) noexcept {
        return ask<RetryHandler>(report, user, -1);
    }

    detail::Rule *rule_ = nullptr; // as in Optimizer
    detail::ElementCounts element_counts_;
    std::vector<const void *> addresses_; // kept, so that a micro-batch needs no memory
    Held<SkipHandler> skip_handler_;
    Held<RetryHandler> retry_handler_;
};

/// A micro-batch that is open until commit(). Where it ends without one, as by an exception, it is aborted. In exact
/// mode that can be done before anything was added only; after that it stays open, and no step is taken with it, until
/// zero() drops the window.
class [[nodiscard]] MicroBatch {
public:
    explicit MicroBatch(Accumulator &accumulator) : accumulator_(accumulator) {
        check(ga_micro_batch_begin(accumulator.handle()));
        is_open_ = true;
        Report window;
        if (ga_window_report(accumulator.handle(), &window) == GA_OK)
            number_ = window.micro_batches + window.aborted_micro_batches;
    }
    ~MicroBatch() {
        if (is_open_) ga_micro_batch_abort(accumulator_.handle());
    }
    MicroBatch(const MicroBatch &) = delete;
    MicroBatch &operator=(const MicroBatch &) = delete;

    /// Its number in the window, for Accumulator::set_weight.
    std::int64_t number() const noexcept { return number_; }

    void accumulate(const Tensor &loss, double weight) { accumulator_.accumulate(loss, weight); }

    /// Gives the weight that was weight_later; also after the commit.
    void set_weight(double weight) { accumulator_.set_weight(number_, weight); }

    /// Ends the micro-batch, which then counts, or in isolated mode is dropped if it is not finite.
    void commit() {
        ga_status status = GA_OK;
        const auto settle = [&] { is_open_ = status == GA_ERROR_STATE || status == GA_ERROR_OUT_OF_MEMORY; };
        try {
            accumulator_.run([&] { return ga_micro_batch_commit(accumulator_.handle()); }, &status);
        } catch (...) {
            settle();
            throw;
        }
        settle();
    }

    /// Takes the micro-batch back.
    void abort() {
        check(ga_micro_batch_abort(accumulator_.handle()));
        is_open_ = false;
    }

    bool is_open() const noexcept { return is_open_; }

private:
    Accumulator &accumulator_;
    bool is_open_ = false;
    std::int64_t number_ = 0;
};

template <class Body> void Accumulator::micro_batch(Body &&body) {
    MicroBatch open(*this);
    if constexpr (std::is_invocable_v<Body &, MicroBatch &>)
        body(open);
    else
        body();
    if (open.is_open()) open.commit();
}

} // namespace gradaccum

#endif // GRADACCUM_ACCUMULATOR_HPP
