// tensor.hpp - tensors and scopes
#ifndef GRADACCUM_TENSOR_HPP
#define GRADACCUM_TENSOR_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "detail.hpp"

namespace gradaccum {

/// A tensor of the library. It is a handle: const says that this object stays, not that the elements do.
class Tensor : public detail::Handle<ga_tensor, ga_tensor_free> {
public:
    /// No tensor, as one that was moved from.
    Tensor() noexcept = default;

    /// Takes over a handle that a C call made.
    explicit Tensor(ga_tensor *handle) noexcept : Handle(handle) {}

    /// Gives the handle up: it is the caller's to free.
    ga_tensor *release() noexcept { return give_up(); }

    // ------ making one ------

    static Tensor zeros(const Shape &shape, DType dtype = DType::float32) {
        return make(ga_tensor_create, GA_DEVICE_CPU, detail::constant(dtype), shape.rank(), shape.data());
    }

    /// With a copy of the elements of a vector, an array, or whatever else is contiguous.
    template <class Elements> static Tensor from_data(const Shape &shape, const Elements &elements) {
        using T = std::remove_cv_t<std::remove_pointer_t<decltype(std::data(elements))>>;
        return from_data(shape, ElementType<T>::dtype, Span<const T>(elements));
    }
    static Tensor from_data(const Shape &shape, std::initializer_list<float> elements) {
        return from_data(shape, DType::float32, Span<const float>(elements.begin(), elements.size()));
    }
    /// With a dtype, for bfloat16 and float16 as std::uint16_t.
    template <class T> static Tensor from_data(const Shape &shape, DType dtype, Span<const T> elements) {
        require_elements<T>(dtype, shape, elements.size());
        if (elements.empty()) return zeros(shape, dtype); // which may have no address
        return make(ga_tensor_from_data, GA_DEVICE_CPU, detail::constant(dtype), shape.rank(), shape.data(),
                    static_cast<const void *>(elements.data()));
    }

    /// On the caller's memory, without a copy. It must outlive the tensor and all that was made from it; release, if
    /// there is one, is called when that is over, on any thread. On const elements it is read-only.
    template <class T>
    static Tensor wrap(T *data, const Shape &shape, const std::optional<Shape> &strides = std::nullopt,
                       std::function<void()> release = nullptr) {
        using Element = std::remove_const_t<T>;
        const DType dtype = ElementType<Element>::dtype;
        Tensor tensor = wrap(const_cast<Element *>(data), dtype, shape, strides, std::move(release));
        if (std::is_const_v<T>) tensor.set_read_only();
        return tensor;
    }
    static Tensor wrap(void *data, DType dtype, const Shape &shape, const std::optional<Shape> &strides = std::nullopt,
                       std::function<void()> release = nullptr) {
        if (strides && strides->rank() != shape.rank())
            throw ShapeError("wrap: strides has " + std::to_string(strides->rank()) + " axes and shape " +
                             std::to_string(shape.rank()));
        auto held = release ? std::make_unique<std::function<void()>>(std::move(release)) : nullptr;
        Tensor tensor = make(ga_tensor_wrap, GA_DEVICE_CPU, detail::constant(dtype), shape.rank(), shape.data(),
                             strides ? strides->data() : nullptr, data, held ? &run_release : nullptr,
                             static_cast<void *>(held.get()));
        static_cast<void>(held.release()); // run_release has it now
        return tensor;
    }

    /// On the memory of a vector, which it takes over without a copy.
    template <class T> static Tensor adopt(const Shape &shape, std::vector<T> elements) {
        require_elements<T>(ElementType<T>::dtype, shape, elements.size());
        if (elements.empty()) return zeros(shape, ElementType<T>::dtype);
        auto held = std::make_shared<std::vector<T>>(std::move(elements));
        T *const data = held->data();
        return wrap(data, shape, std::nullopt, [held] { held->clear(); });
    }

    /// On the memory of a tensor of another library, by a struct of DLPack, which is the library's if this returns, and
    /// still the caller's if it throws.
    static Tensor from_dlpack(DLManagedTensorVersioned *managed) { return make(ga_tensor_from_dlpack, managed); }
    static Tensor from_dlpack(DLManagedTensor *managed) { return make(ga_tensor_from_dlpack_unversioned, managed); }

    /// A struct of DLPack 1.x, or 0.x, on this tensor's memory or on a copy. It is the caller's to hand over, or to
    /// give back by its deleter.
    DLManagedTensorVersioned *to_dlpack(bool copy = false) const {
        DLManagedTensorVersioned *managed = nullptr;
        check(ga_tensor_to_dlpack(&managed, handle(), copy ? 1 : 0));
        return managed;
    }
    DLManagedTensor *to_dlpack_unversioned(bool copy = false) const {
        DLManagedTensor *managed = nullptr;
        check(ga_tensor_to_dlpack_unversioned(&managed, handle(), copy ? 1 : 0));
        return managed;
    }

