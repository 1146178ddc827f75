import CShims

/// Whether a loss is the sum over its samples or tokens, or their mean.
public enum Reduction: Int32, CaseIterable, Sendable {
    case sum = 0
    case mean = 1
}

extension Tensor {
    /// The negative log-likelihood of `targets` [...] under the softmax of these logits [..., classes].
    ///
    /// Targets equal to `ignoreIndex` count nothing, neither in the sum nor in the mean's divisor; a mean over no target
    /// is 0. Errors: `index` if a target is outside of `0 ..< classes`.
    public func crossEntropy(
        _ targets: Tensor, ignoreIndex: Int64? = nil, reduction: Reduction = .sum
    ) throws(GAError) -> Tensor {
        guard dtype == .float32 else {
            return try inFloat32("cross_entropy", "logits").crossEntropy(
                targets, ignoreIndex: ignoreIndex, reduction: reduction)
        }
        try require(rank: 1, "cross_entropy", "logits")
        let logits = try packedData()
        let likelihood = try Likelihood(logits.shape, targets, ignoreIndex, reduction, "cross_entropy")
        let out = try likelihood.loss(logits)
        return out.recorded("cross_entropy", from: [self], reading: [logits], isMean: reduction == .mean) {
            dy, gradients throws(GAError) in
            try gradients.add(to: 0) { (dx, accumulate) throws(GAError) in
                try likelihood.gradient(dx, logits.floats, seed: dy.floats[0], accumulate)
            }
        }
    }

    /// The cross-entropy of `targets` [...] under the logits that `weight` [classes, c] makes of these hidden states [..., c].
    ///
    /// As ``linear(_:_:)`` and ``crossEntropy(_:ignoreIndex:reduction:)`` one after the other, to the bit in float32, but the
    /// logits and their gradient share one piece of memory, which the caller never sees. The softmax and the loss are those
    /// of float32 where the logits are not.
    public func linearCrossEntropy(
        _ weight: Tensor, _ targets: Tensor, ignoreIndex: Int64? = nil, reduction: Reduction = .sum
    ) throws(GAError) -> Tensor {
        let layer = try LinearLayer(self, weight, "linear_cross_entropy", padsLongRows: true)
        let likelihood = try Likelihood(
            Array(shape.dropLast()) + [layer.n], rowStep: layer.rowOfY, targets, ignoreIndex, reduction,
            "linear_cross_entropy")
        let x = try packedData()
        let w = try weight.packedData()
        let logits = try Tensor(
            uninitialized: try layout.packed(lastSize: layer.rowOfY, "linear_cross_entropy"), layer.compute)
        try layer.forward(logits, x, w, nil)
        let out = try likelihood.loss(logits)
        let derivative = LinearDerivative(layer, self, x, weight, w)
        return out.recorded(
            "linear_cross_entropy", from: [self, weight], reading: derivative.operands, isMean: reduction == .mean
        ) {
            dy, gradients throws(GAError) in
            try likelihood.gradient(inPlaceOf: logits, seed: dy.floats[0], gradients.underflow)
            try derivative.add(logits, gradients)
        }
    }
}

/// The rows of a cross-entropy: their targets, and the parts of the log-sum-exp that the gradient is made of.
private struct Likelihood {
    private let rows: Int
    private let classes: Int
    /// Elements between the rows of the logits.
    private let rowStep: Int
    private let labels: Tensor
    private let maximum: Tensor
    private let logSum: Tensor
    /// The logit of the target.
    private let logit: Tensor
    private let divisor: Float

    /// `rowStep`: elements between the rows of the logits, if that is not the number of classes.
    ///
    /// Errors: `dtype`, `shape` and `index` of the targets of logits [..., classes].
    init(
        _ logits: [Int], rowStep: Int? = nil, _ targets: Tensor, _ ignoreIndex: Int64?, _ reduction: Reduction,
        _ operation: StaticString
    ) throws(GAError) {
        classes = logits[logits.count - 1]
        self.rowStep = rowStep ?? classes
        try targets.requireIndices(operation, "targets")
        try targets.require(shape: Array(logits.dropLast()), operation, "targets")
        rows = targets.elementCount
        labels = try targets.indices(below: classes, ignoring: ignoreIndex, operation, "targets")
        maximum = try Tensor(uninitialized: [rows], for: operation)
        logSum = try Tensor(uninitialized: [rows], for: operation)
        logit = try Tensor(uninitialized: [rows], for: operation)
        let counted = UnsafeBufferPointer(start: labels.address.assumingMemoryBound(to: Int64.self), count: rows)
            .count { $0 >= 0 }
        divisor = reduction == .mean ? Float(max(counted, 1)) : 1
    }

