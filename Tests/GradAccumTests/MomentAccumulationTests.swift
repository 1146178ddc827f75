import Foundation
import GradAccum
import XCTest

/// Micro-batches that go into the moments of Adam (AdamA).
final class MomentAccumulationTests: XCTestCase {
    private static let shapes = [[3, 5], [40_000], [7]]
    private static let moments = Accumulator.Options(normalization: .sum, accumulateInto: .moments)

    private func accumulator(
        _ parameters: [Tensor], _ rule: some UpdateRule = AdamW(learningRate: 0.02, beta1: 0.8, beta2: 0.95)
    ) throws -> Accumulator {
        try Accumulator(try Optimizer(parameters, rule), Self.moments)
    }

    /// The paper's rule in double, with AdamW's decay: two micro-batches of gradients to each update.
    func testParityWithTheRuleInDouble() throws {
        let parameters = try randomParameters(Self.shapes)
        var truths = try parameters.map { try $0.values().map(Double.init) }
        var means = truths.map { $0.map { _ in 0.0 } }
        var squares = means
        let accumulator = try accumulator(parameters)
        for update in 1...20 {
            let batches = [2 * update, 2 * update + 1].map { randomGradients(Self.shapes, update: $0) }
            for batch in batches { try add(batch, to: accumulator, weight: 1) }
            XCTAssertEqual(try accumulator.step().updateCount, update)
            for (p, shape) in Self.shapes.enumerated() {
                for i in 0..<shape.reduce(1, *) {
                    means[p][i] *= 0.8
                    squares[p][i] *= 0.95
                    for batch in batches {
                        means[p][i] += (1 - 0.8) * Double(batch[p][i])
                        squares[p][i] += (1 - 0.95) * Double(batch[p][i]) * Double(batch[p][i])
                    }
                    let mean = means[p][i] / (1 - pow(0.8, Double(update)))
                    let square = squares[p][i] / (1 - pow(0.95, Double(update)))
                    truths[p][i] *= 1 - 0.02 * 0.01
                    truths[p][i] -= 0.02 * mean / (square.squareRoot() + 1e-8)
                }
            }
        }
        for (parameter, truth) in zip(parameters, truths) {
            for (a, b) in zip(try parameter.values(), truth)
            where !(abs(Double(a) - b) < 20 * 8 * 0x1p-24 * (1 + abs(b))) {
                return XCTFail("\(a) and not \(b)")
            }
        }
    }

    func testAWindowOfOneMicroBatchIsThePlainRuleToTheBit() throws {
        for rule in [Adam(learningRate: 0.1), AdamW(learningRate: 0.1, weightDecay: 0.3)] as [any UpdateRule & Sendable]
        {
            let (plain, folded) = (try randomParameters(Self.shapes), try randomParameters(Self.shapes))
            let a = try Accumulator(try Optimizer(plain, rule), .init(normalization: .sum))
            let b = try Accumulator(try Optimizer(folded, rule), Self.moments)
            for optimizer in [a.optimizer, b.optimizer] where rule is AdamW {
                try optimizer.addGroup([optimizer.parameters[2]], .init(learningRateScale: 0.5, weightDecay: 0))
            }
            for update in 1...5 {
                for accumulator in [a, b] {
                    try add(randomGradients(Self.shapes, update: update), to: accumulator, weight: 3)
                    _ = try accumulator.step()
                }
                XCTAssertEqual(try bits(of: plain), try bits(of: folded))
            }
        }
    }

    func testThreadsChangeNoBit() throws {
        let results = try (1...3).map { threads in
            try withThreads(threads) {
                let parameters = try randomParameters(Self.shapes)
                let accumulator = try accumulator(parameters)
                for update in 1...6 {
                    try add(randomGradients(Self.shapes, update: update), to: accumulator, weight: 1)
                    if update % 3 == 0 { _ = try accumulator.step() }
                }
                return try bits(of: parameters)
            }
        }
        XCTAssert(results.allSatisfy { $0 == results[0] })
    }