    // ------ what it is ------

    DType dtype() const { return static_cast<DType>(get<std::int32_t>(ga_tensor_dtype)); }
    std::int32_t rank() const { return get<std::int32_t>(ga_tensor_rank); }
    std::int64_t element_count() const { return get<std::int64_t>(ga_tensor_element_count); }
    Shape shape() const { return sizes(ga_tensor_shape); }
    /// In elements.
    Shape strides() const { return sizes(ga_tensor_strides); }
    bool requires_grad() const { return get<std::int32_t>(ga_tensor_requires_grad) != 0; }
    bool read_only() const { return get<std::int32_t>(ga_tensor_read_only) != 0; }

    /// Whether its elements lie one after the other in row-major order.
    bool is_contiguous() const {
        const Shape sizes = shape(), steps = strides();
        std::int64_t expected = 1;
        for (std::size_t axis = sizes.size(); axis-- > 0; expected *= sizes[axis])
            if (sizes[axis] > 1 && steps[axis] != expected) return false;
        return true;
    }

    // ------ elements ------

    /// The single element of a tensor that has one.
    double item() const { return get<double>(ga_tensor_item); }

    /// The address of the first element, for reading and writing in place while the tensor lives.
    void *address() const { return get<void *>(ga_tensor_data); }

    /// The elements in place. T is that of the dtype, or std::uint16_t for the bits of 16-bit ones, and const for those
    /// of a read-only tensor. Errors: DTypeError, ShapeError if they do not lie one after the other.
    template <class T> Span<T> data() const {
        require_dtype<T>(dtype());
        if (!std::is_const_v<T> && read_only())
            throw InvalidArgumentError("data: the tensor is read-only: ask for const elements");
        if (!is_contiguous()) throw ShapeError("data: the tensor is not contiguous: copy it out, by to_vector()");
        return {static_cast<T *>(address()), static_cast<std::size_t>(element_count())};
    }

    /// A copy of the elements in row-major order.
    template <class T> std::vector<T> to_vector() const {
        std::vector<T> elements(static_cast<std::size_t>(element_count()));
        copy_out(Span<T>(elements));
        return elements;
    }

    template <class T> void copy_out(Span<T> destination) const {
        require_dtype<T>(dtype());
        if (destination.empty() && element_count() == 0) return; // which may have no address
        check(ga_tensor_copy_out(handle(), destination.data(), destination.size() * sizeof(T)));
    }

    template <class Elements> void copy_in(const Elements &elements) {
        using T = std::remove_cv_t<std::remove_pointer_t<decltype(std::data(elements))>>;
        require_dtype<T>(dtype());
        if (std::size(elements) == 0 && element_count() == 0) return;
        check(ga_tensor_copy_in(handle(), std::data(elements), std::size(elements) * sizeof(T)));
    }

    Tensor &fill(double value) & {
        check(ga_tensor_fill(handle(), value));
        return *this;
    }
    Tensor &fill_normal(double mean, double standard_deviation, std::uint64_t seed) & {
        check(ga_tensor_fill_normal(handle(), mean, standard_deviation, seed));
        return *this;
    }
    Tensor &fill_uniform(double low, double high, std::uint64_t seed) & {
        check(ga_tensor_fill_uniform(handle(), low, high, seed));
        return *this;
    }
    Tensor &set_requires_grad(bool requires_grad) & {
        check(ga_tensor_set_requires_grad(handle(), requires_grad ? 1 : 0));
        return *this;
    }
    /// Lets the library refuse every later write to the memory, for good.
    Tensor &set_read_only() & {
        check(ga_tensor_set_read_only(handle()));
        return *this;
    }
    /// Names the tensor for error sentences.
    Tensor &set_name(const std::string &name) & {
        check(ga_tensor_set_name(handle(), name.c_str()));
        return *this;
    }
    // The same where a tensor is made: Tensor::zeros({3}).fill(1.0)
    Tensor fill(double value) && { return std::move(fill(value)); }
    Tensor fill_normal(double mean, double standard_deviation, std::uint64_t seed) && {
        return std::move(fill_normal(mean, standard_deviation, seed));
    }
    Tensor fill_uniform(double low, double high, std::uint64_t seed) && {
        return std::move(fill_uniform(low, high, seed));
    }
    Tensor set_requires_grad(bool requires_grad) && { return std::move(set_requires_grad(requires_grad)); }
    Tensor set_read_only() && { return std::move(set_read_only()); }
    Tensor set_name(const std::string &name) && { return std::move(set_name(name)); }

    /// A tensor on the same memory that no gradient flows through.
    Tensor detach() const { return make(ga_tensor_detach, static_cast<const ga_tensor *>(handle())); }

