import GradAccum
import XCTest

/// The life of a window: weights, clipping, what is refused, and that nothing is lost by it.
final class AccumulatorTests: XCTestCase {
    private func parameter(_ values: [Float]) throws -> Tensor {
        let tensor = try Tensor(values, shape: [values.count])
        try tensor.setRequiresGrad(true)
        return tensor
    }

    /// A loss with the gradient `values`.
    private func loss(_ parameter: Tensor, _ values: [Float]) throws -> Tensor {
        try (parameter * Tensor(values, shape: parameter.shape)).sum()
    }

    func testTheDivisorIsTheWeightThatWentIn() throws {
        let p = try parameter([0, 0])
        let accumulator = try Accumulator(Optimizer([p], SGD(learningRate: 1)))
        try accumulator.accumulate(try loss(p, [1, 2]), weight: 1)
        try accumulator.accumulate(try loss(p, [3, 10]), weight: 3)
        let report = try accumulator.step()
        XCTAssertEqual(report.weight, 4)
        XCTAssertEqual(report.microBatches, 2)
        XCTAssertEqual(try p.values(), [-1, -3])
    }

    func testMeansAreWeightedWhereTheOptionSaysSo() throws {
        let p = try parameter([0])
        let accumulator = try Accumulator(Optimizer([p], SGD(learningRate: 1)), .init(lossReduction: .mean))
        for values in [[Float(1)], [2, 3, 4]] {
            let x = try Tensor(values, shape: [values.count])
            try accumulator.accumulate(try (x * p).mean(), weight: Double(values.count))
        }
        _ = try accumulator.step()
        XCTAssertEqual(try p.values(), [-2.5], "the mean over all four samples")
    }

    func testAMeanIsRefusedWhereASumIsExpected() throws {
        let p = try parameter([1, 2])
        let accumulator = try Accumulator(Optimizer([p], SGD()))
        assertThrows(.state, naming: "mean") { try accumulator.accumulate(try (p * p).mean(), weight: 2) }
        assertThrows(.state, naming: "empty") { _ = try accumulator.step() }
    }

    func testANumberMadeOfAMeanIsStillAMean() throws {
        let p = try parameter([1, 2])
        let accumulator = try Accumulator(Optimizer([p], SGD()))
        let steps = try Tensor([4], shape: [])
        assertThrows(.state, naming: "mean") { try accumulator.accumulate(try (p * p).mean() / steps, weight: 2) }
        // A mean within a sample is no mean over samples.
        let x = try Tensor([1, 2, 3, 4], shape: [1, 2, 2])
        try accumulator.accumulate(try (x * p).mean([1, 2]).sum(), weight: 1)
    }

    func testAMeanGradientBeyondFloat32IsASkip() throws {
        let p = try parameter([1])
        let accumulator = try Accumulator(Optimizer([p], SGD(learningRate: 1)))
        try accumulator.accumulate(try loss(p, [1e30]), weight: 1e-20)
        XCTAssertEqual(try accumulator.step().outcome, .skippedNonFinite)
        XCTAssertEqual(try p.values(), [1])
        for weight in [1e-40, 1e39] {
            assertThrows(.overflow, naming: "weight") {
                try accumulator.accumulate(try self.loss(p, [1]), weight: weight)
            }
        }
    }

    func testALeafThatGaveUpItsGradientTakesNoPart() throws {
        let q = try Tensor([1, 2, 3], shape: [1, 1, 3])
        try q.setRequiresGrad(true)
        let p = try parameter([5])
        let accumulator = try Accumulator(Optimizer([p], SGD()))
        let loss = try q.causalAttention(q, q, heads: 1).sum() * p
        try q.setRequiresGrad(false)
        try accumulator.accumulate(loss, weight: 1)
        XCTAssertEqual(try accumulator.accumulatedGradient(0).values(), [6])
        try q.setRequiresGrad(true)
        let alone = try (q * q).sum()
        try q.setRequiresGrad(false)
        assertThrows(.invalidArgument, naming: "depends on no parameter") {
            try accumulator.accumulate(alone, weight: 1)
        }
    }