    /// Of a graph, of arrays of the caller, and of an abort.
    func testAMicroBatchThatDoesNotCountLeavesNoTrace() throws {
        func run(_ spoil: (Accumulator, Int) throws -> Void) throws -> [[UInt32]] {
            let parameters = try randomParameters([[4], [3]])
            let accumulator = try accumulator(parameters)
            for update in 0..<3 {
                for batch in 0..<2 {
                    try spoil(accumulator, batch)
                    try add(randomGradients([[4], [3]], update: 2 * update + batch), to: accumulator, weight: 1)
                }
                try spoil(accumulator, 2)
                let report = try accumulator.step()
                XCTAssertEqual(report.outcome, .applied)
                XCTAssertEqual(report.microBatches, 2)
                XCTAssertEqual(report.weight, 2)
            }
            return try bits(of: parameters)
        }
        let expected = try run { _, _ in }
        XCTAssertEqual(
            expected,
            try run { accumulator, _ in
                for poison in [Float.nan, .infinity, 3e38] {
                    try add([[1, 2, 3, poison], [poison, poison, 1]], to: accumulator, weight: 1)
                }
            })
        XCTAssertEqual(
            expected,
            try run { accumulator, _ in
                // A finite loss, whose gradient cannot be squared, and one that is not finite.
                for factor in [Float(3e38), .infinity] {
                    let parameters = accumulator.optimizer.parameters
                    let loss = try (parameters[0].sum() * Tensor([factor], shape: [])) + parameters[1].sum()
                    try accumulator.accumulate(loss, weight: 1)
                }
            })
        XCTAssertEqual(
            expected,
            try run { accumulator, _ in
                try accumulator.beginMicroBatch()
                try accumulator.accumulate(try accumulator.optimizer.parameters[0].sum(), weight: 1)
                try accumulator.abortMicroBatch()
            })
    }

    func testGradientsAreInMemoryWhileTheirMicroBatchRunsAndNoLonger() throws {
        /// Peak and live bytes of the second window beyond those before the first, in 12 layers whose activations are as large
        /// as their weights.
        func bytes(_ options: Accumulator.Options, microBatches: Int) throws -> (peak: Int, live: Int) {
            let size = 128
            let weights = try (0..<12).map { layer in
                let weight = try Tensor.zeros([size, size])
                try weight.fillUniform(low: -0.1, high: 0.1, seed: UInt64(layer))
                return weight
            }
            let accumulator = try Accumulator(try Optimizer(weights, AdamW()), options)
            let before = Runtime.memoryUsage.liveBytes
            var live = 0
            for window in 0..<2 {
                if window == 1 { Runtime.resetPeakMemory() }
                for _ in 0..<microBatches {
                    let x = try Tensor.zeros([size, size])
                    try x.fillUniform(low: -1, high: 1, seed: 99)
                    var hidden = x
                    for weight in weights { hidden = try hidden.linear(weight).gelu() }
                    try accumulator.accumulate(try hidden.sum(), weight: 1)
                }
                live = Runtime.memoryUsage.liveBytes - before
                _ = try accumulator.step()
            }
            return (Runtime.memoryUsage.peakBytes - before, live)
        }
        let gradient = 12 * 128 * 128 * 4
        let plain = try bytes(.init(normalization: .sum), microBatches: 2)
        let folded = try bytes(Self.moments, microBatches: 2)
        XCTAssertGreaterThanOrEqual(plain.live, gradient)
        XCTAssertEqual(folded.live, 0)
        XCTAssertLessThanOrEqual(folded.peak, plain.peak - gradient * 8 / 10)
        XCTAssertEqual(folded.peak, try bytes(Self.moments, microBatches: 5).peak, "law 5")
    }

    func testGradientsOfTheCallerAreNotCopied() throws {
        let parameters = try randomParameters(Self.shapes)
        let accumulator = try accumulator(parameters)
        Runtime.resetPeakMemory()
        let before = Runtime.memoryUsage.liveBytes
        for update in 1...4 { try add(randomGradients(Self.shapes, update: update), to: accumulator, weight: 1) }
        _ = try accumulator.step()
        XCTAssertEqual(Runtime.memoryUsage.peakBytes, before)
        XCTAssertEqual(accumulator.windowReport().cost.accumulatorBytes, 0)
    }

