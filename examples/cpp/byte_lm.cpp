/*
 * byte_lm - trains a small language model on a text file through gradaccum.hpp
 *
 * The model is the neural probabilistic language model of Bengio et al. (JMLR 3, 2003) on bytes: the embeddings of the
 * last 16 bytes, a hidden layer, and the logits of the next byte. Each batch is computed in micro-batches; whatever
 * their size and however many the threads, the weights come out the same to the last bit. For an evaluation the
 * parameters are swapped with their moving average.
 */
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gradaccum.hpp"

namespace ga = gradaccum;

namespace {

constexpr std::int64_t vocabulary = 256, context = 16, channels = 24, hidden_size = 192;
constexpr std::int64_t validation_samples = 2048;

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// ====== Options =========================================================================================

struct Options {
    std::string text;
    std::int64_t updates = 300;
    std::int64_t batch = 256;
    std::int64_t micro_batch = 64;
    std::int64_t threads = 0; // the library's default
    std::int64_t seed = 1;
    std::int64_t sample = 200;
};

std::int64_t number(const std::string &name, const std::string &text, std::int64_t least) {
    std::size_t end = 0;
    long long value = 0;
    try {
        value = std::stoll(text, &end);
    } catch (const std::logic_error &) {
        end = 0;
    }
    if (text.empty() || end != text.size() || value < least || value > 1'000'000'000)
        throw UsageError(name + " '" + text + "' is no whole number from " + std::to_string(least) + " on.");
    return value;
}

Options parse(const std::vector<std::string> &arguments) {
    Options options;
    for (std::size_t i = 0; i < arguments.size(); i += 2) {
        const std::string &name = arguments[i];
        if (i + 1 == arguments.size()) throw UsageError(name + " needs a value.");
        const std::string &value = arguments[i + 1];
        if (name == "--text") options.text = value;
        else if (name == "--updates") options.updates = number(name, value, 1);
        else if (name == "--batch") options.batch = number(name, value, 1);
        else if (name == "--micro-batch") options.micro_batch = number(name, value, 1);
        else if (name == "--threads") options.threads = number(name, value, 1);
        else if (name == "--seed") options.seed = number(name, value, 0);
        else if (name == "--sample") options.sample = number(name, value, 0);
        else
            throw UsageError("there is no option '" + name +
                             "'; there are --text, --updates, --batch, --micro-batch, --threads, --seed and --sample.");
    }
    if (options.text.empty()) throw UsageError("--text FILE is needed.");
    return options;
}

// ====== The text ========================================================================================

/// Bytes in two splits: the last tenth is for validation.
struct Text {
    std::vector<unsigned char> bytes;
    std::int64_t train_length = 0;

    explicit Text(const std::string &path) {
        std::ifstream file(path, std::ios::binary);
        if (!file) throw UsageError("--text '" + path + "' cannot be read.");
        bytes.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        train_length = static_cast<std::int64_t>(bytes.size()) / 10 * 9;
        if (train_length < 20 * context) throw UsageError("--text '" + path + "' is too short to learn from.");
    }

    std::int64_t validation_length() const { return static_cast<std::int64_t>(bytes.size()) - train_length; }
};

/// Samples of a batch: the bytes before a place in the text, and the one there.
struct Batch {
    std::vector<std::int32_t> before, next;

    void add(const Text &text, std::int64_t place) {
        for (std::int64_t i = place - context; i < place; i++)
            before.push_back(text.bytes[static_cast<std::size_t>(i)]);
        next.push_back(text.bytes[static_cast<std::size_t>(place)]);
    }

    std::int64_t size() const { return static_cast<std::int64_t>(next.size()); }

    /// Tensors on the memory of some of the samples, without a copy.
    std::pair<ga::Tensor, ga::Tensor> part(const ga::SampleRange &range) {
        return {ga::Tensor::wrap(before.data() + range.begin * context, {range.size(), context}),
                ga::Tensor::wrap(next.data() + range.begin, {range.size()})};
    }
};

/// The entropy of single bytes of the training text, on the validation text: what knowing no context comes to.
double unigram_loss(const Text &text) {
    std::vector<double> count(vocabulary, 1.0);
    double total = vocabulary, loss = 0.0;
    for (std::size_t i = 0; i < text.bytes.size(); i++) {
        if (static_cast<std::int64_t>(i) < text.train_length) {
            count[text.bytes[i]] += 1.0;
            total += 1.0;
        } else {
            loss -= std::log(count[text.bytes[i]] / total);
        }
    }
    return loss / static_cast<double>(text.validation_length());
}

// ====== The model =======================================================================================

struct Model {
    std::vector<ga::Tensor> parameters;

    explicit Model(std::uint64_t seed) {
        const auto matrix = [&](const char *name, std::int64_t rows, std::int64_t columns, double deviation) {
            parameters.push_back(
                ga::Tensor::zeros({rows, columns}).fill_normal(0.0, deviation, seed++).set_name(name));
        };
        const auto vector = [&](const char *name, std::int64_t length, double value) {
            parameters.push_back(ga::Tensor::zeros({length}).fill(value).set_name(name));
        };
        matrix("embedding", vocabulary, channels, 0.1);
        matrix("hidden.weight", hidden_size, context * channels, 0.05);
        vector("hidden.bias", hidden_size, 0.0);
        vector("norm.weight", hidden_size, 1.0);
        vector("norm.bias", hidden_size, 0.0);
        matrix("head.weight", vocabulary, hidden_size, 0.02);
        vector("head.bias", vocabulary, 0.0);
    }

    ga::Tensor logits(const ga::Tensor &before) const {
        const auto &p = parameters;
        const ga::Tensor embedded = ga::embedding(p[0], before);
        const ga::Tensor x = ga::reshape(embedded, {embedded.shape()[0], context * channels});
        const ga::Tensor hidden = ga::gelu(ga::linear(x, p[1], p[2]), ga::Gelu::tanh);
        return ga::linear(ga::layer_norm(hidden, p[3], p[4]), p[5], p[6]);
    }
};

double validation_loss(const Model &model, const Text &text) {
    const ga::RecordingGuard off(false);
    Batch batch;
    const std::int64_t places = text.validation_length() - context;
    for (std::int64_t i = 0; i < validation_samples; i++)
        batch.add(text, text.train_length + context + places * i / validation_samples);
    double sum = 0.0;
    for (const ga::SampleRange &range : ga::split_by_size(batch.size(), 256)) {
        const auto [before, next] = batch.part(range);
        sum += ga::cross_entropy(model.logits(before), next).item();
    }
    return sum / static_cast<double>(validation_samples);
}

// ====== Training ========================================================================================

ga::Report train(const Options &options, const Text &text, Model &model, double &averaged_loss) {
    ga::AdamW optimizer(model.parameters, ga::AdamWOptions().learning_rate(3e-3).beta2(0.99).weight_decay(0.1));
    optimizer.add_group({model.parameters[0]}, ga::GroupOptions().weight_decay(0.0));
    const double updates = static_cast<double>(options.updates), warmup = std::floor(updates / 10.0);
    optimizer.set_schedule(ga::Schedule::cosine(updates).warmup(warmup).end_factor(0.1));
    ga::Average average(optimizer, ga::AverageOptions().decay(0.98).warmup(true));
    ga::Accumulator accumulator(optimizer, ga::AccumulatorOptions().max_grad_norm(1.0).max_consecutive_skips(10));
    accumulator.set_skip_handler([](const ga::Report &report) {
        std::fprintf(stderr, "byte_lm: update %lld is skipped: not finite\n",
                     static_cast<long long>(report.update_count + 1));
        return ga::Decision::skip;
    });

    std::mt19937_64 random(static_cast<std::uint64_t>(options.seed));
    ga::Report report;
    for (std::int64_t update = 1; update <= options.updates; update++) {
        Batch batch;
        for (std::int64_t i = 0; i < options.batch; i++) {
            const auto starts = static_cast<std::uint64_t>(text.train_length - context);
            batch.add(text, context + static_cast<std::int64_t>(random() % starts));
        }
        for (const ga::SampleRange &range : ga::split_by_size(batch.size(), options.micro_batch)) {
            const auto [before, next] = batch.part(range);
            accumulator.accumulate(ga::cross_entropy(model.logits(before), next), static_cast<double>(range.size()));
        }
        report = accumulator.step();
        if (update % 50 == 0 || update == options.updates)
            std::printf("update %4lld  loss %.4f  gradient norm %.3f  clipped to %.3f  learning rate %.2e\n",
                        static_cast<long long>(update), report.loss, report.gradient_norm,
                        report.gradient_norm * report.clip_factor, report.learning_rate);
    }
    const ga::AverageGuard averages_are_in(average);
    averaged_loss = validation_loss(model, text);
    return report;
}

void print_sample(const Options &options, const Text &text, const Model &model) {
    const ga::RecordingGuard off(false);
    std::vector<std::int32_t> bytes;
    for (std::int64_t i = 0; i < context; i++) bytes.push_back(text.bytes[static_cast<std::size_t>(i)]);
    std::mt19937_64 random(static_cast<std::uint64_t>(options.seed));
    std::string written;
    for (std::int64_t i = 0; i < options.sample; i++) {
        const ga::Tensor before = ga::Tensor::wrap(bytes.data() + i, {1, context});
        const std::vector<float> share = ga::softmax(model.logits(before) / 0.7).to_vector<float>();
        double rest = static_cast<double>(random() >> 11) / 9007199254740992.0; // 2^53
        std::int32_t byte = 0;
        while (byte < 255 && (rest -= static_cast<double>(share[static_cast<std::size_t>(byte)])) > 0.0) byte++;
        bytes.push_back(byte);
        written.push_back(byte == '\n' || (byte >= 0x20 && byte != 0x7f) ? static_cast<char>(byte) : '?');
    }
    std::printf("\n------ sample ------\n%s\n--------------------\n\n", written.c_str());
}

/// Of the bits of all weights: 64-bit FNV-1a.
std::uint64_t hash(const Model &model) {
    std::uint64_t value = 0xcbf29ce484222325;
    for (const ga::Tensor &parameter : model.parameters) {
        const auto *const bytes = static_cast<const unsigned char *>(parameter.address());
        for (std::int64_t i = 0; i < parameter.element_count() * 4; i++) value = (value ^ bytes[i]) * 0x100000001b3;
    }
    return value;
}

void run(const Options &options) {
    const Text text(options.text);
    if (options.threads > 0) ga::set_num_threads(static_cast<std::int32_t>(options.threads));
    Model model(static_cast<std::uint64_t>(options.seed) << 8);
    const auto start = std::chrono::steady_clock::now();
    double averaged = 0.0;
    const ga::Report report = train(options, text, model, averaged);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    const double loss = validation_loss(model, text);
    if (options.sample > 0) print_sample(options, text, model);
    std::printf("RESULT updates=%lld train_loss=%.6f val_loss=%.6f averaged_val_loss=%.6f unigram_val_loss=%.6f "
                "samples_per_s=%.0f weights_fnv1a=%016llx\n",
                static_cast<long long>(report.update_count), report.loss, loss, averaged, unigram_loss(text),
                static_cast<double>(options.updates * options.batch) / elapsed.count(),
                static_cast<unsigned long long>(hash(model)));
    if (std::fflush(stdout) != 0) throw std::runtime_error("the output could not be written.");
}

} // namespace

int main(int argc, char **argv) {
    try {
        run(parse(std::vector<std::string>(argv + 1, argv + argc)));
        return EXIT_SUCCESS;
    } catch (const UsageError &error) {
        std::fprintf(stderr, "byte_lm: %s\n", error.what());
        return 2;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "byte_lm: %s\n", error.what());
        return EXIT_FAILURE;
    }
}
