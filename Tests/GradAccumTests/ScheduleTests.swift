import GradAccum
import XCTest

final class ScheduleTests: XCTestCase {
    private func training(_ schedule: Schedule?) throws -> (Optimizer, Accumulator) {
        let optimizer = try Optimizer([try Tensor.zeros([2])], SGD(learningRate: 1))
        try optimizer.setSchedule(schedule)
        return (optimizer, try Accumulator(optimizer))
    }

    /// A window with gradients of a mean of 1, or of `gradient`.
    @discardableResult
    private func window(
        _ accumulator: Accumulator, weight: Double = 1, loss: Double = 0, gradient: Float = 1
    ) throws -> WindowReport {
        let sums = [Float](repeating: gradient * Float(weight), count: 2)
        try sums.withUnsafeBytes {
            try accumulator.accumulate(gradients: [$0.baseAddress!], loss: loss * weight, weight: weight)
        }
        return try accumulator.step()
    }

    func testCurvesAreExactWhereTheyBeginAndEnd() throws {
        for curve in [Schedule.Curve.linear(duration: 50, endFactor: 0.3), .cosine(duration: 50, endFactor: 0.3)] {
            let schedule = Schedule(curve, warmup: 20, warmupStartFactor: 0.1)
            XCTAssertEqual(try schedule.factor(at: 0), 0.1)
            XCTAssertEqual(try schedule.factor(at: 20), 1)
            XCTAssertEqual(try schedule.factor(at: 35), 0.65, accuracy: 1e-15)
            XCTAssertEqual(try schedule.factor(at: 50), 0.3)
            XCTAssertEqual(try schedule.factor(at: .greatestFiniteMagnitude), 0.3)
        }
        XCTAssertEqual(try Schedule(.step(period: 3, gamma: 0.5)).factor(at: 8.9), 0.25)
        XCTAssertEqual(try Schedule(.exponential(period: 4, gamma: 0.25)).factor(at: 2), 0.5)
        XCTAssertEqual(try Schedule(.inverseSquareRoot(), warmup: 4).factor(at: 16), 0.5)
        XCTAssertEqual(try Schedule(.oneCycle(OneCycle(duration: 10))).factor(at: 3), 1)
        XCTAssertEqual(try Schedule(.table(FactorTable(times: [0, 4], factors: [1, 3]))).factor(at: 1), 1.5)
    }

    func testOnlyAppliedUpdatesMoveTheClock() throws {
        for clock in UpdateClock.allCases {
            let (optimizer, accumulator) = try training(Schedule(.linear(duration: 8), clock: clock))
            XCTAssertEqual(try window(accumulator, weight: 2).learningRate, 1)
            let (rate, reading) = (try optimizer.nextLearningRate(), optimizer.reading(of: clock))
            XCTAssertEqual(reading, clock == .updates ? 1 : 2)
            XCTAssertEqual(rate, 1 - reading / 8)
            XCTAssertEqual(try window(accumulator, gradient: .nan).outcome, .skippedNonFinite)
            XCTAssertEqual(try window(accumulator, weight: 0).outcome, .skippedZeroWeight)
            XCTAssertEqual(try optimizer.nextLearningRate(), rate)
            XCTAssertEqual(optimizer.reading(of: clock), reading)
            XCTAssertEqual(try window(accumulator).learningRate, rate)
        }
    }

    func testAPlateauFallsAfterItsPatienceAndNoFurtherThanItsMinimum() throws {
        let (_, accumulator) = try training(Schedule(.plateau(Plateau(gamma: 0.5, patience: 1, minFactor: 0.3))))
        let rates = try [3.0, 3, 3, 3, 3, 3, 3].map { try window(accumulator, loss: $0).learningRate }
        XCTAssertEqual(rates, [1, 1, 1, 0.5, 0.5, 0.3, 0.3])
    }

    func testAPlateauOfAMetricHeedsNoLoss() throws {
        let plateau = Plateau(signal: .metric, mode: .max, gamma: 0.5, patience: 0)
        let (optimizer, accumulator) = try training(Schedule(.plateau(plateau)))
        for _ in 0..<3 { XCTAssertEqual(try window(accumulator, loss: 1).learningRate, 1) }
        for metric in [0.5, 0.6, 0.6] { try optimizer.report(metric: metric) }
        XCTAssertEqual(try optimizer.nextLearningRate(), 0.5)
        assertThrows(.nonFinite, naming: "metric is NaN") { try optimizer.report(metric: .nan) }
        try optimizer.setSchedule(nil)
        assertThrows(.state, naming: "plateau") { try optimizer.report(metric: 1) }
    }

    func testWeightDecayFollowsTheRateOfTheUpdate() throws {
        let parameter = try Tensor([1], shape: [1])
        let optimizer = try Optimizer([parameter], AdamW(learningRate: 0.5, weightDecay: 0.5))
        try optimizer.setSchedule(Schedule(.linear(duration: 4)))
        let accumulator = try Accumulator(optimizer)
        var expected: Float = 1
        for update in 0..<4 {
            try [Float](repeating: 0, count: 1).withUnsafeBytes {
                try accumulator.accumulate(gradients: [$0.baseAddress!], loss: 0, weight: 1)
            }
            _ = try accumulator.step()
            expected *= Float(1 - 0.5 * (1 - Double(update) / 4) * 0.5)
            XCTAssertEqual(try parameter.values(), [expected])
        }
    }

    func testASchedulePastTheLargestFloatRefusesTheStepAndKeepsTheWindow() throws {
        let (optimizer, accumulator) = try training(Schedule(.exponential(period: 1, gamma: 1e30)))
        try window(accumulator)
        try window(accumulator)
        assertThrows(.overflow, naming: "times the schedule's") { try window(accumulator, weight: 3) }
        assertThrows(.overflow, naming: "times the schedule's") { _ = try accumulator.step() }
        try optimizer.setSchedule(nil)
        let report = try accumulator.step()
        XCTAssertEqual(report.weight, 3)
        XCTAssertEqual(report.updateCount, 3)
    }

    func testASetRateIsWhatTheScheduleMultiplies() throws {
        let (optimizer, accumulator) = try training(Schedule(.linear(duration: 2)))
        try window(accumulator)
        try optimizer.setLearningRate(3)
        XCTAssertEqual(optimizer.learningRate, 3)
        XCTAssertEqual(try optimizer.nextLearningRate(), 1.5)
    }
}