    /// Calls a C function whose first parameter is the address of a new tensor.
    template <class Function, class... Arguments> static Tensor make(Function function, Arguments... arguments) {
        ga_tensor *out = nullptr;
        check(function(&out, arguments...));
        return Tensor(out);
    }

private:
    template <class Value> Value get(ga_status (*function)(const ga_tensor *, Value *)) const {
        Value value{};
        check(function(handle(), &value));
        return value;
    }

    Shape sizes(ga_status (*function)(const ga_tensor *, std::int64_t *, std::int32_t)) const {
        std::array<std::int64_t, GA_MAX_RANK> out{};
        const std::int32_t count = rank();
        check(function(handle(), out.data(), GA_MAX_RANK));
        return Shape(out.data(), static_cast<std::size_t>(count));
    }

    template <class T> static void require_dtype(DType dtype) {
        if (!detail::is_element<T>(dtype))
            throw DTypeError("the elements are of another type than the tensor, whose dtype is " +
                             std::to_string(detail::constant(dtype)));
    }

    template <class T> static void require_elements(DType dtype, const Shape &shape, std::size_t size) {
        require_dtype<T>(dtype);
        const std::optional<std::int64_t> count = shape.element_count(); // else the library says what is wrong
        if (count && static_cast<std::uint64_t>(*count) != size)
            throw ShapeError(std::to_string(size) + " elements are given, and the shape has " + std::to_string(*count));
    }

    static void run_release(void *, void *user) noexcept {
        const std::unique_ptr<std::function<void()>> release(static_cast<std::function<void()> *>(user));
        try {
            (*release)();
        } catch (...) { // there is no call to throw it from
        }
    }
};

/// A tensor or none, where an operation may do without one. One that was moved from is not taken for none.
class OptionalTensor {
public:
    OptionalTensor(std::nullopt_t) noexcept {}
    OptionalTensor(const Tensor &tensor) : handle_(tensor.handle()) {
        if (handle_ == nullptr)
            throw InvalidArgumentError("an optional tensor was moved from: pass a live one, or std::nullopt for none");
    }
    OptionalTensor(const std::optional<Tensor> &tensor) {
        if (tensor) *this = OptionalTensor(*tensor);
    }

    const ga_tensor *handle() const noexcept { return handle_; }

private:
    const ga_tensor *handle_ = nullptr;
};

/// The handles of several tensors, read while a call lasts: {a, b}, or a container of Tensor, of Tensor * or of
/// references to them.
class TensorList {
public:
    TensorList(std::initializer_list<std::reference_wrapper<const Tensor>> tensors) { add_all(tensors); }
    template <class Container, class = decltype(std::begin(std::declval<const Container &>()))>
    TensorList(const Container &tensors) {
        add_all(tensors);
    }

    ga_tensor *const *data() const noexcept { return handles_.data(); }
    std::int64_t count() const noexcept { return static_cast<std::int64_t>(handles_.size()); }
    std::size_t size() const noexcept { return handles_.size(); }

private:
    template <class Container> void add_all(const Container &tensors) {
        handles_.reserve(static_cast<std::size_t>(std::distance(std::begin(tensors), std::end(tensors))));
        for (const auto &tensor : tensors) {
            if constexpr (std::is_pointer_v<std::decay_t<decltype(tensor)>>)
                handles_.push_back(tensor == nullptr ? nullptr : tensor->handle());
            else
                handles_.push_back(static_cast<const Tensor &>(tensor).handle());
        }
    }

    std::vector<ga_tensor *> handles_;
};

/// Frees the tensors that are made on this thread while it lives, by C calls too, except those that are kept. A Tensor
/// frees itself, so C++ alone needs no scopes.
class Scope {
public:
    Scope() { check(ga_scope_open(&handle_)); }
    ~Scope() {
        if (handle_ != nullptr && close_keeping() != GA_OK) ga_scope_close(handle_, nullptr, 0);
    }
    Scope(const Scope &) = delete;
    Scope &operator=(const Scope &) = delete;

    /// Lets a tensor outlive the scope: return scope.keep(std::move(y)).
    Tensor keep(Tensor &&tensor) {
        keep(tensor.handle());
        return std::move(tensor);
    }
    void keep(const Tensor &tensor) { keep(tensor.handle()); }
    void keep(ga_tensor *tensor) { kept_.push_back(tensor); }

    /// What the destructor does, with an error if an inner scope is open or a kept tensor is gone.
    void close() {
        check(close_keeping());
        handle_ = nullptr;
    }

private:
    ga_status close_keeping() const noexcept {
        return ga_scope_close(handle_, kept_.data(), static_cast<std::int64_t>(kept_.size()));
    }

    ga_scope *handle_ = nullptr;
    std::vector<ga_tensor *> kept_;
};

} // namespace gradaccum

#endif // GRADACCUM_TENSOR_HPP
