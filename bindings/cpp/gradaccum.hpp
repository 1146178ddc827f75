/*
 * gradaccum.hpp - the C header gradaccum.h for C++17 and later: handles that free themselves, and exceptions
 *
 * Header-only, and nothing but the C calls: what a function does, which shapes it takes and when it fails is said in
 * gradaccum.h, where it has the same name with ga_ in front. A complete training step:
 *
 *     namespace ga = gradaccum;
 *     ga::AdamW optimizer({weight1, bias1, weight2, bias2}, ga::AdamWOptions().learning_rate(3e-4));
 *     ga::Accumulator accumulator(optimizer, ga::AccumulatorOptions().max_grad_norm(1.0));
 *     for (const auto &[x, y] : micro_batches) {
 *         const ga::Tensor hidden = ga::gelu(ga::linear(x, weight1, bias1), ga::Gelu::tanh);
 *         const ga::Tensor logits = ga::linear(hidden, weight2, bias2);
 *         accumulator.accumulate(ga::cross_entropy(logits, y), static_cast<double>(y.element_count()));
 *     }
 *     const ga::Report report = accumulator.step();
 *
 * Ownership. Tensor, Optimizer, Accumulator and the like own a handle: they are moved and not copied, and free it in
 *   their destructor, in any order. handle() lends it to a C call. One that was moved from has none, and a call with it
 *   is an InvalidArgumentError. In a Scope, a Tensor that the scope frees is refused in the same way.
 * Errors. A status that is not GA_OK is thrown as an Error with the library's sentence; its type says which status.
 * Callbacks. A checkpointed block, a rule, a handler and a release may be any callable object. No exception of one
 *   crosses the C library: it is kept there and thrown again, as the same object, by the C++ call that had the callback
 *   run. (One of a release, which like a destructor has no such call, goes no further.)
 * Threads. As in gradaccum.h: a handle is used by one thread at a time, and unrelated ones need no locks.
 */
#ifndef GRADACCUM_HPP
#define GRADACCUM_HPP

#include "gradaccum/error.hpp"
#include "gradaccum/values.hpp"
#include "gradaccum/detail.hpp"
#include "gradaccum/runtime.hpp"
#include "gradaccum/tensor.hpp"
#include "gradaccum/ops.hpp"
#include "gradaccum/schedule.hpp"
#include "gradaccum/optimizer.hpp"
#include "gradaccum/average.hpp"
#include "gradaccum/split.hpp"
#include "gradaccum/loss_scaler.hpp"
#include "gradaccum/accumulator.hpp"

#undef GRADACCUM_OPTION

#endif // GRADACCUM_HPP
