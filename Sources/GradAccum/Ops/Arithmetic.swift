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

/// a op b, element by element, with broadcasting; in the type of both, or float32 if they differ.
private func binary(_ op: shims_binary, _ name: StaticString, _ a: Tensor, _ b: Tensor) throws(GAError) -> Tensor {
    try a.requireFloat(name, "a")
    try b.requireFloat(name, "b")
    let layout = try Layout.broadcast(a.layout, b.layout, name)
    let (left, right) = (try a.floatData(), try b.floatData())
    var out = try Tensor(uninitialized: layout)
    let runs = Runs(layout, left.layout, right.layout)
    let (y, x1, x2) = (out.floats, left.floats, right.floats)
    try runs.forEach { position, offsetA, offsetB, count in
        Runtime.kernels.binary(
            op, y + position, x1 + offsetA, Int64(runs.innerA), x2 + offsetB, Int64(runs.innerB), Int64(count))
    }
    if a.dtype == b.dtype && a.dtype != .float32 { out = try out.cast(to: a.dtype) }
    // A sum's gradient reads no operand, a product's the other one, and a quotient's the divisor in any case.
    let isSum = op == SHIMS_ADD || op == SHIMS_SUBTRACT
    let readsLeft = !isSum && b.requiresGrad
    let readsRight = !isSum && (op == SHIMS_DIVIDE || a.requiresGrad)
    let derivative = BinaryDerivative(
        op, layout, left.layout, right.layout, readsLeft ? left : nil, readsRight ? right : nil)
    return out.recorded(name, from: [a, b], reading: derivative.operands) { dy, gradients throws(GAError) in
        for side in 0..<2 where gradients.needed(side) { try derivative.add(dy, gradients, side) }
    }
}

/// What the gradient of one operation is made from: an object, so that the closure that is recorded holds nothing else.
private final class BinaryDerivative {
    private let op: shims_binary
    private let layout: Layout
    private let leftLayout: Layout
    private let rightLayout: Layout
    private let left: Tensor?
    private let right: Tensor?

    /// For contiguous operands whose shapes broadcast to the one of `layout`, without those that no gradient is made from.
    init(
        _ op: shims_binary, _ layout: Layout, _ leftLayout: Layout, _ rightLayout: Layout, _ left: Tensor?,
        _ right: Tensor?
    ) {
        self.op = op
        self.layout = layout
        self.leftLayout = leftLayout
        self.rightLayout = rightLayout
        self.left = left
        self.right = right
    }

    var operands: [Tensor] {
        if let left, let right { return [left, right] }
        return (left ?? right).map { [$0] } ?? []
    }

    /// Adds the gradient of operand 0 or 1, which is needed.
    func add(_ dy: Tensor, _ gradients: Gradients, _ side: Int) throws(GAError) {
        let target = side == 0 ? leftLayout : rightLayout
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
        // Summed over the sample axis, or once for all samples.
        let isBySample = target.shape.count < layout.shape.count || target.shape.first == 1
        let samples = isBySample ? layout.shape.first ?? 1 : 1
        let inner = samples == 0 ? 0 : layout.elementCount / samples
        try gradients.add(to: side, samples: samples) { (out, accumulate, some) throws(GAError) in
            let shape = isBySample ? [some.count] + layout.shape.dropFirst() : layout.shape
            try sum(
                full.floats + some.lowerBound * inner, shape, into: out, shapedLike: target.shape,
                bySample: gradients.isLeaf(side), accumulate)
        }
    }

    /// out (+)= the gradient in the shape of the result.
    private func write(
        _ out: UnsafeMutablePointer<Float>, _ dy: Tensor, _ side: Int, _ accumulate: Int32
    ) throws(GAError) {
        let (runs, left, right, dy) = (Runs(layout, leftLayout, rightLayout), left?.floats, right?.floats, dy.floats)
        let (stepA, stepB) = (left == nil ? 1 : runs.innerA, right == nil ? 1 : runs.innerB)
        try runs.forEach { position, offsetA, offsetB, count in
            // The kernel reads an operand that is not there as well, and makes nothing of it.
            let dy = dy + position
            let a = left.map { $0 + offsetA } ?? dy
            let b = right.map { $0 + offsetB } ?? dy
            Runtime.kernels.binary_gradient(
                op, Int32(side), out + position, dy, a, Int64(stepA), b, Int64(stepB), Int64(count), accumulate)
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
