import GradAccum
import XCTest

/// Operations on bfloat16 and float16 compute in float32 and round at the end.
final class MixedDTypeTests: XCTestCase {
    private typealias Operation = ([Tensor]) throws(GAError) -> Tensor

    /// Every operation that takes numbers, and whether its result has the type of its operands.
    private let operations: [(String, Operation, Bool)] = [
        ("add", { x throws(GAError) in try x[0] + x[1] }, true),
        ("subtract", { x throws(GAError) in try x[0] - x[1] }, true),
        ("multiply", { x throws(GAError) in try x[0] * x[1] }, true),
        ("divide", { x throws(GAError) in try x[0] / x[1] }, true),
        ("relu", { x throws(GAError) in try x[0].relu() }, true),
        ("gelu", { x throws(GAError) in try x[0].gelu(.tanh) }, true),
        ("layer_norm", { x throws(GAError) in try x[0].layerNorm(nil, nil) }, false),
        ("softmax", { x throws(GAError) in try x[0].softmax() }, false),
        ("sum", { x throws(GAError) in try x[0].sum([1]) }, false),
        ("mean", { x throws(GAError) in try x[0].mean() }, false),
        ("mse", { x throws(GAError) in try x[0].mse(x[1]) }, false),
        ("matmul", { x throws(GAError) in try matmul(x[0], x[1].transposed()) }, false),
        (
            "cross_entropy",
            { x throws(GAError) in try x[0].crossEntropy(try Tensor(indices: [0, 4, 2, 6], shape: [4])) }, false
        ),
        ("reshape", { x throws(GAError) in try x[0].reshaped([7, 4]) }, true),
        ("transpose", { x throws(GAError) in try x[0].transposed() }, true),
        ("linear", { x throws(GAError) in try x[0].linear(x[1]) }, false),
    ]

    private let types = [DType.bfloat16, .float16]

    private func leaves(_ dtype: DType) throws -> [Tensor] {
        try [1, 2].map { (seed: UInt64) in
            let leaf = try Tensor.zeros([4, 7])
            try leaf.fillNormal(mean: 0.5, standardDeviation: 1, seed: seed)
            // Numbers that the type holds, so that the operands are the same in both types.
            let rounded = try leaf.cast(to: dtype).cast(to: .float32)
            try rounded.setRequiresGrad(true)
            return rounded
        }
    }

    func testValuesAreTheRoundedOnes() throws {
        for dtype in types {
            for (name, operation, isKept) in operations {
                let wide = try leaves(dtype)
                let expected = try operation(wide)
                let found = try operation(try wide.map { try $0.cast(to: dtype) })
                XCTAssertEqual(found.dtype, isKept ? dtype : .float32, name)
                let rounded = try expected.cast(to: found.dtype).cast(to: .float32)
                XCTAssertEqual(try found.cast(to: .float32).values(), try rounded.values(), "\(name) of \(dtype)")
            }
        }
    }

    func testGradientsAreThoseOfFloat32() throws {
        for dtype in types {
            for (name, operation, _) in operations {
                let (a, b) = (try leaves(dtype), try leaves(dtype))
                func loss(_ x: Tensor) throws -> Tensor { try x.cast(to: .float32).sum() }
                let (first, second) = (
                    try loss(try operation(a)), try loss(try operation(b.map { try $0.cast(to: dtype) }))
                )
                XCTAssertEqual(
                    try first.gradients(of: a).map { try $0.values() },
                    try second.gradients(of: b).map { try $0.values() }, "\(name) of \(dtype)")
            }
        }
    }

    func testAResidualOfBothTypesIsFloat32() throws {
        for dtype in types {
            let x = try leaves(dtype)
            let sum = try x[0] + x[1].cast(to: dtype)
            XCTAssertEqual(sum.dtype, .float32)
            XCTAssertEqual(try sum.values(), try (x[0] + x[1]).values())
        }
        let x = try leaves(.bfloat16)
        XCTAssertEqual(try (x[0].cast(to: .float16) + x[1].cast(to: .bfloat16)).dtype, .float32)
    }

    func testLinearLayersAndAttentionFollowThePolicy() throws {
        for dtype in types {
            try Compute.with(dtype) { () throws(GAError) in
                do {
                    let x = try leaves(dtype)
                    XCTAssertEqual(try x[0].linear(x[1]).dtype, dtype)
                    XCTAssertEqual(try x[0].layerNorm(nil, nil).dtype, dtype)
                    let q = try x[0].reshaped([1, 4, 7])
                    XCTAssertEqual(try q.causalAttention(q, q, heads: 1).dtype, dtype)
                    XCTAssertEqual(
                        try x[0].linearCrossEntropy(x[1], try Tensor(indices: [0, 1, 2, 3], shape: [4])).dtype, .float32
                    )
                    XCTAssertEqual(try (x[0] + x[1]).dtype, .float32)
                } catch {
                    XCTFail("\(error)")
                }
            }
        }
        XCTAssertEqual(Compute.dtype, .float32)
        XCTAssertThrowsError(try Compute.setDType(.int32))
    }
}
