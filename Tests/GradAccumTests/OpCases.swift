import GradAccum

/// One operand of an operation under test.
struct Operand {
    enum Role {
        /// The leading axis counts samples: a split cuts it.
        case sample
        /// A leaf that every sample meets.
        case parameter
        /// Class or row indices below a limit, one entry of the leading axis per sample.
        case indices(below: Int)
    }

    let role: Role
    let shape: [Int]
    var range: ClosedRange<Float> = -1...1

    static func sample(_ shape: Int..., in range: ClosedRange<Float> = -1...1) -> Operand {
        Operand(role: .sample, shape: shape, range: range)
    }
    static func parameter(_ shape: Int..., in range: ClosedRange<Float> = -1...1) -> Operand {
        Operand(role: .parameter, shape: shape, range: range)
    }
    static func indices(_ shape: Int..., below limit: Int) -> Operand {
        Operand(role: .indices(below: limit), shape: shape)
    }
}

/// One row of the table: an operation, and operands that show its derivative and its behaviour under a split.
///
/// The result is per sample (its leading axis is that of the samples) or a scalar sum over them.
struct OpCase: Sendable {
    let name: String
    let operands: @Sendable () -> [Operand]
    /// False for a result that jumps, which a difference quotient cannot follow.
    let isSmooth: Bool
    let apply: @Sendable ([Tensor]) throws -> Tensor

    init(
        _ name: String, _ operands: @autoclosure @escaping @Sendable () -> [Operand], isSmooth: Bool = true,
        _ apply: @escaping @Sendable ([Tensor]) throws -> Tensor
    ) {
        self.name = name
        self.operands = operands
        self.isSmooth = isSmooth
        self.apply = apply
    }