    private var label: UnsafeMutablePointer<Int64> { labels.address.assumingMemoryBound(to: Int64.self) }
    /// One where there is something between rows, as the kernels take rows that follow each other.
    private var rowsPerTile: Int { rowStep > classes ? 1 : max(1, 16384 / max(classes, 1)) }

    /// The loss as a scalar, added up in double.
    func loss(_ logits: Tensor) throws(GAError) -> Tensor {
        try forEachTile(of: logits) { first, count, rows in
            Runtime.kernels.log_sum_exp(
                maximum.floats + first, logSum.floats + first, rows, Int64(count), Int64(classes))
            for row in 0..<count where label[first + row] >= 0 {
                logit.floats[first + row] = rows[row * classes + Int(label[first + row])]
            }
        }
        var total = 0.0
        for row in 0..<rows where label[row] >= 0 {
            total += Double(logSum.floats[row]) + (Double(maximum.floats[row]) - Double(logit.floats[row]))
        }
        return try Tensor(loss: total / Double(divisor))
    }

    /// dx (+)= the gradient of the float32 logits. A seed equal to a mean's divisor gives exactly the sum's.
    func gradient(
        _ dx: UnsafeMutablePointer<Float>, _ logits: UnsafeMutablePointer<Float>, seed: Float, _ accumulate: Int32
    ) throws(GAError) {
        try Runtime.parallel(count: rows, grain: rowsPerTile) { first, count in
            let start = first * classes
            write(dx + start, logits + start, first, count, seed, accumulate)
        }
    }

    /// Turns logits into their gradient. `underflow`: counts what of it is rounded to 0.
    func gradient(inPlaceOf logits: Tensor, seed: Float, _ underflow: Underflow?) throws(GAError) {
        func run(_ counts: UnsafeMutablePointer<Int64>?) throws(GAError) {
            try forEachTile(of: logits) { first, count, rows in
                write(rows, rows, first, count, seed, 0)
                guard logits.dtype != .float32 else { return }
                if let counts {
                    Runtime.kernels.count_flushed(
                        rows, logits.dtype.format, Int64(count * classes), counts + 2 * (first / rowsPerTile))
                }
                logits.storeFloats(rows, first * rowStep, count * classes)
            }
        }
        guard let underflow, logits.dtype != .float32 else { return try run(nil) }
        try underflow.count(tiles: (rows + rowsPerTile - 1) / rowsPerTile) { (counts) throws(GAError) in
            try run(counts)
        }
    }

    private func write(
        _ dx: UnsafeMutablePointer<Float>, _ logits: UnsafeMutablePointer<Float>, _ first: Int, _ count: Int,
        _ seed: Float, _ accumulate: Int32
    ) {
        Runtime.kernels.cross_entropy_gradient(
            dx, logits, maximum.floats + first, logSum.floats + first, label + first, seed / divisor, Int64(count),
            Int64(classes), accumulate)
    }

    /// Calls `body(first row, count, rows)` with rows in place if they are float32, or else converted to it.
    private func forEachTile(
        of logits: Tensor, _ body: (Int, Int, UnsafeMutablePointer<Float>) -> Void
    ) throws(GAError) {
        let (perTile, isFloat) = (rowsPerTile, logits.dtype == .float32)
        try Runtime.parallel(
            tiles: (rows + perTile - 1) / perTile, scratch: isFloat ? 0 : perTile * classes
        ) { tile, scratch in
            let first = tile * perTile
            let count = min(perTile, rows - first)
            guard !isFloat else { return body(first, count, logits.floats + first * rowStep) }
            logits.loadFloats(into: scratch, first * rowStep, count * classes)
            body(first, count, scratch)
        }
    }
}
