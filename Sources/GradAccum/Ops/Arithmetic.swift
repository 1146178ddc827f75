import CShims

extension Tensor {
    public static func + (a: Tensor, b: Tensor) throws(GAError) -> Tensor { try binary(SHIMS_ADD, "add", a, b) }
    public static func - (a: Tensor, b: Tensor) throws(GAError) -> Tensor {
        try binary(SHIMS_SUBTRACT, "subtract", a, b)
    }
    public static func * (a: Tensor, b: Tensor) throws(GAError) -> Tensor {
        try binary(SHIMS_MULTIPLY, "multiply", a, b)
    }
    public static func / (a: Tensor, b: Tensor) throws(GAError) -> Tensor { try binary(SHIMS_DIVIDE, "divide", a, b) }
}

/// a op b, element by element, with broadcasting.
private func binary(_ op: shims_binary, _ name: StaticString, _ a: Tensor, _ b: Tensor) throws(GAError) -> Tensor {
    try a.require(.float32, name, "a")
    try b.require(.float32, name, "b")
    let shape = try Shape.broadcast(a.shape, b.shape, name)
    let out = try Tensor(uninitialized: shape, for: name)
    let left = try a.packedData()
    let right = try b.packedData()
    let runs = Runs(shape, Shape.broadcastStrides(a.shape, to: shape), Shape.broadcastStrides(b.shape, to: shape))
    try runs.forEach { position, offsetA, offsetB, count in
        Runtime.kernels.binary(
            op, out.floats + position, left.floats + offsetA, Int64(runs.innerA), right.floats + offsetB,
            Int64(runs.innerB), Int64(count))
    }
    return out.recorded(name, from: [a, b]) { dy, gradients throws(GAError) in
        for side in 0..<2 where gradients.needed(side) {
            let target = side == 0 ? a.shape : b.shape
            let isPlain = op == SHIMS_ADD || (op == SHIMS_SUBTRACT && side == 0)
            // A leaf with a leading 1 meets one sample as it meets many: summed over the sample axis.
            let isSummed = target != shape || (gradients.isLeaf(side) && shape.first == 1)
            if isPlain && !isSummed {
                try gradients.pass(dy, to: side)
                continue
            }
            func write(_ destination: UnsafeMutablePointer<Float>, _ accumulate: Int32) throws(GAError) {
                try runs.forEach { position, offsetA, offsetB, count in
                    Runtime.kernels.binary_gradient(
                        op, Int32(side), destination + position, dy.floats + position, left.floats + offsetA,
                        Int64(runs.innerA), right.floats + offsetB, Int64(runs.innerB), Int64(count), accumulate)
                }
            }
            guard isSummed else {
                try gradients.add(to: side, write)
                continue
            }
            let full = isPlain ? dy : try Tensor(uninitialized: shape, for: name)
            if !isPlain { try write(full.floats, 0) }
            try gradients.add(to: side) { (out, accumulate) throws(GAError) in
                try sum(full.floats, shape, into: out, shapedLike: target, bySample: gradients.isLeaf(side), accumulate)
            }
        }
    }
}

/// A walk over a broadcast shape in runs along which each operand advances by one or stands still.
struct Runs {
    private let axes: PairedAxes

    /// The strides of two contiguous operands that are read in this shape.
    init(_ shape: [Int], _ a: [Int], _ b: [Int]) { axes = PairedAxes(shape, a, b) }

    /// Steps of the operands within a run: 0 or 1.
    var innerA: Int { axes.rowStepA }
    var innerB: Int { axes.rowStepB }

    /// Calls `body(position, offsetA, offsetB, count)`; the pieces lie one after another at `position`.
    func forEach(_ body: (Int, Int, Int, Int) -> Void) throws(GAError) {
        let size = axes.rowSize
        guard size > 0 else { return }
        let pieces = Blocks(size, largest: 16384)
        let grain = pieces.count > 1 ? 1 : max(1, 16384 / size)
        try Runtime.parallel(count: axes.rowCount * pieces.count, grain: grain) { first, count in
            for item in first..<(first + count) {
                let row = item / pieces.count
                let start = pieces.start(item % pieces.count)
                let (a, b) = axes.offsets(ofRow: row)
                body(row * size + start, a + start * innerA, b + start * innerB, pieces.count(item % pieces.count))
            }
        }
    }
}