    /// Every operation has a row here; with it, it is gradient-checked and split in every way.
    static let all: [OpCase] = [
        OpCase("add, bias of the last axis", [.sample(7, 5, 9), .parameter(9)]) { try $0[0] + $0[1] },
        OpCase("add, parameter of a sample's shape", [.sample(7, 5, 9), .parameter(5, 9)]) { try $0[1] + $0[0] },
        OpCase("add, scalar parameter", [.sample(7, 5), .parameter()]) { try $0[0] + $0[1] },
        OpCase("add, leading ones", [.sample(7, 5, 9), .parameter(1, 1, 9)]) { try $0[0] + $0[1] },
        OpCase("multiply, leading one", [.sample(7, 5, 9), .parameter(1, 5, 9)]) { try $0[0] * $0[1] },
        OpCase("multiply, ones around", [.sample(7, 3, 5, 9), .parameter(1, 3, 1, 9)]) { try $0[1] * $0[0] },
        OpCase("divide, all ones", [.sample(7, 5, 9), .parameter(1, 1, 1, in: 1...2)]) { try $0[0] / $0[1] },
        OpCase("matmul, leading one", [.sample(7, 20, 9), .parameter(1, 9, 11)]) { try matmul($0[0], $0[1]) },
        OpCase("relu, whose zeros have a sign", [.sample(7, 5, 9), .parameter(1, 5, 9)], isSmooth: false) {
            try $0[0].relu() * $0[1]
        },
        OpCase("subtract", [.sample(7, 5, 9), .parameter(5, 1)]) { try $0[0] - $0[1] },
        OpCase("subtract from a parameter", [.sample(7, 33), .parameter(33)]) { try $0[1] - $0[0] },
        OpCase("multiply", [.sample(7, 5, 9), .parameter(9)]) { try $0[0] * $0[1] },
        OpCase("multiply, repeated inner axis", [.sample(7, 5, 9), .parameter(5, 1)]) { try $0[0] * $0[1] },
        OpCase("divide", [.sample(7, 5, 9), .parameter(9, in: 1...2)]) { try $0[0] / $0[1] },
        OpCase("divide a parameter", [.sample(7, 19, in: 1...2), .parameter(19)]) { try $0[1] / $0[0] },
        OpCase("matmul, single rows", [.sample(7, 9), .parameter(9, 37)]) { try matmul($0[0], $0[1]) },
        OpCase("matmul, sequences", [.sample(7, 20, 9), .parameter(9, 37)]) { try matmul($0[0], $0[1]) },
        OpCase("matmul, parameter first", [.sample(7, 20, 9), .parameter(6, 20)]) { try matmul($0[1], $0[0]) },
        OpCase("matmul, batches on both sides", [.sample(7, 2, 4, 5), .parameter(2, 5, 3)]) {
            try matmul($0[0], $0[1])
        },
        OpCase("linear, single rows", [.sample(7, 11), .parameter(35, 11), .parameter(35)]) {
            try $0[0].linear($0[1], $0[2])
        },
        OpCase("linear, few rows", [.sample(7, 5, 11), .parameter(35, 11), .parameter(35)]) {
            try $0[0].linear($0[1], $0[2])
        },
        OpCase("linear, sequences", [.sample(7, 67, 19), .parameter(35, 19), .parameter(35)]) {
            try $0[0].linear($0[1], $0[2])
        },
        OpCase("linear without bias, wider than a tile", [.sample(3, 17, 5), .parameter(300, 5)]) {
            try $0[0].linear($0[1])
        },
        OpCase("linear of a transposed parameter", [.sample(7, 21, 9), .parameter(9, 13)]) {
            try $0[0].linear($0[1].transposed())
        },
        OpCase("linear of a slice of a parameter", [.sample(7, 21, 9), .parameter(30, 9)]) {
            try $0[0].linear($0[1].sliced(axis: 0, 4..<17))
        },
        OpCase("linear of a reshaped parameter", [.sample(7, 21, 6), .parameter(3, 4, 6)]) {
            try $0[0].linear($0[1].reshaped([12, -1]))
        },
        OpCase("layer_norm", [.sample(7, 5, 35), .parameter(35), .parameter(35)]) {
            try $0[0].layerNorm($0[1], $0[2])
        },
        OpCase("layer_norm without weight", [.sample(7, 35), .parameter(35)]) { try $0[0].layerNorm(nil, $0[1]) },
        OpCase("gelu by tanh", [.sample(7, 5, 9, in: -4...4), .parameter(9, in: 0.5...1)]) {
            try ($0[0] * $0[1]).gelu(.tanh)
        },
        OpCase("gelu by erf", [.sample(7, 5, 9, in: -4...4), .parameter(9, in: 0.5...1)]) {
            try ($0[0] * $0[1]).gelu(.erf)
        },
        OpCase("relu", [.sample(7, 5, 9, in: 0.5...1), .parameter(9)]) { try ($0[0] * $0[1]).relu() },
        OpCase("softmax", [.sample(7, 5, 9), .parameter(9)]) { try ($0[0] * $0[1]).softmax() },
        OpCase("softmax along an inner axis", [.sample(7, 5, 9), .parameter(9)]) {
            try ($0[0] * $0[1]).softmax(axis: 1)
        },
        OpCase("cross_entropy", [.sample(7, 5, 9), .parameter(9), .indices(7, 5, below: 9)]) {
            try ($0[0] * $0[1]).crossEntropy($0[2])
        },
        OpCase("cross_entropy, ignored targets", [.sample(7, 5, 9), .parameter(9), .indices(7, 5, below: 9)]) {
            try ($0[0] * $0[1]).crossEntropy($0[2], ignoreIndex: 3)
        },
        OpCase(
            "linear_cross_entropy", [.sample(7, 20, 6), .parameter(9, 6), .parameter(6), .indices(7, 20, below: 9)]
        ) { try ($0[0] * $0[2]).linearCrossEntropy($0[1], $0[3], ignoreIndex: 3) },
        OpCase("linear_cross_entropy, single rows", [.sample(7, 6), .parameter(9, 6), .indices(7, below: 9)]) {
            try $0[0].linearCrossEntropy($0[1], $0[2], reduction: .sum)
        },
        OpCase("mse", [.sample(7, 5, 9), .parameter(9)]) { try ($0[0] * $0[1]).mse($0[0]) },
        OpCase("embedding", [.parameter(13, 35), .indices(7, 5, below: 13)]) { try $0[0].embedding($0[1]) },
        OpCase("embedding tied to the output", [.parameter(13, 6), .indices(7, 20, below: 13)]) {
            try $0[0].embedding($0[1]).linear($0[0])
        },
        OpCase(
            "embedding of a table's rows, twice, and of the transposed table",
            [.parameter(9, 6), .indices(7, 5, below: 6)]
        ) {
            let rows = try $0[0].sliced(axis: 0, 2..<8)
            return try rows.embedding($0[1]) * $0[0].embedding($0[1])
                + $0[0].transposed().embedding($0[1]).sliced(axis: 2, 1..<7)
        },
        OpCase("embedding of a reshaped table, tied", [.parameter(2, 5, 6), .indices(7, 20, below: 10)]) {
            let table = try $0[0].reshaped([10, 6])
            return try table.embedding($0[1]).linear(table)
        },
        OpCase("causal_attention of one tensor's slices", [.sample(3, 70, 24), .parameter(24)]) {
            let x = try $0[0] * $0[1]
            return try x.sliced(axis: 2, 0..<8).causalAttention(
                x.sliced(axis: 2, 8..<16), x.sliced(axis: 2, 16..<24), heads: 2)
        },
        OpCase("causal_attention, one head, a constant value", [.sample(3, 17, 8), .parameter(8)]) {
            let x = try $0[0] * $0[1]
            return try x.causalAttention(x, $0[0], heads: 1)
        },
        OpCase("causal_attention of a transposed tensor", [.sample(3, 6, 5), .parameter(6, 1)]) {
            let x = try ($0[0] * $0[1]).transposed()
            return try x.causalAttention(x, x, heads: 3)
        },
        OpCase("reshape", [.sample(7, 6, 4), .parameter(4)]) { try ($0[0] * $0[1]).reshaped([-1, 24]) },
        OpCase("transpose", [.sample(7, 6, 4), .parameter(4)]) { try ($0[0] * $0[1]).transposed(1, 2) },
        OpCase("reshape of a transposed tensor", [.sample(7, 6, 4), .parameter(4)]) {
            try ($0[0] * $0[1]).transposed(1, 2).reshaped([-1, 24])
        },
        OpCase("slice", [.sample(7, 6, 4), .parameter(6, 1)]) { try ($0[0] * $0[1]).sliced(axis: 1, 2..<5) },
        OpCase("slices that overlap", [.sample(7, 6, 4), .parameter(4)]) {
            let x = try $0[0] * $0[1]
            return try x.sliced(axis: 1, 0..<4) + x.sliced(axis: 1, 2..<6)
        },
        OpCase("sum of all", [.sample(7, 5, 9), .parameter(9)]) { try ($0[0] * $0[1]).sum() },
        OpCase("sum over inner axes", [.sample(7, 5, 9), .parameter(9)]) { try ($0[0] * $0[1]).sum([1, -1]) },
        OpCase("mean over an inner axis", [.sample(7, 5, 9), .parameter(9)]) {
            try ($0[0] * $0[1]).mean([1], keepAxes: true)
        },
        OpCase("cast", [.sample(7, 5, 9), .parameter(9)], isSmooth: false) {
            try ($0[0] * $0[1]).cast(to: .bfloat16).cast(to: .float32)
        },
        OpCase("a tensor used three times", [.sample(7, 5, 9), .parameter(9)]) {
            let x = try $0[0] * $0[1]
            return try x * x + x
        },
        OpCase("a parameter used at two places", [.sample(7, 9), .parameter(9)]) {
            try $0[0] * $0[1] * $0[1]
        },
    ]
}
