import CShims

/// Whether a loss is the sum over its samples or tokens, or their mean.
public enum Reduction: Int32, CaseIterable, Sendable {
    case sum = 0
    case mean = 1
}

extension Tensor {
    func setLoss(_ value: Double) {
        floats[0] = Float(value)
        unroundedLoss = value
    }

    /// The negative log-likelihood of `targets` [...] under the softmax of these logits [..., classes].
    ///
    /// Targets equal to `ignoreIndex` count nothing, neither in the sum nor in the mean's divisor; a mean over no target
    /// is 0. Errors: `index` if a target is outside of `0 ..< classes`.
    public func crossEntropy(
        _ targets: Tensor, ignoreIndex: Int64? = nil, reduction: Reduction = .sum
    ) throws(GAError) -> Tensor {
        try require(.float32, "cross_entropy", "logits")
        try require(rank: 1, "cross_entropy", "logits")
        try targets.requireIndices("cross_entropy", "targets")
        try targets.require(shape: Array(shape.dropLast()), "cross_entropy", "targets")
        let classes = shape[rank - 1]
        let rows = targets.elementCount
        let labels = try targets.indices(below: classes, ignoring: ignoreIndex, "cross_entropy", "targets")
        let label = labels.address.assumingMemoryBound(to: Int64.self)
        let logits = try packedData()
        let logSumExp = try Tensor(uninitialized: [rows], for: "cross_entropy")
        let out = try Tensor(uninitialized: [], for: "cross_entropy")
        let grain = max(1, 16384 / max(classes, 1))
        try Runtime.parallel(count: rows, grain: grain) { first, count in
            Runtime.kernels.log_sum_exp(
                logSumExp.floats + first, logits.floats + first * classes, Int64(count), Int64(classes))
        }
        var total = 0.0
        var counted = 0
        for row in 0..<rows where label[row] >= 0 {
            total += Double(logSumExp.floats[row]) - Double(logits.floats[row * classes + Int(label[row])])
            counted += 1
        }
        let divisor = reduction == .mean ? Float(max(counted, 1)) : 1
        out.setLoss(total / Double(divisor))

        let node = Node("cross_entropy", [self], out, isMean: reduction == .mean) { dy, gradients throws(GAError) in
            // A seed equal to the count gives exactly the sum's gradient.
            let scale = dy.floats[0] / divisor
            try gradients.add(to: 0) { (dx, accumulate) throws(GAError) in
                try Runtime.parallel(count: rows, grain: grain) { first, count in
                    Runtime.kernels.cross_entropy_gradient(
                        dx + first * classes, logits.floats + first * classes, logSumExp.floats + first,
                        labels.address.assumingMemoryBound(to: Int64.self) + first, scale, Int64(count), Int64(classes),
                        accumulate)
                }
            }
        }
        return out.recorded(node, from: self)
    }
}