    func testACallbackCannotEndTheWindowOfAnOpenMicroBatch() throws {
        let p = try parameter([1, 2])
        let accumulator = try Accumulator(Optimizer([p], SGD()))
        let memory = UnsafeMutablePointer<Float>.allocate(capacity: 2)
        memory.initialize(repeating: 3, count: 2)
        nonisolated(unsafe) var refused = 0
        var x: Tensor? = try Tensor(wrapping: memory, .float32, shape: [2]) {
            memory.deallocate()
            do { try accumulator.zero() } catch { refused += 1 }
            do { _ = try accumulator.step() } catch { refused += 1 }
        }
        let loss = try (x! * p).sum()
        x = nil
        try accumulator.accumulate(loss, weight: 1)
        XCTAssertEqual(refused, 2)
        XCTAssertEqual(try accumulator.accumulatedGradient(0).values(), [3, 3])
    }

    func testAViewMadeWithoutRecordingHasNoGradient() throws {
        let p = try parameter([1, 2, 3])
        XCTAssertFalse(try Recording.off { () throws(GAError) in try p.sliced(axis: 0, 0..<2) }.requiresGrad)
        XCTAssertTrue(try p.sliced(axis: 0, 0..<2).requiresGrad)
    }

    func testClippingUsesTheGlobalNormOfTheMeanGradient() throws {
        let a = try parameter([0])
        let b = try parameter([0])
        let accumulator = try Accumulator(Optimizer([a, b], SGD(learningRate: 1)), .init(maxGradNorm: 1))
        try accumulator.accumulate(try loss(a, [6]) + loss(b, [8]), weight: 2)
        let report = try accumulator.step()
        XCTAssertEqual(report.gradientNorm, 5)
        XCTAssertEqual(report.clipFactor, 0.2, accuracy: 1e-6)
        XCTAssertEqual(Double(try a.values()[0]), -0.6, accuracy: 1e-6)
        XCTAssertEqual(Double(try b.values()[0]), -0.8, accuracy: 1e-6)
    }

    func testZeroDropsTheWindowAndNothingElse() throws {
        let p = try parameter([1])
        let accumulator = try Accumulator(Optimizer([p], SGD(learningRate: 1)), .init(accumulationSteps: 2))
        try accumulator.accumulate(try loss(p, [5]), weight: 1)
        XCTAssertFalse(accumulator.isStepDue)
        try accumulator.zero()
        XCTAssertEqual(try accumulator.accumulatedGradient(0).values(), [0])
        try accumulator.accumulate(try loss(p, [1]), weight: 1)
        try accumulator.accumulate(try loss(p, [1]), weight: 1)
        XCTAssertTrue(accumulator.isStepDue)
        XCTAssertEqual(try accumulator.step().updateCount, 1)
        XCTAssertEqual(try p.values(), [0])
    }

    func testAWindowWithoutWeightChangesNothing() throws {
        let p = try parameter([1])
        let accumulator = try Accumulator(Optimizer([p], SGD(learningRate: 1)))
        try accumulator.accumulate(try loss(p, [5]), weight: 0)
        let report = try accumulator.step()
        XCTAssertEqual(report.outcome, .skippedZeroWeight)
        XCTAssertEqual(report.updateCount, 0)
        XCTAssertEqual(try p.values(), [1])
    }

