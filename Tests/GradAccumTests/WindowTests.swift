import GradAccum
import XCTest

/// Weights, tails, micro-batches and policies of the window. (Every order of calls and every option are tested through C,
/// in Tests/python/test_window*.py.)
final class WindowTests: XCTestCase {
    private struct Model {
        let parameter: Tensor
        let accumulator: Accumulator

        init(_ options: Accumulator.Options = .init()) throws {
            parameter = try Tensor([1, -2, 3], shape: [3])
            parameter.name = "gain"
            try parameter.setRequiresGrad(true)
            accumulator = try Accumulator(Optimizer([parameter], AdamW(learningRate: 0.1)), options)
        }

        /// A loss with the gradient `values`; an infinity among them is a product that overflows in backward.
        func add(_ values: [Float], weight: Double? = 1) throws {
            let away = try parameter - parameter.detached()
            let finite = values.map { $0.isFinite ? $0 : 1e30 }
            let further = values.map { $0.isFinite ? Float(1) : 1e30 }
            let loss = try (away * Tensor(further, shape: [3]) * Tensor(finite, shape: [3])).sum()
            try accumulator.accumulate(loss, weight: weight)
        }

        /// Windows that show what was left in parameters, optimizer state, counters and denominators.
        func afterwards() throws -> [[Float]] {
            var found: [[Float]] = []
            for update in 1...3 {
                try add([Float(update), 2, -1], weight: 2)
                try add([0.5, -Float(update), 1])
                let report = try accumulator.step()
                found.append([Float(report.weight), Float(report.updateCount), Float(report.gradientNorm)])
                found.append(try parameter.values())
            }
            return found
        }
    }

    func testAWeightMayComeLater() throws {
        let (now, later) = (try Model(), try Model())
        for weight in [2.0, 3] { try now.add([1, 2, 3], weight: weight) }
        for _ in 0..<2 { try later.add([1, 2, 3], weight: nil) }
        try later.accumulator.setWeight(3, ofMicroBatch: 1)
        assertThrows(.state, naming: "weight of micro-batch 0 is missing") { _ = try later.accumulator.step() }
        try later.accumulator.setWeight(2, ofMicroBatch: 0)
        XCTAssertEqual(try later.accumulator.step().weight, try now.accumulator.step().weight)
        XCTAssertEqual(try later.parameter.values(), try now.parameter.values())
    }

    func testTheEndOfTheDataSettlesTheWindow() throws {
        let model = try Model(.init(accumulationSteps: 4))
        try model.accumulator.beginData()
        try model.add([1, 2, 3])
        assertThrows(.state, naming: "data_end") { try model.accumulator.beginData() }
        XCTAssertEqual(try model.accumulator.endData(.carry).outcome, .pending)
        try model.accumulator.beginData()
        try model.add([1, 2, 3])
        let report = try model.accumulator.endData(.step)
        XCTAssertEqual(report.outcome, .applied)
        XCTAssertEqual(report.weight, 2)
        XCTAssertEqual(try model.accumulator.endData(.step).outcome, .empty)
        let before = try model.parameter.values()
        try model.add([1, 2, 3])
        XCTAssertEqual(try model.accumulator.endData(.drop).outcome, .dropped)
        XCTAssertEqual(try model.parameter.values(), before)
    }

    func testAnAbortedMicroBatchLeavesNoTrace() throws {
        let (clean, aborted) = (try Model(.init(isIsolated: true)), try Model(.init(isIsolated: true)))
        for model in [clean, aborted] { try model.add([1, 1, 1]) }
        try aborted.accumulator.beginMicroBatch()
        try aborted.add([5, 5, 5], weight: 7)
        try aborted.accumulator.abortMicroBatch()
        XCTAssertEqual(aborted.accumulator.windowReport().abortedMicroBatches, 1)
        XCTAssertEqual(try aborted.accumulator.accumulatedGradient(0).values(), [1, 1, 1])
        XCTAssertEqual(try aborted.afterwards(), try clean.afterwards())
    }

    func testABadMicroBatchIsDroppedAndTheOthersCount() throws {
        let (clean, tried) = (try Model(.init(isIsolated: true)), try Model(.init(isIsolated: true)))
        for model in [clean, tried] { try model.add([1, 2, 4], weight: 3) }
        try tried.add([1, .infinity, 1], weight: 100)
        for model in [clean, tried] { try model.add([0, 1, 1]) }
        let (report, expected) = (try tried.accumulator.step(), try clean.accumulator.step())
        XCTAssertEqual(report.firstNonFinite?.parameter, 0)
        XCTAssertEqual(report.firstNonFinite?.microBatch, 1)
        XCTAssertEqual(report.microBatches, 2)
        XCTAssertEqual(report.weight, expected.weight)
        XCTAssertEqual(report.gradientNorm, expected.gradientNorm)
        XCTAssertEqual(try tried.afterwards(), try clean.afterwards())
    }

