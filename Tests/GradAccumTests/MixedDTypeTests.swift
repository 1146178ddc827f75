import GradAccum
import XCTest

/// Operations on bfloat16 compute in float32 and round at the end.
final class MixedDTypeTests: XCTestCase {
    private typealias Operation = ([Tensor]) throws(GAError) -> Tensor

    /// Every operation that takes numbers, with the type of its result for bfloat16 operands.
    private let operations: [(String, Operation, DType)] = [
        ("add", { x throws(GAError) in try x[0] + x[1] }, .bfloat16),
        ("subtract", { x throws(GAError) in try x[0] - x[1] }, .bfloat16),
        ("multiply", { x throws(GAError) in try x[0] * x[1] }, .bfloat16),
        ("divide", { x throws(GAError) in try x[0] / x[1] }, .bfloat16),
        ("relu", { x throws(GAError) in try x[0].relu() }, .bfloat16),
        ("gelu", { x throws(GAError) in try x[0].gelu(.tanh) }, .bfloat16),
        ("layer_norm", { x throws(GAError) in try x[0].layerNorm(nil, nil) }, .float32),
        ("softmax", { x throws(GAError) in try x[0].softmax() }, .float32),
        ("sum", { x throws(GAError) in try x[0].sum([1]) }, .float32),
        ("mean", { x throws(GAError) in try x[0].mean() }, .float32),
        ("mse", { x throws(GAError) in try x[0].mse(x[1]) }, .float32),
        ("matmul", { x throws(GAError) in try matmul(x[0], x[1].transposed()) }, .float32),
        (
            "cross_entropy",
            { x throws(GAError) in try x[0].crossEntropy(try Tensor(indices: [0, 4, 2, 6], shape: [4])) }, .float32
        ),
        ("reshape", { x throws(GAError) in try x[0].reshaped([7, 4]) }, .bfloat16),
        ("transpose", { x throws(GAError) in try x[0].transposed() }, .bfloat16),
        ("linear", { x throws(GAError) in try x[0].linear(x[1]) }, .float32),
    ]

    private func leaves() throws -> [Tensor] {
        try [1, 2].map { (seed: UInt64) in
            let leaf = try Tensor.zeros([4, 7])
            try leaf.fillNormal(mean: 0.5, standardDeviation: 1, seed: seed)
            // Numbers that bfloat16 holds, so that the operands are the same in both types.
            let rounded = try leaf.cast(to: .bfloat16).cast(to: .float32)
            try rounded.setRequiresGrad(true)
            return rounded
        }
    }

    func testValuesAreTheRoundedOnes() throws {
        for (name, operation, dtype) in operations {
            let wide = try leaves()
            let expected = try operation(wide)
            let found = try operation(try wide.map { try $0.cast(to: .bfloat16) })
            XCTAssertEqual(found.dtype, dtype, name)
            let rounded = try expected.cast(to: dtype).cast(to: .float32)
            XCTAssertEqual(try found.cast(to: .float32).values(), try rounded.values(), name)
        }
    }

    func testGradientsAreThoseOfFloat32() throws {
        for (name, operation, _) in operations {
            let (a, b) = (try leaves(), try leaves())
            func loss(_ x: Tensor) throws -> Tensor { try x.cast(to: .float32).sum() }
            let (first, second) = (
                try loss(try operation(a)), try loss(try operation(b.map { try $0.cast(to: .bfloat16) }))
            )
            XCTAssertEqual(
                try first.gradients(of: a).map { try $0.values() }, try second.gradients(of: b).map { try $0.values() },
                name)
        }
    }

    func testAResidualOfBothTypesIsFloat32() throws {
        let x = try leaves()
        let sum = try x[0] + x[1].cast(to: .bfloat16)
        XCTAssertEqual(sum.dtype, .float32)
        XCTAssertEqual(try sum.values(), try (x[0] + x[1]).values())
    }

    func testLinearLayersAndAttentionFollowThePolicy() throws {
        try Compute.with(.bfloat16) { () throws(GAError) in
            do {
                let x = try leaves()
                XCTAssertEqual(try x[0].linear(x[1]).dtype, .bfloat16)
                XCTAssertEqual(try x[0].layerNorm(nil, nil).dtype, .bfloat16)
                let q = try x[0].reshaped([1, 4, 7])
                XCTAssertEqual(try q.causalAttention(q, q, heads: 1).dtype, .bfloat16)
                XCTAssertEqual(
                    try x[0].linearCrossEntropy(x[1], try Tensor(indices: [0, 1, 2, 3], shape: [4])).dtype, .float32)
                XCTAssertEqual(try (x[0] + x[1]).dtype, .float32)
            } catch {
                XCTFail("\(error)")
            }
        }
        XCTAssertEqual(Compute.dtype, .float32)
        XCTAssertThrowsError(try Compute.setDType(.float16))
    }
}
