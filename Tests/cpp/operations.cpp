// operations.cpp - each operation has its arguments where they belong, and gradients flow through it
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "expect.hpp"

namespace {

using Values = std::vector<float>;

Values values(const ga::Tensor &x) { return x.to_vector<float>(); }

bool close(const ga::Tensor &x, const Values &expected, double tolerance = 1e-5) {
    const Values found = values(x);
    if (found.size() != expected.size()) return false;
    for (std::size_t i = 0; i < found.size(); i++)
        if (!(std::fabs(static_cast<double>(found[i]) - static_cast<double>(expected[i])) <= tolerance)) return false;
    return true;
}

void elementwise() {
    const ga::Tensor a = ga::Tensor::from_data({3}, {1, 2, 4}), b = ga::Tensor::from_data({3}, {2, 4, 8});
    EXPECT(values(ga::add(a, b)) == Values{3, 6, 12} && values(a + b) == Values{3, 6, 12});
    EXPECT(values(ga::subtract(a, b)) == Values{-1, -2, -4} && values(a - b) == Values{-1, -2, -4});
    EXPECT(values(ga::multiply(a, b)) == Values{2, 8, 32} && values(a * b) == Values{2, 8, 32});
    EXPECT(values(ga::divide(b, a)) == Values{2, 2, 2} && values(a / b) == Values{0.5, 0.5, 0.5});
    EXPECT(values(a + 1) == Values{2, 3, 5} && values(1 + a) == Values{2, 3, 5});
    EXPECT(values(a - 1) == Values{0, 1, 3} && values(1 - a) == Values{0, -1, -3});
    EXPECT(values(a * 2) == Values{2, 4, 8} && values(2 * a) == Values{2, 4, 8});
    EXPECT(values(a / 2) == Values{0.5, 1, 2} && values(4 / a) == Values{4, 2, 1});
    const ga::Tensor signs = ga::Tensor::from_data({2}, {-1, 1});
    EXPECT(values(ga::relu(signs)) == Values{0, 1});
    EXPECT(close(ga::gelu(signs), {-0.158655F, 0.841345F}));
    EXPECT(close(ga::gelu(signs, ga::Gelu::tanh), {-0.158808F, 0.841192F}));
    EXPECT(values(ga::cast(ga::cast(a, ga::DType::float16), ga::DType::float32)) == Values{1, 2, 4});
}

void matrices_and_shapes() {
    const ga::Tensor x = ga::Tensor::from_data({2, 3}, {1, 2, 3, 4, 5, 6});
    const ga::Tensor weight = ga::Tensor::from_data({1, 3}, {1, 0, -1}), bias = ga::Tensor::from_data({1}, {10});
    EXPECT(values(ga::matmul(x, ga::transpose(weight, 0, 1))) == Values{-2, -2});
    EXPECT(values(ga::linear(x, weight)) == Values{-2, -2});
    EXPECT(values(ga::linear(x, weight, bias)) == Values{8, 8});
    EXPECT(values(ga::linear(x, weight, std::nullopt)) == Values{-2, -2});
    EXPECT(values(ga::linear(x, weight, std::optional<ga::Tensor>())) == Values{-2, -2});
    EXPECT(values(ga::linear(x, weight, std::optional<ga::Tensor>(bias.detach()))) == Values{8, 8});
    EXPECT(ga::reshape(x, {3, -1}).shape() == ga::Shape{3, 2});
    EXPECT(values(ga::slice(x, 1, 1, 3)) == Values{2, 3, 5, 6});
    EXPECT(ga::sum(x).item() == 21 && ga::mean(x).item() == 3.5);
    EXPECT(values(ga::sum(x, {0})) == Values{5, 7, 9} && values(ga::mean(x, {1})) == Values{2, 5});
    EXPECT(ga::sum(x, {0, 1}).item() == 21 && ga::sum(x, std::vector<std::int32_t>{0, 1}).item() == 21);
    EXPECT(ga::sum(x, {-1}, true).shape() == ga::Shape{2, 1});
    EXPECT(ga::mean(x, std::vector<std::int32_t>{0}, true).shape() == ga::Shape{1, 3});
    const ga::Tensor gain = ga::Tensor::from_data({3}, {2, 2, 2}), shift = ga::Tensor::from_data({3}, {1, 1, 1});
    const Values normal{-1.22474F, 0, 1.22474F, -1.22474F, 0, 1.22474F};
    EXPECT(close(ga::layer_norm(x, std::nullopt, std::nullopt), normal, 1e-4));
    EXPECT(close(ga::layer_norm(x, gain, shift), {-1.44948F, 1, 3.44948F, -1.44948F, 1, 3.44948F}, 1e-4));
    EXPECT(close(ga::layer_norm(x, std::nullopt, shift, 1e9), {1, 1, 1, 1, 1, 1}, 1e-3));
    EXPECT(close(ga::softmax(ga::Tensor::zeros({2, 4})), Values(8, 0.25F)));
    EXPECT(close(ga::softmax(ga::Tensor::zeros({2, 4}), 0), Values(8, 0.5F)));
    const ga::Tensor rows = ga::Tensor::from_data({3}, std::vector<std::int32_t>{1, 0, 1});
    EXPECT(values(ga::embedding(x, rows)) == Values{4, 5, 6, 1, 2, 3, 4, 5, 6});
    const ga::Tensor q = ga::Tensor::zeros({1, 2, 4}), v = ga::Tensor::from_data({1, 2, 4}, {1, 2, 3, 4, 3, 4, 5, 6});
    EXPECT(values(ga::causal_attention(q, q, v, 2)) == Values{1, 2, 3, 4, 2, 3, 4, 5});
}

void losses_and_gradients() {
    const ga::Tensor logits = ga::Tensor::zeros({2, 4}).set_requires_grad(true);
    const ga::Tensor targets = ga::Tensor::from_data({2}, std::vector<std::int64_t>{1, 3});
    const double ln4 = std::log(4.0);
    EXPECT(std::fabs(ga::cross_entropy(logits, targets).item() - 2 * ln4) < 1e-6);
    EXPECT(std::fabs(ga::cross_entropy(logits, targets, 3).item() - ln4) < 1e-6);
    EXPECT(std::fabs(ga::cross_entropy(logits, targets, ga::no_ignore_index, ga::Reduction::mean).item() - ln4) < 1e-6);
    const ga::Tensor hidden = ga::Tensor::zeros({2, 3}), head = ga::Tensor::zeros({4, 3});
    EXPECT(std::fabs(ga::linear_cross_entropy(hidden, head, targets).item() - 2 * ln4) < 1e-6);
    EXPECT(std::fabs(ga::linear_cross_entropy(hidden, head, targets, 1, ga::Reduction::mean).item() - ln4) < 1e-6);
    const ga::Tensor p = ga::Tensor::from_data({2}, {1, 2}), t = ga::Tensor::from_data({2}, {3, 5});
    EXPECT(ga::mse(p, t).item() == 13 && ga::mse(p, t, ga::Reduction::mean).item() == 6.5);

    const std::vector<ga::Tensor> found = ga::gradients(ga::cross_entropy(logits, targets), {logits});
    EXPECT(found.size() == 1 && close(found[0], {0.25F, -0.75F, 0.25F, 0.25F, 0.25F, 0.25F, 0.25F, -0.75F}));
    const ga::Tensor a = ga::Tensor::from_data({2}, {1, 2}).set_requires_grad(true);
    const ga::Tensor b = ga::Tensor::from_data({2}, {3, 4}).set_requires_grad(true);
    const std::vector<ga::Tensor *> none;
    EXPECT(ga::gradients(ga::sum(a * b), none).empty());
    const std::vector<const ga::Tensor *> both{&b, &a};
    const auto of_both = ga::gradients(ga::sum(a * b), both);
    EXPECT(values(of_both[0]) == Values{1, 2} && values(of_both[1]) == Values{3, 4});
}

void checkpointing() {
    const ga::Tensor x = ga::Tensor::zeros({4, 8}).fill_normal(0, 1, 1).set_requires_grad(true);
    const ga::Tensor w = ga::Tensor::zeros({8, 8}).fill_normal(0, 1, 2).set_requires_grad(true);
    int runs = 0;
    const auto block = [&](const ga::Tensor &input) {
        runs++;
        return ga::gelu(ga::linear(ga::gelu(ga::linear(input, w)), w));
    };
    const Values plain = values(ga::gradients(ga::sum(block(x) * 2), {x})[0]);
    EXPECT(runs == 1);
    const ga::Tensor y = ga::checkpoint(block, x);
    EXPECT(runs == 2);
    EXPECT(values(ga::gradients(ga::sum(y * 2), {x})[0]) == plain && runs == 3);

    const auto product = [](const ga::Tensor &a, const ga::Tensor &b) { return a * b; };
    EXPECT(values(ga::checkpoint(product, x, x)) == values(x * x));
    const std::vector<ga::Tensor> list = [&] {
        std::vector<ga::Tensor> made;
        made.push_back(x.detach());
        made.push_back(x.detach());
        return made;
    }();
    const auto total = [](const std::vector<ga::Tensor> &inputs) {
        ga::Tensor all = inputs[0] + 0.0;
        for (std::size_t i = 1; i < inputs.size(); i++) all = all + inputs[i];
        return all;
    };
    EXPECT(values(ga::checkpoint(total, list)) == values(x + x));
}

} // namespace

void test_operations() {
    elementwise();
    matrices_and_shapes();
    losses_and_gradients();
    checkpointing();
}
