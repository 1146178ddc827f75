import GradAccum
import XCTest

/// Every row of the table against its rule in double, and against the promises of the window.
final class OptimizerTests: XCTestCase {
    private func expectParity(_ row: OptimizerCase, _ shapes: [[Int]], updates: Int) throws {
        let parameters = try randomParameters(shapes)
        var truths = try parameters.enumerated().map { index, parameter in
            OptimizerCase.Truth(index, parameter.shape, try parameter.values().map(Double.init))
        }
        let accumulator = try Accumulator(try row.make(parameters))
        for update in 1...updates {
            // Twice the gradient with the weight 2: the step divides exactly.
            let values = randomGradients(shapes, update: update)
            try add(values.map { $0.map { 2 * $0 } }, to: accumulator, weight: 2)
            XCTAssertEqual(try accumulator.step().updateCount, update)
            for index in values.indices { row.reference(&truths[index], values[index].map(Double.init), update) }
        }
        for (parameter, truth) in zip(parameters, truths) {
            for (a, b) in zip(try parameter.values(), truth.values)
            where !(abs(Double(a) - b) <= Double(updates) * row.errorPerUpdate * (1 + abs(b))) {
                return XCTFail("\(row.name) \(truth.shape) after \(updates) updates: \(a) and not \(b)")
            }
        }
    }

    func testParityWithTheRuleInDouble() throws {
        for row in OptimizerCase.all { try expectParity(row, row.shapes, updates: 50) }
    }

    func testParityAfterManyUpdates() throws {
        for row in OptimizerCase.all { try expectParity(row, [[5], [3, 4]], updates: 2000) }
    }

    func testMicroBatchesEqualOneBatch() throws {
        for row in OptimizerCase.all {
            let whole = try randomParameters(row.shapes)
            let split = try randomParameters(row.shapes)
            let a = try Accumulator(try row.make(whole))
            let b = try Accumulator(try row.make(split))
            for update in 1...5 {
                // Multiples of 1/8 that add up without rounding.
                let values = randomGradients(row.shapes, update: update).map { $0.map { ($0 * 8).rounded() / 8 } }
                try add(values.map { $0.map { 3 * $0 } }, to: a, weight: 3)
                for _ in 0..<3 { try add(values, to: b, weight: 1) }
                XCTAssertEqual(try a.step().gradientNorm, try b.step().gradientNorm)
            }
            XCTAssertEqual(try bits(of: whole), try bits(of: split), row.name)
        }
    }

    func testThreadsChangeNoBit() throws {
        for row in OptimizerCase.all {
            let results = try (1...3).map { threads in
                try withThreads(threads) {
                    let parameters = try randomParameters(row.shapes)
                    let accumulator = try Accumulator(try row.make(parameters), .init(maxGradNorm: 1))
                    for update in 1...3 {
                        try add(randomGradients(row.shapes, update: update), to: accumulator, weight: 1)
                        _ = try accumulator.step()
                    }
                    return try bits(of: parameters)
                }
            }
            XCTAssert(results.allSatisfy { $0 == results[0] }, row.name)
        }
    }

    func testAStepTakesNoMemory() throws {
        for row in OptimizerCase.all {
            let accumulator = try Accumulator(try row.make(try randomParameters(row.shapes)))
            for update in 1...3 {
                try add(randomGradients(row.shapes, update: update), to: accumulator, weight: 1)
                Runtime.resetPeakMemory()
                let before = Runtime.memoryUsage
                _ = try accumulator.step()
                XCTAssertEqual(Runtime.memoryUsage.peakBytes, before.liveBytes, row.name)
                XCTAssertEqual(Runtime.memoryUsage.liveBytes, before.liveBytes, row.name)
            }
        }
    }

    func testASkippedWindowLeavesNoTrace() throws {
        for row in OptimizerCase.all {
            let plain = try randomParameters(row.shapes)
            let skipping = try randomParameters(row.shapes)
            let a = try Accumulator(try row.make(plain), .init(maxGradNorm: 1))
            let b = try Accumulator(try row.make(skipping), .init(maxGradNorm: 1))
            for update in 1...6 {
                for poison in [Float.nan, .infinity, -.infinity] {
                    var bad = randomGradients(row.shapes, update: 50 + update)
                    bad[3][12_345 + update] = poison
                    try add(bad, to: b, weight: 1)
                    let report = try b.step()
                    XCTAssertEqual(report.outcome, .skippedNonFinite)
                    XCTAssertEqual(report.updateCount, update - 1)
                }
                try add(randomGradients(row.shapes, update: update), to: a, weight: 1)
                try add(randomGradients(row.shapes, update: update), to: b, weight: 1)
                XCTAssertEqual(try a.step(), try b.step())
            }
            XCTAssertEqual(try bits(of: plain), try bits(of: skipping), row.name)
        }
    }

    /// A sum of squares, with a learning rate that falls to 0: what a rule with a fixed length of step needs.
    func testAConvexProblemConverges() throws {
        for row in OptimizerCase.all {
            let parameters = try randomParameters([[15], [6, 4]])
            let optimizer = try row.make(parameters)
            let (accumulator, start) = (try Accumulator(optimizer), optimizer.learningRate)
            let updates = 1000
            for update in 0..<updates {
                try optimizer.setLearningRate(start * (1 - Double(update) / Double(updates)))
                let loss = try parameters.map { try ($0 * $0).sum() }.reduce(Tensor([0], shape: [])) { try $0 + $1 }
                try accumulator.accumulate(loss, weight: 1)
                _ = try accumulator.step()
            }
            let distance = try parameters.flatMap { try $0.values() }.map(abs).max()!
            XCTAssertLessThan(distance, 1e-2, row.name)
        }
    }

    /// Gradients, and so moments, from zero and denormals to what overflows when it is squared.
    func testExtremeGradientsMakeFiniteParameters() throws {
        for row in OptimizerCase.all {
            let parameters = try randomParameters(row.shapes)
            let accumulator = try Accumulator(try row.make(parameters))
            for (update, scale) in [0, 0x1p-149, 1e-40, 1e-22, 1, 1e-30, 0, 1e15, 1].enumerated() {
                try add(randomGradients(row.shapes, update: update, scale: Float(scale)), to: accumulator, weight: 1)
                XCTAssertEqual(try accumulator.step().outcome, .applied)
            }
            XCTAssert(try parameters.allSatisfy { try $0.values().allSatisfy(\.isFinite) }, row.name)
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
