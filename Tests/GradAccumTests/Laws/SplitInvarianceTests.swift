import GradAccum
import XCTest

/// Law 1: any split into micro-batches and any number of threads gives bit-identical accumulated gradients.
final class SplitInvarianceTests: LawTestCase {
    func testEveryOperation() throws {
        test(of: .splitInvariance)
        for dtype in [DType.float32, .bfloat16, .float16] { try withCompute(dtype) { try everyOperation(.float32) } }
        for format in SumFormat.allCases where format != .float32 { try everyOperation(format) }
        try withCompute(.bfloat16) { try everyOperation(.bfloat16Stochastic) }
    }

    private func everyOperation(_ format: SumFormat) throws {
        for (row, opCase) in OpCase.all.enumerated() {
            var generator = SplitMix64(UInt64(1000 + row))
            let values = opCase.operands().map { OperandValues($0, &generator) }
            let samples = values.compactMap(\.samples).first!
            let whole = try accumulated(opCase, values, [0..<samples], threads: 1, format)
            for threads in 1...4 {
                let single = (0..<samples).map { $0..<($0 + 1) }
                // An empty micro-batch adds nothing, wherever it comes.
                let others = (1..<(2 * Self.factor)).map { _ in [0..<0] + randomSplit(samples, &generator) + [0..<0] }
                for split in [single] + others {
                    ran()
                    let parts = try accumulated(opCase, values, split, threads: threads, format)
                    XCTAssertEqual(
                        whole, parts,
                        "\(opCase.name) in \(Compute.dtype) into \(format): split \(split) on \(threads) threads")
                }
            }
        }
    }

    /// The bits of all accumulated gradients after the micro-batches of a split.
    private func accumulated(
        _ opCase: OpCase, _ values: [OperandValues], _ split: [Range<Int>], threads: Int, _ format: SumFormat
    ) throws -> [[UInt32]] {
        try withThreads(threads) {
            let parameters = try values.map { $0.isParameter ? try $0.tensor() : nil }
            let optimizer = try Optimizer(parameters.compactMap { $0 }, SGD())
            let accumulator = try Accumulator(optimizer, .init(sumFormat: format))
            for range in split {
                let operands = try values.indices.map { try parameters[$0] ?? values[$0].tensor(samples: range) }
                // Squared, so that the gradient depends on the result.
                let result = try opCase.apply(operands)
                let loss = result.shape.isEmpty ? result : try (result * result).sum()
                try accumulator.accumulate(loss, weight: Double(range.count))
            }
            return try optimizer.parameters.indices.map {
                try accumulator.accumulatedGradient($0).values().map(\.bitPattern)
            }
        }
    }

    func testGPTAndItsWeightsAfterUpdates() throws {
        test(of: .splitInvariance)
        for dtype in [DType.float32, .bfloat16, .float16] {
            try withCompute(dtype) { try gptAndItsWeightsAfterUpdates(.float32) }
        }
        for format in SumFormat.allCases where format != .float32 { try gptAndItsWeightsAfterUpdates(format) }
        try withCompute(.float16) { try gptAndItsWeightsAfterUpdates(.bfloat16Stochastic) }
    }

    /// Odd and even lengths: with bfloat16, weight gradients of an odd one take another path.
    private func gptAndItsWeightsAfterUpdates(_ format: SumFormat) throws {
        var generator = SplitMix64(7)
        for (layers, channels, heads, time) in [(2, 20, 2, 19), (1, 48, 3, 70), (1, 36, 2, 1)] {
            let batch = 12
            let text = (0..<(batch * (time + 1))).map { _ in Int64.random(in: 0..<23, using: &generator) }
            func weights(_ split: [Range<Int>], threads: Int) throws -> [[UInt32]] {
                try withThreads(threads) {
                    let model = try TinyGPT(
                        vocabulary: 23, layers: layers, channels: channels, heads: heads, time: time)
                    let accumulator = try Accumulator(
                        try Optimizer(model.parameters, AdamW(learningRate: 1e-2)),
                        .init(maxGradNorm: 1, sumFormat: format))
                    for _ in 0..<3 {
                        for range in split {
                            let loss = try model.loss(text, samples: range)
                            try accumulator.accumulate(loss, weight: Double(range.count * time))
                        }
                        let report = try accumulator.step()
                        XCTAssertEqual(report.outcome, .applied)
                        XCTAssertEqual(report.weight, Double(batch * time))
                    }
                    return try model.parameters.map { try $0.values().map(\.bitPattern) }
                }
            }
            let whole = try weights([0..<batch], threads: 1)
            for threads in 1...4 {
                let regular = [
                    (0..<batch).map { $0..<($0 + 1) }, [0..<4, 4..<8, 8..<12], [0..<5, 5..<10, 10..<12],
                ]
                for split in regular + (3..<(4 * Self.factor)).map({ _ in randomSplit(batch, &generator) }) {
                    ran()
                    XCTAssertEqual(
                        whole, try weights(split, threads: threads),
                        "\(split) of time \(time) in \(Compute.dtype) into \(format) on \(threads) threads")
                }
            }
        }
    }

    func testMLPOfSingleRows() throws {
        test(of: .splitInvariance)
        for dtype in [DType.float32, .bfloat16, .float16] { try withCompute(dtype) { try mlpOfSingleRows(.float32) } }
        for format in SumFormat.allCases where format != .float32 { try mlpOfSingleRows(format) }
    }

    private func mlpOfSingleRows(_ format: SumFormat) throws {
        var generator = SplitMix64(11)
        for sizes in [[13, 37, 5], [64, 129, 10], [3, 1, 2]] {
            let samples = 29
            let x = (0..<(samples * sizes[0])).map { _ in Float.random(in: -1...1, using: &generator) }
            let y = (0..<samples).map { _ in Int64.random(in: 0..<Int64(sizes[2]), using: &generator) }
            func gradients(_ split: [Range<Int>], threads: Int) throws -> [[UInt32]] {
                try withThreads(threads) {
                    let shapes = [[sizes[1], sizes[0]], [sizes[1]], [sizes[2], sizes[1]], [sizes[2]]]
                    let p = try shapes.enumerated().map { index, shape -> Tensor in
                        let tensor = try Tensor.zeros(shape)
                        try tensor.fillNormal(standardDeviation: 0.3, seed: UInt64(index))
                        return tensor
                    }
                    let accumulator = try Accumulator(
                        try Optimizer(p, SGD(learningRate: 0.1, momentum: 0.9)), .init(sumFormat: format))
                    for range in split {
                        let rows = Array(x[(range.lowerBound * sizes[0])..<(range.upperBound * sizes[0])])
                        let hidden = try Tensor(rows, shape: [range.count, sizes[0]]).linear(p[0], p[1]).relu()
                        let targets = try Tensor(indices: Array(y[range]), shape: [range.count])
                        let loss = try hidden.linear(p[2], p[3]).crossEntropy(targets)
                        try accumulator.accumulate(loss, weight: Double(range.count))
                    }
                    return try p.indices.map { try accumulator.accumulatedGradient($0).values().map(\.bitPattern) }
                }
            }
            let whole = try gradients([0..<samples], threads: 1)
            for threads in 1...4 {
                for _ in 0..<(3 * Self.factor) {
                    ran()
                    let split = randomSplit(samples, &generator)
                    XCTAssertEqual(
                        whole, try gradients(split, threads: threads),
                        "\(sizes) \(split), \(threads) threads, \(format)")
                }
            }
        }
    }
}