    func testAFrozenParameterKeepsWhatItsMomentsHold() throws {
        let (p, q) = (try Tensor([1], shape: [1]), try Tensor([1], shape: [1]))
        let accumulator = try accumulator([p, q], AdamW(learningRate: 0.5, weightDecay: 0))
        try add([[1], [1]], to: accumulator, weight: 1)
        try q.setRequiresGrad(false)
        try add([[1], [1]], to: accumulator, weight: 1)
        _ = try accumulator.step()
        XCTAssertNotEqual(try p.values(), [1])
        XCTAssertEqual(try q.values(), [1])
        try q.setRequiresGrad(true)
        try add([nil, [1]], to: accumulator, weight: 1)
        let afterTwo = try p.values()
        _ = try accumulator.step()
        XCTAssertEqual(try q.values(), afterTwo, "two gradients of 1 in its first update, as the other had")
        XCTAssertEqual(try p.values(), afterTwo)
    }

    func testWhatCannotBeIsAnErrorWithASentence() throws {
        let parameters = try randomParameters([[2], [3]])
        let optimizer = try Optimizer(parameters, AdamW())
        func refused(_ word: String, _ change: (inout Accumulator.Options) -> Void) {
            var options = Self.moments
            change(&options)
            assertThrows(.invalidArgument, naming: word) { _ = try Accumulator(optimizer, options) }
        }
        refused("normalization") { $0.normalization = .weight }
        refused("max_grad_norm") { $0.maxGradNorm = 1 }
        refused("max_grad_value") { $0.maxGradValue = 1 }
        refused("agc_clipping") { $0.agcClipping = 0.01 }
        refused("max_norm_z_score") { $0.maxNormZScore = 3 }
        refused("max_loss_z_score") { $0.maxLossZScore = 3 }
        for rule in [SGD(), Lion(), AdamW8bit()] as [any UpdateRule] {
            let other = try Optimizer([try Tensor.zeros([1])], rule)
            assertThrows(.state, naming: "AdamW") { _ = try Accumulator(other, Self.moments) }
        }
        let decaying = try Optimizer([try Tensor.zeros([1])], Adam(weightDecay: 0.1))
        assertThrows(.state, naming: "weight_decay 0.1") { _ = try Accumulator(decaying, Self.moments) }

        let accumulator = try Accumulator(optimizer, Self.moments)
        try accumulator.zero()
        try add([[1, 1], [1, 1, 1]], to: accumulator, weight: 1)
        assertThrows(.state, naming: "zero") { try accumulator.zero() }
        assertThrows(.state, naming: "data_end") { _ = try accumulator.endData(.drop) }
        assertThrows(.state, naming: "accumulated_gradient") { _ = try accumulator.accumulatedGradient(0) }
        try optimizer.addGroup([parameters[0]], .init(maxGradNorm: 1))
        let before = try bits(of: parameters)
        assertThrows(.state, naming: "group 0") { try add([[1, 1], [1, 1, 1]], to: accumulator, weight: 1) }
        assertThrows(.state, naming: "group 0") { _ = try accumulator.step() }
        XCTAssertEqual(try bits(of: parameters), before)
        try optimizer.setGroup(0, .init())
        XCTAssertEqual(try accumulator.step().microBatches, 1, "a refused step leaves the window as it was")
        XCTAssertEqual(try accumulator.endData(.carry).outcome, .empty)
    }

    func testAnAccumulatorOfGradientsDoesNotTakeOverMomentsInTheMiddleOfAWindow() throws {
        let optimizer = try Optimizer(try randomParameters([[2]]), AdamW())
        do {
            let accumulator = try Accumulator(optimizer, Self.moments)
            try add([[1, 1]], to: accumulator, weight: 1)
        }
        assertThrows(.state, naming: "never stepped") { _ = try Accumulator(optimizer) }
        let accumulator = try Accumulator(optimizer, Self.moments)
        try add([[1, 1]], to: accumulator, weight: 1)
        _ = try accumulator.step()
    }
}
