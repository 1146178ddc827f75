import GradAccum
import XCTest

final class BatchScalingTests: XCTestCase {
    private func window(_ accumulator: Accumulator, _ gradient: Float, weight: Double) throws -> WindowReport {
        try [gradient * Float(weight)].withUnsafeBytes {
            try accumulator.accumulate(gradients: [$0.baseAddress!], loss: 0, weight: weight)
        }
        return try accumulator.step()
    }

    func testRatesFollowTheWeightOfTheirWindow() throws {
        for (rule, expected) in [
            (BatchScaling.Rule.none, [1.0, 1, 1]), (.linear, [1, 4, 0.25]), (.squareRoot, [1, 2, 0.5]),
        ] {
            let optimizer = try Optimizer([try Tensor.zeros([1])], SGD(learningRate: 1))
            let accumulator = try Accumulator(optimizer)
            try optimizer.setScaling(BatchScaling(rule, baseWeight: 8))
            let rates = try [8.0, 32, 2].map { try window(accumulator, 1, weight: $0).learningRate }
            XCTAssertEqual(rates, expected)
            XCTAssertEqual(try optimizer.nextLearningRate(), 1)
            XCTAssertEqual(try optimizer.nextLearningRate(weight: 32), expected[1])
        }
    }

    /// The second moment of Adam with a beta2 of its own in each update, corrected by their product.
    func testBiasCorrectionIsByTheProductOfTheBetas() throws {
        let parameter = try Tensor.zeros([1])
        let optimizer = try Optimizer([parameter], Adam(learningRate: 1e-2, beta1: 0, beta2: 0.9, eps: 0))
        let accumulator = try Accumulator(optimizer)
        var (value, square, product) = (0.0, 0.0, 1.0)
        for (update, weight) in [8.0, 1, 64, 8, 0.5, 8].enumerated() {
            // Off for the fourth and the fifth update, which then count as one each.
            let isOff = update == 3 || update == 4
            try optimizer.setScaling(isOff ? nil : BatchScaling(.none, baseWeight: 8, keepsBeta2HalfLife: true))
            let gradient = Double(1 + update % 3)
            let beta2 = isOff ? 0.9 : pow(0.9, weight / 8)
            square = beta2 * square + (1 - beta2) * gradient * gradient
            product *= beta2
            value -= 1e-2 * gradient / (square / (1 - product)).squareRoot()
            _ = try window(accumulator, Float(gradient), weight: weight)
            XCTAssertEqual(try parameter.item(), value, accuracy: 1e-7, "update \(update)")
        }
    }

    func testAFrozenParameterKeepsTheClockOfItsMoments() throws {
        let (late, early) = (try Tensor.zeros([1]), try Tensor.zeros([1]))
        let optimizer = try Optimizer([late, early], Adam(learningRate: 1e-2, eps: 0))
        try optimizer.setScaling(BatchScaling(.none, baseWeight: 1, keepsBeta2HalfLife: true))
        let accumulator = try Accumulator(optimizer)
        for (update, weight) in [2.0, 4, 3].enumerated() {
            try [Float(weight)].withUnsafeBytes {
                try accumulator.accumulate(
                    gradients: [update == 2 ? $0.baseAddress! : nil, $0.baseAddress!], loss: 0, weight: weight)
            }
            _ = try accumulator.step()
        }
        // A first update of Adam has the length of the learning rate, whatever its beta2.
        XCTAssertEqual(try late.item(), -1e-2, accuracy: 1e-8)
        XCTAssertEqual(try early.item(), -3e-2, accuracy: 1e-7)
    }

    func testRulesWithoutSuchABeta2SaySo() throws {
        func refuses(_ rule: some UpdateRule, _ name: String) throws {
            let optimizer = try Optimizer([try Tensor.zeros([2, 2])], rule)
            assertThrows(.invalidArgument, naming: name) {
                try optimizer.setScaling(BatchScaling(.linear, baseWeight: 1, keepsBeta2HalfLife: true))
            }
            XCTAssertNil(optimizer.scaling)
            try optimizer.setScaling(BatchScaling(.linear, baseWeight: 1))
        }
        try refuses(SGD(), "sgd")
        try refuses(RAdam(), "radam")
        try refuses(Lion(), "lion")
        try refuses(LARS(), "lars")
        try refuses(Adafactor(), "adafactor")
    }

    func testAWeightInAnotherUnitRefusesTheStepAndKeepsTheWindow() throws {
        let optimizer = try Optimizer([try Tensor.zeros([1])], SGD(learningRate: 1))
        let accumulator = try Accumulator(optimizer)
        try optimizer.setScaling(BatchScaling(.squareRoot, baseWeight: 1e12))
        assertThrows(.overflow, naming: "base_weight") { _ = try window(accumulator, 1, weight: 1) }
        try optimizer.setScaling(nil)
        XCTAssertEqual(try accumulator.step().weight, 1)
        assertThrows(.invalidArgument, naming: "base_weight is 0") {
            try optimizer.setScaling(BatchScaling(.linear, baseWeight: 0))
        }
    }
}
