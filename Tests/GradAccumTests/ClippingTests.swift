import GradAccum
import XCTest

/// Each way to clip, of the mean gradient of a window.
final class ClippingTests: XCTestCase {
    /// The gradient of each parameter as it reaches the update, which SGD with a rate of 1 takes off the parameter.
    private func clipped(
        _ parameters: [Tensor], _ gradients: [[Float]], _ options: Accumulator.Options
    ) throws -> (WindowReport, [[Float]], norms: [Double]) {
        let before = try parameters.map { try $0.values() }
        let accumulator = try Accumulator(Optimizer(parameters, SGD(learningRate: 1)), options)
        let loss = try zip(parameters, gradients).reduce(Tensor([0], shape: [])) {
            try $0 + ($1.0 * Tensor($1.1.map { 4 * $0 }, shape: $1.0.shape)).sum()
        }
        try accumulator.accumulate(loss, weight: 4)
        let report = try accumulator.step()
        let after = try parameters.map { try $0.values() }
        return (report, zip(before, after).map { zip($0, $1).map(-) }, try accumulator.gradientNorms())
    }

    func testByValue() throws {
        let p = try [Tensor([0, 0, 0], shape: [3]), Tensor([0], shape: [])]
        let (report, found, norms) = try clipped(p, [[3, -0.25, -4], [12]], .init(maxGradValue: 0.5))
        XCTAssertEqual(found, [[0.5, -0.25, -0.5], [0.5]])
        XCTAssertEqual(report.gradientNorm, (9 + 0.0625 + 16 + 144).squareRoot(), accuracy: 1e-12)
        XCTAssertEqual(report.clipFactor, (0.8125).squareRoot() / report.gradientNorm, accuracy: 1e-12)
        XCTAssertEqual(norms[1], 12)
    }

    func testAdaptivelyByUnit() throws {
        // Rows of norm 5 and 0, and a vector of norm 2.
        let p = try [Tensor([3, 4, 0, 0], shape: [2, 2]), Tensor([2, 0], shape: [2])]
        let options = Accumulator.Options(agcClipping: 0.5, agcEps: 0.5)
        let (report, found, norms) = try clipped(p, [[6, 8, 3, 4], [0.5, 0.5]], options)
        let expected: [[Float]] = [[1.5, 2, 0.15, 0.2], [0.5, 0.5]]
        for (a, b) in zip(found.joined(), expected.joined()) { XCTAssertEqual(a, b, accuracy: 1e-6) }
        let after = (6.25 + 0.0625 + 0.5).squareRoot()
        XCTAssertEqual(report.clipFactor, after / report.gradientNorm, accuracy: 1e-12)
        XCTAssertEqual(norms[0], (125.0).squareRoot(), accuracy: 1e-12)
    }

    func testTheNumberOfThreadsChangesNoBit() throws {
        var generator = SplitMix64(5)
        // Many short units, long ones that are cut, and a vector.
        let shapes = [[3, 70_000], [5_000, 7], [40_001]]
        let values = shapes.map { shape in
            (0..<shape.reduce(1, *)).map { _ in Float.random(in: -1...1, using: &generator) }
        }
        let gradients = shapes.map { shape in
            (0..<shape.reduce(1, *)).map { _ in Float.random(in: -1...1, using: &generator) }
        }
        for options in [
            Accumulator.Options(maxGradNorm: 0.1), .init(maxGradValue: 0.1), .init(agcClipping: 0.9),
        ] {
            let runs = try (1...4).map { threads in
                try withThreads(threads) {
                    let p = try zip(values, shapes).map { try Tensor($0, shape: $1) }
                    let (report, _, _) = try clipped(p, gradients, options)
                    XCTAssertLessThan(report.clipFactor, 1)
                    return (report, try p.map { try $0.values().map(\.bitPattern) })
                }
            }
            for run in runs { XCTAssertTrue(run == runs[0]) }
        }
    }

    func testOptionsOutsideTheirRangeAreNamed() throws {
        let optimizer = try Optimizer([try Tensor([0], shape: [1])], SGD())
        for (option, options) in [
            ("max_grad_norm", Accumulator.Options(maxGradNorm: -1)), ("max_grad_value", .init(maxGradValue: .nan)),
            ("max_grad_value", .init(maxGradValue: 1e-60)), ("agc_clipping", .init(agcClipping: 0)),
            ("agc_eps", .init(agcClipping: 0.01, agcEps: 0)),
            ("choose one", .init(maxGradNorm: 1, maxGradValue: 1)),
        ] {
            assertThrows(.invalidArgument, naming: option) { _ = try Accumulator(optimizer, options) }
        }
        let accumulator = try Accumulator(optimizer)
        assertThrows(.state, naming: "take a step first") { _ = try accumulator.gradientNorms() }
    }
}
