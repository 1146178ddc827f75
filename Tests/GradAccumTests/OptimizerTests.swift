import GradAccum
import XCTest

/// Every row of the table against its rule in double, and against the promises of the window.
final class OptimizerTests: XCTestCase {
    private let sizes = [1, 15, 33, 40_000]

    /// Gradients of one update, the same for every caller.
    private func gradients(update: Int) -> [[Float]] {
        var generator = SplitMix64(UInt64(100 + update))
        return sizes.map { size in (0..<size).map { _ in Float.random(in: -1...1, using: &generator) } }
    }

    private func parameters() throws -> [Tensor] {
        try sizes.enumerated().map { index, size in
            let tensor = try Tensor.zeros([size])
            try tensor.fillUniform(low: -1, high: 1, seed: UInt64(index))
            return tensor
        }
    }

    private func add(_ values: [[Float]], to accumulator: Accumulator, weight: Double) throws {
        let buffers = values.map { UnsafeMutableBufferPointer<Float>.allocate(capacity: $0.count) }
        defer { for buffer in buffers { buffer.deallocate() } }
        for (buffer, value) in zip(buffers, values) { _ = buffer.initialize(from: value) }
        try accumulator.accumulate(
            gradients: buffers.map { UnsafeRawPointer($0.baseAddress!) }, loss: 0, weight: weight)
    }

    func testParityWithTheRuleInDouble() throws {
        for row in OptimizerCase.all {
            let parameters = try parameters()
            var expected = try parameters.map { try $0.values().map(Double.init) }
            var state = sizes.map { [[Double]](repeating: [0, 0], count: $0) }
            let accumulator = try Accumulator(try row.make(parameters))
            for update in 1...50 {
                // Twice the gradient with the weight 2: the step divides exactly.
                let values = gradients(update: update)
                try add(values.map { $0.map { 2 * $0 } }, to: accumulator, weight: 2)
                XCTAssertEqual(try accumulator.step().updateCount, update)
                for (index, value) in values.enumerated() {
                    for element in value.indices {
                        row.reference(&expected[index][element], Double(value[element]), &state[index][element], update)
                    }
                }
            }
            for (parameter, values) in zip(parameters, expected) {
                for (a, b) in zip(try parameter.values(), values) {
                    // Each update rounds a handful of times, relative to the parameter and to the step that it takes.
                    XCTAssertEqual(Double(a), b, accuracy: 50 * 8 * 0x1p-24 * (1 + abs(b)), row.name)
                }
            }
        }
    }

    func testMicroBatchesEqualOneBatch() throws {
        for row in OptimizerCase.all {
            let whole = try parameters()
            let split = try parameters()
            let a = try Accumulator(try row.make(whole))
            let b = try Accumulator(try row.make(split))
            for update in 1...5 {
                // Multiples of 1/8 that add up without rounding.
                let values = gradients(update: update).map { $0.map { ($0 * 8).rounded() / 8 } }
                try add(values.map { $0.map { 3 * $0 } }, to: a, weight: 3)
                for _ in 0..<3 { try add(values, to: b, weight: 1) }
                XCTAssertEqual(try a.step().gradientNorm, try b.step().gradientNorm)
            }
            XCTAssertEqual(try whole.map { try $0.values() }, try split.map { try $0.values() }, row.name)
        }
    }

    func testASkippedWindowLeavesNoTrace() throws {
        for row in OptimizerCase.all {
            let plain = try parameters()
            let skipping = try parameters()
            let a = try Accumulator(try row.make(plain), .init(maxGradNorm: 1))
            let b = try Accumulator(try row.make(skipping), .init(maxGradNorm: 1))
            for update in 1...6 {
                for poison in [Float.nan, .infinity, -.infinity] {
                    var bad = gradients(update: 50 + update)
                    bad[3][12_345 + update] = poison
                    try add(bad, to: b, weight: 1)
                    let report = try b.step()
                    XCTAssertEqual(report.outcome, .skippedNonFinite)
                    XCTAssertEqual(report.updateCount, update - 1)
                }
                try add(gradients(update: update), to: a, weight: 1)
                try add(gradients(update: update), to: b, weight: 1)
                XCTAssertEqual(try a.step(), try b.step())
            }
            let bits = { (tensors: [Tensor]) in try tensors.map { try $0.values().map(\.bitPattern) } }
            XCTAssertEqual(try bits(plain), try bits(skipping), row.name)
        }
    }

    func testAConvexProblemConverges() throws {
        for row in OptimizerCase.all where !row.name.contains("decay") && !row.name.contains("adam") {
            let parameters = try parameters()
            let accumulator = try Accumulator(try row.make(parameters))
            for _ in 0..<300 {
                let loss = try parameters.map { try ($0 * $0).sum() }.reduce(Tensor([0], shape: [])) { try $0 + $1 }
                try accumulator.accumulate(loss, weight: 1)
                _ = try accumulator.step()
            }
            for parameter in parameters {
                for value in try parameter.values() { XCTAssertLessThan(abs(value), 1e-3, row.name) }
            }
        }
    }

    func testHyperparametersOutsideTheirRangeAreNamed() throws {
        let p = [try Tensor.zeros([3])]
        assertThrows(.invalidArgument, naming: "learning_rate") { _ = try Optimizer(p, SGD(learningRate: -1)) }
        assertThrows(.invalidArgument, naming: "learning_rate") { _ = try Optimizer(p, AdamW(learningRate: .nan)) }
        assertThrows(.invalidArgument, naming: "momentum") { _ = try Optimizer(p, SGD(momentum: -0.1)) }
        assertThrows(.invalidArgument, naming: "nesterov") { _ = try Optimizer(p, SGD(nesterov: true)) }
        assertThrows(.invalidArgument, naming: "beta1") { _ = try Optimizer(p, Adam(beta1: 1)) }
        assertThrows(.invalidArgument, naming: "beta2") { _ = try Optimizer(p, AdamW(beta2: 1.5)) }
        assertThrows(.invalidArgument, naming: "eps") { _ = try Optimizer(p, AdamW(eps: -1e-8)) }
        assertThrows(.invalidArgument, naming: "weight_decay") { _ = try Optimizer(p, AdamW(weightDecay: .infinity)) }
        XCTAssertFalse(p[0].requiresGrad, "a refused optimizer leaves its tensors alone")
    }
}