    func testARefusedMicroBatchLeavesTheWindowAsItWas() throws {
        let p = try parameter([1, 2])
        let foreign = try parameter([1, 2])
        _ = try Optimizer([foreign], SGD())
        let accumulator = try Accumulator(Optimizer([p], SGD(learningRate: 1)))
        try accumulator.accumulate(try loss(p, [1, 1]), weight: 1)
        let before = try accumulator.accumulatedGradient(0).values()

        for weight in [-1, Double.nan, .infinity] {
            assertThrows(.invalidArgument, naming: "weight") {
                try accumulator.accumulate(try self.loss(p, [9, 9]), weight: weight)
            }
        }
        assertThrows(.shape, naming: "loss") { try accumulator.accumulate(try p * p, weight: 1) }
        assertThrows(.nonFinite, naming: "loss") {
            try accumulator.accumulate(try self.loss(p, [.infinity, 1]), weight: 1)
        }
        assertThrows(.invalidArgument, naming: "belongs to no optimizer") {
            try accumulator.accumulate(try self.loss(p, [1, 1]) + self.loss(foreign, [1, 1]), weight: 1)
        }
        assertThrows(.invalidArgument, naming: "depends on no parameter") {
            try accumulator.accumulate(try Tensor([1], shape: []), weight: 1)
        }
        let used = try loss(p, [1, 1])
        try accumulator.accumulate(used, weight: 0)
        assertThrows(.state, naming: "used up") { try accumulator.accumulate(used, weight: 1) }
        XCTAssertEqual(try accumulator.accumulatedGradient(0).values(), before.map { $0 + 1 })
        XCTAssertEqual(try accumulator.step().weight, 1)
    }

    func testAStepBetweenForwardAndBackwardIsNoticed() throws {
        let p = try parameter([1, 2])
        p.name = "gain"
        let accumulator = try Accumulator(Optimizer([p], SGD(learningRate: 1)))
        let stale = try (p * p).sum()
        try accumulator.accumulate(try loss(p, [1, 1]), weight: 1)
        _ = try accumulator.step()
        assertThrows(.state, naming: "\"gain\"") { try accumulator.accumulate(stale, weight: 1) }
    }

    func testAnUntouchedParameterStaysAsItIs() throws {
        let used = try parameter([1])
        let untouched = try parameter([1])
        let accumulator = try Accumulator(Optimizer([used, untouched], AdamW(learningRate: 0.1, weightDecay: 0.5)))
        try accumulator.accumulate(try loss(used, [1]), weight: 1)
        _ = try accumulator.step()
        XCTAssertEqual(try untouched.values(), [1])
        XCTAssertNotEqual(try used.values(), [1])
    }

    func testParametersAreNotShared() throws {
        let p = try parameter([1, 2, 3, 4])
        let optimizer = try Optimizer([p], SGD())
        assertThrows(.state, naming: "another optimizer") { _ = try Optimizer([p], SGD()) }
        assertThrows(.state, naming: "another optimizer") { _ = try Optimizer([p.detached()], SGD()) }
        let memory = try Tensor.zeros([4])
        assertThrows(.invalidArgument, naming: "parameters[1]") {
            _ = try Optimizer([memory.detached(), memory.detached()], SGD())
        }
        let accumulator = try Accumulator(optimizer)
        assertThrows(.state, naming: "accumulator") { _ = try Accumulator(optimizer) }
        XCTAssertFalse(accumulator.isStepDue)
    }

    func testTheAllocatorIsNotCalledInSteadyState() throws {
        let text = (0..<(8 * 20)).map { Int64($0 * 7 % 23) }
        let model = try TinyGPT(vocabulary: 23, layers: 2, channels: 24, heads: 2, time: 19)
        let accumulator = try Accumulator(Optimizer(model.parameters, AdamW()))
        func update(_ microBatches: Int) throws {
            for index in 0..<microBatches {
                let sample = index % 8
                try accumulator.accumulate(try model.loss(text, samples: sample..<(sample + 1)), weight: 19)
            }
            _ = try accumulator.step()
        }
        try update(2)
        Runtime.resetPeakMemory()
        let calls = Runtime.memoryUsage.allocatorCalls
        try update(1)
        let peak = Runtime.memoryUsage.peakBytes
        try update(64)
        XCTAssertEqual(Runtime.memoryUsage.allocatorCalls, calls)
        XCTAssertEqual(Runtime.memoryUsage.peakBytes, peak, "law 5: the peak does not depend on the micro-batches")
    }
}
