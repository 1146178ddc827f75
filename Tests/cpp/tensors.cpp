// tensors.cpp - handles that are moved, elements in and out, memory that is shared, scopes and guards
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "expect.hpp"

namespace {

static_assert(!std::is_copy_constructible_v<ga::Tensor> && !std::is_copy_assignable_v<ga::Tensor>);
static_assert(std::is_nothrow_move_constructible_v<ga::Tensor> && std::is_nothrow_move_assignable_v<ga::Tensor>);
static_assert(!std::is_copy_constructible_v<ga::Accumulator> && std::is_nothrow_move_constructible_v<ga::Accumulator>);
static_assert(std::is_nothrow_move_assignable_v<ga::AdamW> && !std::is_copy_constructible_v<ga::AdamW>);
static_assert(sizeof(ga::Tensor) == sizeof(ga_tensor *), "a handle and nothing else");
static_assert(!std::is_convertible_v<ga_tensor *, ga::Tensor>, "taking over is said");
static_assert(ga::ElementType<std::int32_t>::dtype == ga::DType::int32);
static_assert(ga::ElementType<std::int64_t>::dtype == ga::DType::int64);
static_assert(ga::ElementType<long long>::dtype == ga::DType::int64);

void moves() {
    const auto live = ga::memory_usage().live_bytes;
    {
        ga::Tensor a = ga::Tensor::zeros({2, 3}), b = std::move(a);
        EXPECT(!a && b && b.shape() == ga::Shape{2, 3});
        EXPECT_THROWS(ga::InvalidArgumentError, "NULL", a.shape());
        EXPECT_THROWS(ga::InvalidArgumentError, "NULL", ga::relu(a));
        ga::Tensor &self = b;
        b = std::move(self);
        EXPECT(b && b.rank() == 2);
        a = std::move(b);
        EXPECT(a && !b);
        a = ga::Tensor::zeros({1});
        EXPECT(a.element_count() == 1);
        std::vector<ga::Tensor> many;
        for (int i = 0; i < 20; i++) many.push_back(ga::Tensor::zeros({1}).fill(i));
        EXPECT(many[13].item() == 13);
        std::swap(many[0], many[19]);
        EXPECT(many[0].item() == 19 && many[19].item() == 0);
        ga::Tensor released = ga::Tensor::zeros({4});
        ga_tensor *const handle = released.release();
        EXPECT(!released && handle != nullptr);
        EXPECT(ga::Tensor(handle).element_count() == 4);
    }
    EXPECT(ga::memory_usage().live_bytes == live);
}

void elements() {
    const std::vector<float> six{1, 2, 3, 4, 5, 6};
    ga::Tensor x = ga::Tensor::from_data({2, 3}, six);
    EXPECT(x.dtype() == ga::DType::float32 && x.rank() == 2 && x.element_count() == 6 && x.is_contiguous());
    EXPECT(x.to_vector<float>() == six);
    EXPECT(x.strides() == ga::Shape{3, 1} && x.strides() != ga::Shape{1, 3} && x.shape() != ga::Shape{2});
    x.data<float>()[5] = 7;
    EXPECT(x.to_vector<float>()[5] == 7);
    for (float &element : x.data<float>()) element += 1;
    EXPECT(static_cast<float *>(x.address())[0] == 2);
    x.copy_in(six);
    std::array<float, 6> out{};
    x.copy_out(ga::Span<float>(out));
    EXPECT(out[3] == 4);
    EXPECT(ga::Tensor::from_data({3}, {1, 2, 3}).to_vector<float>()[2] == 3);
    EXPECT(ga::Tensor::from_data({2}, std::array<std::int64_t, 2>{5, -6}).to_vector<std::int64_t>()[1] == -6);
    const std::vector<std::uint16_t> halves{0x3f80, 0x4000};
    const auto half = ga::Tensor::from_data({2}, ga::DType::bfloat16, ga::Span<const std::uint16_t>(halves));
    EXPECT(ga::cast(half, ga::DType::float32).to_vector<float>() == std::vector<float>{1, 2});
    EXPECT(half.data<std::uint16_t>()[1] == 0x4000);
    EXPECT(ga::Tensor::zeros({}).fill(3).item() == 3 && ga::Tensor::zeros({}).rank() == 0);
    EXPECT(ga::Tensor::from_data({0, 3}, std::vector<float>()).to_vector<float>().empty());

    EXPECT_THROWS(ga::ShapeError, "5", ga::Tensor::from_data({5}, six));
    EXPECT_THROWS(ga::DTypeError, "another type", x.data<std::int32_t>());
    EXPECT_THROWS(ga::DTypeError, "another type", x.to_vector<std::uint16_t>());
    EXPECT_THROWS(ga::DTypeError, "another type", x.copy_in(std::vector<std::int32_t>(6)));
    EXPECT_THROWS(ga::ShapeError, "to_vector", ga::transpose(x, 0, 1).data<float>());
    EXPECT_THROWS(ga::ShapeError, "size_bytes", x.copy_in(std::vector<float>(5)));
    EXPECT_THROWS(ga::InvalidArgumentError, "rank", ga::Tensor::zeros({1, 1, 1, 1, 1, 1, 1, 1, 1}));
    EXPECT_THROWS(ga::OverflowError, "", ga::Tensor::zeros({INT64_MAX, 4}));
    EXPECT(ga::transpose(x, 0, 1).to_vector<float>() == std::vector<float>{1, 4, 2, 5, 3, 6});

    EXPECT(ga::Tensor::zeros({1000}).fill_normal(0, 1, 3).to_vector<float>() ==
           ga::Tensor::zeros({1000}).fill_normal(0, 1, 3).to_vector<float>());
    const std::vector<float> uniform = ga::Tensor::zeros({100}).fill_uniform(2, 3, 1).to_vector<float>();
    for (const float value : uniform) EXPECT(value >= 2 && value <= 3);
}

void sharing() {
    std::vector<float> memory{1, 2, 3, 4, 5, 6};
    int released = 0;
    {
        const ga::Tensor x = ga::Tensor::wrap(memory.data(), {2, 3}, {}, [&] { released++; });
        EXPECT(x.address() == memory.data());
        x.data<float>()[0] = 9;
        const ga::Tensor view = ga::reshape(x, {3, 2});
        EXPECT(view.address() == memory.data() && released == 0);
    }
    EXPECT(memory[0] == 9 && released == 1);
    const ga::Tensor columns = ga::Tensor::wrap(memory.data(), {3, 2}, ga::Shape{1, 3});
    EXPECT(columns.to_vector<float>() == std::vector<float>{9, 4, 2, 5, 3, 6});
    EXPECT_THROWS(ga::ShapeError, "strides has 1", ga::Tensor::wrap(memory.data(), {3, 2}, ga::Shape{1}));
    EXPECT_THROWS(ga::InvalidArgumentError, "stride",
                  ga::Tensor::wrap(memory.data(), {6}, ga::Shape{-1}, [&] { released++; }));
    EXPECT(released == 1); // a tensor that was not made takes nothing over
    ga::Tensor::wrap(memory.data(), {6}, {}, [] { throw std::string("goes no further"); });

    std::vector<float> adopted{1, 2, 3};
    const float *const address = adopted.data();
    const ga::Tensor owner = ga::Tensor::adopt({3}, std::move(adopted));
    EXPECT(owner.address() == address && owner.to_vector<float>()[2] == 3);
    std::weak_ptr<int> alive;
    {
        const auto counted = std::make_shared<int>(0);
        alive = counted;
        ga::Tensor x = ga::Tensor::wrap(memory.data(), {6}, {}, [counted] {});
        x.set_requires_grad(true);
    }
    EXPECT(alive.expired());
    EXPECT_THROWS(ga::ShapeError, "3 elements", ga::Tensor::adopt({4}, std::vector<float>(3)));
}

void read_only() {
    const std::vector<float> memory{1, 2, 3};
    const ga::Tensor wrapped = ga::Tensor::wrap(memory.data(), {3});
    EXPECT(wrapped.read_only() && wrapped.data<const float>().data() == memory.data());
    EXPECT_THROWS(ga::InvalidArgumentError, "const elements", wrapped.data<float>());
    ga::Tensor x = ga::Tensor::zeros({2});
    EXPECT(!x.read_only() && ga::Tensor::zeros({1}).set_read_only().read_only());
    x.set_read_only();
    EXPECT_THROWS(ga::InvalidArgumentError, "read-only", x.fill(1));
    EXPECT(ga::detail::is_element<const float>(ga::DType::float32) && x.data<const float>()[1] == 0);
    EXPECT_THROWS(ga::InvalidArgumentError, "read-only", ga::SGD({x}));
}

void dlpack() {
    const ga::Tensor x = ga::Tensor::from_data({3}, {1, 2, 3});
    const ga::Tensor shared = ga::Tensor::from_dlpack(x.to_dlpack());
    const ga::Tensor older = ga::Tensor::from_dlpack(x.to_dlpack_unversioned());
    const ga::Tensor copied = ga::Tensor::from_dlpack(x.to_dlpack(true));
    const ga::Tensor older_copy = ga::Tensor::from_dlpack(x.to_dlpack_unversioned(true));
    x.data<float>()[1] = 5;
    EXPECT(shared.address() == x.address() && older.address() == x.address());
    EXPECT(shared.to_vector<float>()[1] == 5 && copied.to_vector<float>()[1] == 2);
    EXPECT(older_copy.to_vector<float>()[1] == 2);
    const ga::Tensor frozen = ga::Tensor::zeros({1}).set_read_only();
    EXPECT(ga::Tensor::from_dlpack(frozen.to_dlpack()).read_only());
    EXPECT_THROWS(ga::UnsupportedError, "read-only", frozen.to_dlpack_unversioned());
    DLManagedTensorVersioned *const none = nullptr;
    EXPECT_THROWS(ga::InvalidArgumentError, "managed", ga::Tensor::from_dlpack(none));
}

void scopes_and_guards() {
    ga::Tensor kept, freed;
    {
        ga::Scope scope;
        freed = ga::Tensor::zeros({2});
        kept = scope.keep(ga::Tensor::zeros({2}).fill(5));
        ga_tensor *raw = nullptr; // what C code leaves behind
        ga::check(ga_tensor_detach(&raw, kept.handle()));
    }
    EXPECT(kept.to_vector<float>()[1] == 5);
    EXPECT_THROWS(ga::InvalidArgumentError, "live", freed.shape());
    ga::Scope outer;
    {
        ga::Scope inner;
        EXPECT_THROWS(ga::StateError, "inner", outer.close());
    }
    outer.close();
    {
        ga::Scope scope;
        ga::Tensor gone = ga::Tensor::zeros({1}).fill(1);
        scope.keep(gone);
        gone = ga::Tensor();
        EXPECT_THROWS(ga::InvalidArgumentError, "live", scope.close());
    } // and the scope closes nonetheless
    ga::Scope after;
    after.close();

    const ga::Tensor x = ga::Tensor::zeros({2}).set_requires_grad(true).set_name("x");
    EXPECT(x.requires_grad() && !x.detach().requires_grad());
    {
        const ga::RecordingGuard off(false);
        EXPECT(!ga::recording() && !ga::relu(x).requires_grad());
        const ga::RecordingGuard on(true);
        EXPECT(ga::relu(x).requires_grad());
    }
    EXPECT(ga::recording() && ga::relu(x).requires_grad());
    {
        const ga::ComputeDTypeGuard bf16(ga::DType::bfloat16);
        EXPECT(ga::compute_dtype() == ga::DType::bfloat16);
    }
    EXPECT(ga::compute_dtype() == ga::DType::float32);
    EXPECT_THROWS(ga::UnsupportedError, "", const ga::ComputeDTypeGuard guard(ga::DType::int32));
}

int allocations = 0;

void *allocate(std::size_t size, std::size_t alignment, void *user) noexcept {
    ++*static_cast<int *>(user);
    return std::aligned_alloc(alignment, size);
}

void release(void *memory, std::size_t, void *) noexcept { std::free(memory); }

void runtime() {
    EXPECT(std::string(ga::version()) == ga_version() && ga::abi_version() == GA_ABI_VERSION);
    EXPECT(std::string(ga::instruction_set()).size() >= 4);
    const std::int32_t threads = ga::num_threads();
    ga::set_num_threads(3);
    EXPECT(ga::num_threads() == 3);
    ga::set_num_threads(threads);
    EXPECT_THROWS(ga::InvalidArgumentError, "0", ga::set_num_threads(0));

    ga::memory_reset_peak();
    { const ga::Tensor big = ga::Tensor::zeros({1 << 20}); }
    EXPECT(ga::memory_usage().peak_bytes >= ga::memory_usage().live_bytes + (4 << 20));
    ga::memory_trim();
    if (ga::memory_usage().live_bytes == 0) {
        ga::set_allocator(allocate, release, &allocations);
        { const ga::Tensor x = ga::Tensor::zeros({1 << 20}); }
        EXPECT(allocations > 0);
        ga::memory_trim();
        ga::set_allocator(nullptr, nullptr);
    }
    EXPECT(allocations > 0);
}

} // namespace

void test_tensors() {
    runtime();
    moves();
    elements();
    sharing();
    read_only();
    dlpack();
    scopes_and_guards();
}
