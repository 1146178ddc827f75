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

/// a op b, element by element, with broadcasting; bfloat16 if both are, else float32.
private func binary(_ op: shims_binary, _ name: StaticString, _ a: Tensor, _ b: Tensor) throws(GAError) -> Tensor {
    try a.requireFloat(name, "a")
    try b.requireFloat(name, "b")
    let layout = try Layout.broadcast(a.layout, b.layout, name)
    var out = try Tensor(uninitialized: layout)
    let operation = BinaryOperation(op, name, layout, try a.floatData(), try b.floatData())
    try operation.forward(out.floats)
    if a.dtype == .bfloat16 && b.dtype == .bfloat16 { out = try out.cast(to: .bfloat16) }
    return out.recorded(name, from: [a, b]) { dy, gradients throws(GAError) in
        for side in 0..<2 where gradients.needed(side) { try operation.backward(dy, gradients, side) }
    }
}

/// What forward and backward of one operation share: an object, so that the closure that is recorded holds nothing else.
private final class BinaryOperation {
    private let op: shims_binary
    private let name: StaticString
    private let layout: Layout
    private let left: Tensor
    private let right: Tensor

    /// On contiguous operands whose shapes broadcast to the one of `layout`.
    init(_ op: shims_binary, _ name: StaticString, _ layout: Layout, _ left: Tensor, _ right: Tensor) {
        self.op = op
        self.name = name
        self.layout = layout
        self.left = left
        self.right = right
    }

    private var runs: Runs { Runs(layout, left.layout, right.layout) }

    func forward(_ out: UnsafeMutablePointer<Float>) throws(GAError) {
        let (runs, left, right) = (runs, left.floats, right.floats)
        try runs.forEach { position, offsetA, offsetB, count in
            Runtime.kernels.binary(
                op, out + position, left + offsetA, Int64(runs.innerA), right + offsetB, Int64(runs.innerB),
                Int64(count))
        }
    }

    /// Adds the gradient of operand 0 or 1, which is needed.
    func backward(_ dy: Tensor, _ gradients: Gradients, _ side: Int) throws(GAError) {
        let target = side == 0 ? left.layout : right.layout
        let isPlain = op == SHIMS_ADD || (op == SHIMS_SUBTRACT && side == 0)
        // A leaf with a leading 1 meets one sample as it meets many: summed over the sample axis.
        let isSummed = !target.hasShape(of: layout) || (gradients.isLeaf(side) && layout.shape.first == 1)
        guard isSummed else {
            if isPlain { return try gradients.pass(dy, to: side) }
            return try gradients.add(to: side) { (out, accumulate) throws(GAError) in
                try write(out, dy, side, accumulate)
            }
        }
        let full = isPlain ? dy : try Tensor(uninitialized: layout)
        if !isPlain { try write(full.floats, dy, side, 0) }
        try gradients.add(to: side) { (out, accumulate) throws(GAError) in
            try sum(
                full.floats, layout.shape, into: out, shapedLike: target.shape, bySample: gradients.isLeaf(side),
                accumulate)
        }
    }

    /// out (+)= the gradient in the shape of the result.
    private func write(
        _ out: UnsafeMutablePointer<Float>, _ dy: Tensor, _ side: Int, _ accumulate: Int32
    ) throws(GAError) {
        let (runs, left, right, dy) = (runs, left.floats, right.floats, dy.floats)
        try runs.forEach { position, offsetA, offsetB, count in
            Runtime.kernels.binary_gradient(
                op, Int32(side), out + position, dy + position, left + offsetA, Int64(runs.innerA), right + offsetB,
                Int64(runs.innerB), Int64(count), accumulate)
        }
    }
}

/// A walk over a broadcast shape in runs along which each operand advances by one or stands still.
struct Runs {
    private let axes: PairedAxes

    /// Over two contiguous operands that are read in the shape of `layout`.
    init(_ layout: Layout, _ a: Layout, _ b: Layout) {
        if a.hasShape(of: layout) && b.hasShape(of: layout) {
            axes = PairedAxes(neighbours: layout.elementCount)
        } else {
            axes = PairedAxes(
                layout.shape, Shape.broadcastStrides(a.shape, to: layout.shape),
                Shape.broadcastStrides(b.shape, to: layout.shape))
        }
    }

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
