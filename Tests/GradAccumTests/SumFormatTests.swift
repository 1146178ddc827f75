import GradAccum
import XCTest

/// Sums of gradients in bfloat16: what they hold, what a step makes of them, and what is refused.
final class SumFormatTests: XCTestCase {
    private let formats = SumFormat.allCases.filter { $0 != .float32 }

    /// A sum is rounded with each addition, by at most `roundoff` of itself.
    private func check(_ format: SumFormat, roundoff: Double) throws {
        let shapes = [[1], [3, 11], [40_000]]
        let accumulator = try Accumulator(
            Optimizer(try randomParameters(shapes), SGD(learningRate: 0.1)), .init(sumFormat: format))
        var exact = shapes.map { [Double](repeating: 0, count: $0.reduce(1, *)) }
        var bounds = exact
        for microBatch in 0..<20 {
            let gradients = randomGradients(shapes, update: microBatch)
            try add(gradients, to: accumulator, weight: 1)
            for (index, gradient) in gradients.enumerated() {
                for i in gradient.indices {
                    exact[index][i] += Double(gradient[i])
                    bounds[index][i] += roundoff * (abs(exact[index][i]) + bounds[index][i])
                }
            }
        }
        for index in shapes.indices {
            let found = try accumulator.accumulatedGradient(index).values()
            let excess = found.indices.map { abs(Double(found[$0]) - exact[index][$0]) / bounds[index][$0] }
            XCTAssertLessThanOrEqual(excess.max()!, 1, "\(format)")
        }
    }

    func testSumsAreAsNearAsTheirFormatAllows() throws {
        try check(.bfloat16, roundoff: 0x1p-8)
        try check(.bfloat16Stochastic, roundoff: 0x1p-7)
        // What was added too much is rounded as the sum is, and that twice.
        try check(.bfloat16Kahan, roundoff: 0x1p-14)
    }

    /// Every rule makes of a sum in bfloat16 what it makes of the same numbers in float32, however they are cut.
    func testEveryRuleSeesTheNumbersOfTheSum() throws {
        for optimizerCase in OptimizerCase.all {
            // More than a step converts at a time, where elements are treated alone.
            let isElementwise = optimizerCase.rule is any ElementwiseRule
            let shapes = optimizerCase.shapes + (isElementwise ? [[3], [600_000], [5]] : [[64, 33]])
            for format in formats {
                let (narrow, wide) = (try randomParameters(shapes), try randomParameters(shapes))
                let first = try Accumulator(try optimizerCase.make(narrow), .init(sumFormat: format))
                let second = try Accumulator(try optimizerCase.make(wide))
                for update in 0..<2 {
                    for part in 0..<2 {
                        var gradients: [[Float]?] = randomGradients(shapes, update: 2 * update + part)
                        // One that has no gradient in the first update.
                        if update == 0 { gradients[1] = nil }
                        try add(gradients, to: first, weight: 2)
                    }
                    let sums = try shapes.indices.map { index -> [Float]? in
                        update == 0 && index == 1 ? nil : try first.accumulatedGradient(index).values()
                    }
                    try add(sums, to: second, weight: 4)
                    XCTAssertEqual(try first.step().outcome, .applied)
                    XCTAssertEqual(try second.step().outcome, .applied)
                    XCTAssertEqual(try bits(of: narrow), try bits(of: wide), "\(optimizerCase.name), \(format)")
                }
            }
        }
    }

    func testTheNormIsThatOfTheSum() throws {
        let shapes = [[70, 3], [5]]
        for format in formats {
            let parameters = try randomParameters(shapes)
            let accumulator = try Accumulator(
                Optimizer(parameters, SGD(learningRate: 0.1)), .init(maxGradNorm: 0.25, sumFormat: format))
            for update in 0..<3 { try add(randomGradients(shapes, update: update), to: accumulator, weight: 1) }
            let squares = try shapes.indices.map { index in
                try accumulator.accumulatedGradient(index).values().reduce(0.0) { $0 + Double($1) * Double($1) }
            }
            let report = try accumulator.step()
            XCTAssertEqual(report.gradientNorm, squares.reduce(0, +).squareRoot() / 3, accuracy: 1e-12)
            XCTAssertEqual(report.clipFactor, 0.25 / report.gradientNorm, accuracy: 1e-6)
            for (norm, square) in zip(try accumulator.gradientNorms(), squares) {
                XCTAssertEqual(norm, square.squareRoot() / 3, accuracy: 1e-12)
            }
        }
    }

