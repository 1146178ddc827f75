// ops.hpp - operations, gradients and checkpointing
#ifndef GRADACCUM_OPS_HPP
#define GRADACCUM_OPS_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensor.hpp"

namespace gradaccum {

// ====== Operations ======================================================================================

inline Tensor add(const Tensor &a, const Tensor &b) { return Tensor::make(ga_add, a.handle(), b.handle()); }
inline Tensor subtract(const Tensor &a, const Tensor &b) { return Tensor::make(ga_subtract, a.handle(), b.handle()); }
inline Tensor multiply(const Tensor &a, const Tensor &b) { return Tensor::make(ga_multiply, a.handle(), b.handle()); }
inline Tensor divide(const Tensor &a, const Tensor &b) { return Tensor::make(ga_divide, a.handle(), b.handle()); }

namespace detail {

inline Tensor scalar(double value) {
    return Tensor::from_data(Shape{}, std::array<float, 1>{static_cast<float>(value)});
}

} // namespace detail

inline Tensor operator+(const Tensor &a, const Tensor &b) { return add(a, b); }
inline Tensor operator+(const Tensor &a, double b) { return add(a, detail::scalar(b)); }
inline Tensor operator+(double a, const Tensor &b) { return add(detail::scalar(a), b); }
inline Tensor operator-(const Tensor &a, const Tensor &b) { return subtract(a, b); }
inline Tensor operator-(const Tensor &a, double b) { return subtract(a, detail::scalar(b)); }
inline Tensor operator-(double a, const Tensor &b) { return subtract(detail::scalar(a), b); }
inline Tensor operator*(const Tensor &a, const Tensor &b) { return multiply(a, b); }
inline Tensor operator*(const Tensor &a, double b) { return multiply(a, detail::scalar(b)); }
inline Tensor operator*(double a, const Tensor &b) { return multiply(detail::scalar(a), b); }
inline Tensor operator/(const Tensor &a, const Tensor &b) { return divide(a, b); }
inline Tensor operator/(const Tensor &a, double b) { return divide(a, detail::scalar(b)); }
inline Tensor operator/(double a, const Tensor &b) { return divide(detail::scalar(a), b); }

inline Tensor matmul(const Tensor &a, const Tensor &b) { return Tensor::make(ga_matmul, a.handle(), b.handle()); }

inline Tensor linear(const Tensor &x, const Tensor &weight, const OptionalTensor &bias = std::nullopt) {
    return Tensor::make(ga_linear, x.handle(), weight.handle(), bias.handle());
}

inline Tensor layer_norm(const Tensor &x, const OptionalTensor &weight, const OptionalTensor &bias, double eps = 1e-5) {
    return Tensor::make(ga_layer_norm, x.handle(), weight.handle(), bias.handle(), eps);
}

inline Tensor gelu(const Tensor &x, Gelu approximation = Gelu::erf) {
    return Tensor::make(ga_gelu, x.handle(), detail::constant(approximation));
}

inline Tensor relu(const Tensor &x) { return Tensor::make(ga_relu, x.handle()); }

inline Tensor softmax(const Tensor &x, std::int32_t axis = -1) { return Tensor::make(ga_softmax, x.handle(), axis); }

inline Tensor cross_entropy(const Tensor &logits, const Tensor &targets, std::int64_t ignore_index = no_ignore_index,
                            Reduction reduction = Reduction::sum) {
    return Tensor::make(ga_cross_entropy, logits.handle(), targets.handle(), ignore_index, detail::constant(reduction));
}

inline Tensor linear_cross_entropy(const Tensor &hidden, const Tensor &weight, const Tensor &targets,
                                   std::int64_t ignore_index = no_ignore_index, Reduction reduction = Reduction::sum) {
    return Tensor::make(ga_linear_cross_entropy, hidden.handle(), weight.handle(), targets.handle(), ignore_index,
                        detail::constant(reduction));
}

inline Tensor mse(const Tensor &prediction, const Tensor &target, Reduction reduction = Reduction::sum) {
    return Tensor::make(ga_mse, prediction.handle(), target.handle(), detail::constant(reduction));
}

inline Tensor embedding(const Tensor &weight, const Tensor &indices) {
    return Tensor::make(ga_embedding, weight.handle(), indices.handle());
}

inline Tensor causal_attention(const Tensor &q, const Tensor &k, const Tensor &v, std::int32_t heads) {
    return Tensor::make(ga_causal_attention, q.handle(), k.handle(), v.handle(), heads);
}

inline Tensor reshape(const Tensor &x, const Shape &shape) {
    return Tensor::make(ga_reshape, x.handle(), shape.rank(), shape.data());
}

inline Tensor transpose(const Tensor &x, std::int32_t axis_a, std::int32_t axis_b) {
    return Tensor::make(ga_transpose, x.handle(), axis_a, axis_b);
}

inline Tensor slice(const Tensor &x, std::int32_t axis, std::int64_t start, std::int64_t stop) {
    return Tensor::make(ga_slice, x.handle(), axis, start, stop);
}

/// Over all axes if none is given.
inline Tensor sum(const Tensor &x, std::initializer_list<std::int32_t> axes = {}, bool keep_axes = false) {
    return Tensor::make(ga_sum, x.handle(), axes.begin(), static_cast<std::int32_t>(axes.size()), keep_axes ? 1 : 0);
}
inline Tensor sum(const Tensor &x, const std::vector<std::int32_t> &axes, bool keep_axes = false) {
    return Tensor::make(ga_sum, x.handle(), axes.data(), static_cast<std::int32_t>(axes.size()), keep_axes ? 1 : 0);
}
inline Tensor mean(const Tensor &x, std::initializer_list<std::int32_t> axes = {}, bool keep_axes = false) {
    return Tensor::make(ga_mean, x.handle(), axes.begin(), static_cast<std::int32_t>(axes.size()), keep_axes ? 1 : 0);
}
inline Tensor mean(const Tensor &x, const std::vector<std::int32_t> &axes, bool keep_axes = false) {
    return Tensor::make(ga_mean, x.handle(), axes.data(), static_cast<std::int32_t>(axes.size()), keep_axes ? 1 : 0);
}

inline Tensor cast(const Tensor &x, DType dtype) { return Tensor::make(ga_cast, x.handle(), detail::constant(dtype)); }

// ====== Autograd ========================================================================================

inline void set_recording(bool recording) { check(ga_set_recording(recording ? 1 : 0)); }

inline bool recording() {
    std::int32_t value = 0;
    check(ga_recording(&value));
    return value != 0;
}

/// Turns recording on this thread on or off for as long as it lives: RecordingGuard off(false) for an evaluation.
class [[nodiscard]] RecordingGuard {
public:
    explicit RecordingGuard(bool on) : before_(recording()) { set_recording(on); }
    ~RecordingGuard() { ga_set_recording(before_ ? 1 : 0); }
    RecordingGuard(const RecordingGuard &) = delete;
    RecordingGuard &operator=(const RecordingGuard &) = delete;

private:
    bool before_;
};

/// The gradient of a scalar loss with respect to each of some leaves.
inline std::vector<Tensor> gradients(const Tensor &loss, const TensorList &inputs) {
    std::vector<ga_tensor *> handles(inputs.size() + 1); // so that there is an address where there are no inputs
    std::vector<Tensor> result;
    result.reserve(inputs.size());
    detail::Caught caught;
    caught.check(ga_gradients(handles.data(), loss.handle(), inputs.data(), inputs.count()));
    for (std::size_t i = 0; i < inputs.size(); i++) result.emplace_back(handles[i]);
    return result;
}

namespace detail {

/// A callable of C++ as a block of the library, which runs it as often as it needs to and then releases it.
template <class Block> class CheckpointedBlock {
public:
    static Tensor run(Block block, const TensorList &inputs) {
        auto held = std::make_unique<Block>(std::move(block));
        ga_tensor *out = nullptr;
        Caught caught;
        caught.check(ga_checkpoint(&out, inputs.data(), inputs.count(), &call, held.get(), &release));
        static_cast<void>(held.release()); // release has it now
        return Tensor(out);
    }

private:
    static ga_status call(ga_tensor **out, ga_tensor *const *inputs, std::int64_t count, void *user) noexcept {
        try {
            std::vector<Tensor> tensors;
            tensors.reserve(static_cast<std::size_t>(count));
            for (std::int64_t i = 0; i < count; i++) tensors.emplace_back(inputs[i]);
            // The library frees the handle itself, with the scope that it is made in.
            *out = (*static_cast<Block *>(user))(static_cast<const std::vector<Tensor> &>(tensors)).release();
            return GA_OK;
        } catch (...) {
            Caught::keep_current();
            return status_of_current();
        }
    }

    static void release(void *user) noexcept { delete static_cast<Block *>(user); }
};

template <class Block, std::size_t... index>
Tensor call_with(Block &block, const std::vector<Tensor> &inputs, std::index_sequence<index...>) {
    return block(inputs[index]...);
}

} // namespace detail

/// block(inputs...) without keeping its activations: backward runs it again. What it refers to must live until then.
template <class Block, class... Inputs>
std::enable_if_t<(std::is_same_v<Inputs, Tensor> && ...) && std::is_invocable_r_v<Tensor, Block &, const Inputs &...>,
                 Tensor>
checkpoint(Block block, const Inputs &...inputs) {
    auto on_list = [block = std::move(block)](const std::vector<Tensor> &list) mutable {
        return detail::call_with(block, list, std::index_sequence_for<Inputs...>());
    };
    return detail::CheckpointedBlock<decltype(on_list)>::run(
        std::move(on_list), std::initializer_list<std::reference_wrapper<const Tensor>>{inputs...});
}

/// The same for any number of inputs: block takes a const std::vector<Tensor> &.
template <class Block>
std::enable_if_t<std::is_invocable_r_v<Tensor, Block &, const std::vector<Tensor> &>, Tensor>
checkpoint(Block block, const TensorList &inputs) {
    return detail::CheckpointedBlock<Block>::run(std::move(block), inputs);
}

} // namespace gradaccum

#endif // GRADACCUM_OPS_HPP
