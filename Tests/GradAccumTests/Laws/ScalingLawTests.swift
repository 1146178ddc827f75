import GradAccum
import XCTest

/// Law 3: a loss scale that is a power of two changes no bit of a run that neither overflows nor underflows.
final class ScalingLawTests: LawTestCase {
    func testAPowerOfTwoChangesNoBitOfReportsAndWeights() throws {
        test(of: .scaling)
        for dtype in [DType.float32, .bfloat16] {
            for life in 0..<Self.factor {
                let expected = try run(dtype, nil, life)
                for exponent in 0...24 {
                    let scaler = try LossScaler(
                        .init(initScale: Double(sign: .plus, exponent: exponent, significand: 1)))
                    XCTAssertEqual(try run(dtype, scaler, life), expected, "2^\(exponent) in \(dtype), life \(life)")
                    ran()
                }
            }
        }
    }

    /// The bits of norms and weights of three clipped updates of a small network, of which each life has its own.
    private func run(_ dtype: DType, _ scaler: LossScaler?, _ life: Int) throws -> [UInt64] {
        var parameters: [Tensor] = []
        for (seed, shape) in [[11, 7], [11], [5, 11]].enumerated() {
            let parameter = try Tensor.zeros(shape)
            try parameter.fillNormal(mean: 0, standardDeviation: 0.5, seed: UInt64(100 * life + seed))
            try parameter.setRequiresGrad(true)
            parameters.append(parameter)
        }
        let accumulator = try Accumulator(
            Optimizer(parameters, AdamW(learningRate: 0.01)), .init(maxGradNorm: 0.5))
        try accumulator.setLossScaler(scaler)
        var bits: [UInt64] = []
        for update in 0..<3 {
            for microBatch in 0..<2 {
                let x = try Tensor.zeros([3, 4, 7])
                try x.fillNormal(mean: 0, standardDeviation: 1, seed: UInt64(100 * life + 10 + 2 * update + microBatch))
                let targets = try Tensor(indices: (0..<12).map { Int64($0 % 5) }, shape: [3, 4])
                let loss = try Compute.with(dtype) { () throws(GAError) in
                    try x.linear(parameters[0], parameters[1]).gelu().linearCrossEntropy(parameters[2], targets)
                }
                try accumulator.accumulate(loss, weight: 12)
            }
            let report = try accumulator.step()
            XCTAssertEqual(report.outcome, .applied)
            bits += [report.gradientNorm.bitPattern, report.clipFactor.bitPattern]
        }
        for parameter in parameters { bits += try parameter.values().map { UInt64($0.bitPattern) } }
        return bits
    }
}