    /// A mean that float32 cannot scale in one factor is that of float32 sums, which are scaled in place.
    func testSumsThatTakeTwoFactorsToScale() throws {
        for format in formats {
            var weights: [[[UInt32]]] = []
            for sums in [SumFormat.float32, format] {
                let parameters = try randomParameters([[4]])
                let accumulator = try Accumulator(
                    Optimizer(parameters, SGD(learningRate: 1)), .init(maxGradNorm: 1e-12, sumFormat: sums))
                try add([[0x1p120, -0x1p121, 0x1.8p120, 0]], to: accumulator, weight: 1)
                XCTAssertEqual(try accumulator.step().outcome, .applied)
                weights.append(try bits(of: parameters))
            }
            XCTAssertEqual(weights[0], weights[1], "\(format)")
        }
    }

    func testASkippedWindowLeavesNoTraceInTheRoundings() throws {
        for format in formats {
            var weights: [[[UInt32]]] = []
            for skips in [0, 2] {
                let parameters = try randomParameters([[1000]])
                let accumulator = try Accumulator(
                    Optimizer(parameters, AdamW(learningRate: 0.1)), .init(sumFormat: format))
                for update in 0..<3 {
                    for _ in 0..<skips {
                        try add(randomGradients([[1000]], update: 50), to: accumulator, weight: 1)
                        try add([[Float](repeating: .nan, count: 1000)], to: accumulator, weight: 1)
                        XCTAssertEqual(try accumulator.step().outcome, .skippedNonFinite)
                    }
                    for part in 0..<3 {
                        try add(randomGradients([[1000]], update: 3 * update + part), to: accumulator, weight: 1)
                    }
                    XCTAssertEqual(try accumulator.step().outcome, .applied)
                }
                weights.append(try bits(of: parameters))
            }
            XCTAssertEqual(weights[0], weights[1], "\(format)")
        }
    }

    /// Random bits differ from one update to the next, and from one parameter to the next.
    func testRoundingsAreNotThoseOfBefore() throws {
        let count = 1000
        let parameters = try (0..<2).map { _ in try Tensor.zeros([count]) }
        let accumulator = try Accumulator(
            Optimizer(parameters, SGD(learningRate: 0)), .init(sumFormat: .bfloat16Stochastic))
        var sums: [[Float]] = []
        for _ in 0..<2 {
            for value: Float in [1, 0x1p-9] {
                let gradient = [Float](repeating: value, count: count)
                try add([gradient, gradient], to: accumulator, weight: 1)
            }
            for index in 0..<2 { sums.append(try accumulator.accumulatedGradient(index).values()) }
            _ = try accumulator.step()
        }
        for sum in sums {
            // A quarter of them have gone up to the next number.
            let moved = sum.count { $0 == 1 + 0x1p-7 }
            XCTAssertEqual(sum.count { $0 == 1 }, count - moved)
            XCTAssertEqual(Double(moved) / Double(count), 0.25, accuracy: 0.07)
        }
        XCTAssertEqual(Set(sums).count, 4)
    }

    func testStagnationIsThatOfTheLastWindow() throws {
        let parameters = try randomParameters([[8], [4]])
        let accumulator = try Accumulator(Optimizer(parameters, SGD(learningRate: 0)), .init(sumFormat: .bfloat16))
        assertThrows(.state, naming: "step") { _ = try accumulator.stagnation() }
        try add([[Float](repeating: 1, count: 8), [1, 0, 1, 0]], to: accumulator, weight: 1)
        for _ in 0..<3 { try add([[Float](repeating: 0x1p-9, count: 8), nil], to: accumulator, weight: 1) }
        assertThrows(.state, naming: "step") { _ = try accumulator.stagnation() }
        _ = try accumulator.step()
        let found = try accumulator.stagnation()
        XCTAssertEqual(found.map(\.additions), [32, 2])
        XCTAssertEqual(found.map(\.unchanged), [24, 0])
        try add([nil, [1, 2, 3, 4]], to: accumulator, weight: 1)
        _ = try accumulator.step()
        XCTAssertEqual(try accumulator.stagnation().map(\.additions), [0, 4])
        let wide = try Accumulator(Optimizer(try randomParameters([[8]]), SGD(learningRate: 0)))
        assertThrows(.state, naming: "sum_format") { _ = try wide.stagnation() }
    }

    func testWhatNeedsFloat32IsRefused() throws {
        for format in formats {
            for (name, options) in [
                ("max_grad_value", Accumulator.Options(maxGradValue: 1, sumFormat: format)),
                ("agc_clipping", Accumulator.Options(agcClipping: 0.01, sumFormat: format)),
                (
                    "accumulate_into",
                    Accumulator.Options(normalization: .sum, accumulateInto: .moments, sumFormat: format)
                ),
            ] {
                let optimizer = try Optimizer(try randomParameters([[3]]), AdamW(learningRate: 0.1))
                assertThrows(.invalidArgument, naming: name) { _ = try Accumulator(optimizer, options) }
            }
        }
    }
}