    func testInPlaceThereIsNoAbort() throws {
        let model = try Model()
        try model.accumulator.beginMicroBatch()
        try model.add([1, 1, 1])
        assertThrows(.state, naming: "isolated") { try model.accumulator.abortMicroBatch() }
        assertThrows(.state, naming: "micro-batch 0 is open") { _ = try model.accumulator.step() }
        try model.accumulator.commitMicroBatch()
        XCTAssertEqual(try model.accumulator.step().microBatches, 1)
    }

    func testTheLimitOnSkipsNamesTheParameterAndTheMicroBatch() throws {
        let (clean, tried) = (try Model(), try Model(.init(maxConsecutiveSkips: 1)))
        func bad() throws -> WindowReport {
            try tried.add([1, 1, 1])
            try tried.add([1, -.infinity, 1])
            return try tried.accumulator.step()
        }
        XCTAssertEqual(try bad().outcome, .skippedNonFinite)
        assertThrows(.nonFinite, naming: "parameters[0], \"gain\" in micro-batch 1") { _ = try bad() }
        XCTAssertEqual(try tried.afterwards(), try clean.afterwards())
    }

    func testAHandlerDecides() throws {
        let model = try Model()
        var asked: [WindowReport] = []
        func bad() throws -> WindowReport {
            try model.add([1, .infinity, 1])
            return try model.accumulator.step()
        }
        model.accumulator.skipHandler = { (report) throws(GAError) in
            asked.append(report)
            guard asked.count > 1 else { return .skip }
            if asked.count == 2 { return .raise }
            throw GAError(.unsupported, "mine")
        }
        XCTAssertTrue(try bad().isSkipped)
        assertThrows(.nonFinite, naming: "gain") { _ = try bad() }
        assertThrows(.unsupported, naming: "mine") { _ = try bad() }
        XCTAssertEqual(asked.map(\.outcome), [.skippedNonFinite, .skippedNonFinite, .skippedNonFinite])
        XCTAssertEqual(asked.map(\.consecutiveSkips), [1, 2, 3])
        model.accumulator.skipHandler = nil
        XCTAssertEqual(try model.afterwards(), try Model().afterwards())
    }

    func testAnOutlierIsSkippedOnceThereIsAMeanToCompareWith() throws {
        let model = try Model(.init(maxNormZScore: 4, outlierWarmup: 3))
        for size in [Float(1), 1.1, 0.9] {
            try model.add([size, 0, 0])
            XCTAssertEqual(try model.accumulator.step().outcome, .applied)
        }
        try model.add([3, 0, 0])
        let report = try model.accumulator.step()
        XCTAssertEqual(report.outcome, .skippedOutlier)
        XCTAssertEqual(report.gradientNormZScore, (3 - 1) / (0.02 / 3).squareRoot(), accuracy: 1e-4)
        model.accumulator.skipHandler = { _ in .apply }
        try model.add([3, 0, 0])
        XCTAssertEqual(try model.accumulator.step().updateCount, 4)
    }

    func testAccumulationStepsChangeAtTheNextWindow() throws {
        let model = try Model(.init(accumulationSteps: 2))
        try model.add([1, 1, 1])
        try model.accumulator.setAccumulationSteps(1)
        XCTAssertFalse(model.accumulator.isStepDue)
        try model.add([1, 1, 1])
        XCTAssertTrue(model.accumulator.isStepDue)
        XCTAssertEqual(try model.accumulator.step().accumulationSteps, 2)
        try model.add([1, 1, 1])
        XCTAssertTrue(model.accumulator.isStepDue)
        assertThrows(.invalidArgument, naming: "accumulation_steps") { try model.accumulator.setAccumulationSteps(0) }
    }

    func testARampFollowsTheClock() throws {
        let model = try Model()
        try model.accumulator.setRamp(
            AccumulationRamp(times: [0, 4], accumulationSteps: [1, 3], clock: .weight, isInterpolated: true))
        var found: [Int] = []
        for _ in 0..<4 {
            while !model.accumulator.isStepDue { try model.add([1, 2, 3]) }
            found.append(try model.accumulator.step().microBatches)
        }
        XCTAssertEqual(found, [1, 1, 2, 3])
        assertThrows(.invalidArgument, naming: "times[1]") {
            try model.accumulator.setRamp(AccumulationRamp(times: [1, 1], accumulationSteps: [1, 2]))
        }
        XCTAssertEqual(model.accumulator.accumulationSteps, 3)
    }

    func testAPlainSumIsNotDivided() throws {
        let p = try Tensor([0], shape: [1])
        let accumulator = try Accumulator(Optimizer([p], SGD(learningRate: 1)), .init(normalization: .sum))
        for weight in [3.0, 4] { try accumulator.accumulate((p * Tensor([2], shape: [1])).sum(), weight: weight) }
        let report = try accumulator.step()
        XCTAssertEqual(try p.values(), [-4])
        XCTAssertEqual(report.gradientNorm, 4)
        XCTAssertEqual(report.weight, 7)
    }
}
