import CShims

extension Tensor {
    /// The last axis with mean 0 and variance 1, times `weight` plus `bias`, both [c] (Ba et al., arXiv 1607.06450).
    public func layerNorm(_ weight: Tensor?, _ bias: Tensor?, eps: Double = 1e-5) throws(GAError) -> Tensor {
        try require(.float32, "layer_norm", "x")
        try require(rank: 1, "layer_norm", "x")
        let columns = shape[rank - 1]
        for (tensor, argument) in [(weight, "weight" as StaticString), (bias, "bias")] {
            try tensor?.require(.float32, "layer_norm", argument)
            try tensor?.require(shape: [columns], "layer_norm", argument)
        }
        guard eps.isFinite && eps >= 0 else {
            throw GAError(.invalidArgument, "layer_norm: eps is \(eps): it must be finite and at least 0")
        }
        let rows = columns == 0 ? 0 : elementCount / columns
        let out = try Tensor(uninitialized: layout)
        let mean = try Tensor(uninitialized: [rows], for: "layer_norm")
        let rstd = try Tensor(uninitialized: [rows], for: "layer_norm")
        let x = try packedData()
        let w = try weight?.packedData()
        let b = try bias?.packedData()
        let grain = max(1, 8192 / max(columns, 1))
        try Runtime.parallel(count: rows, grain: grain) { first, count in
            Runtime.kernels.layer_norm(
                out.floats + first * columns, mean.floats + first, rstd.floats + first, x.floats + first * columns,
                w?.floats, b?.floats, Int64(count), Int64(columns), Float(eps))
        }

        let inputs = [self] + [weight, bias].compactMap { $0 }
        return out.recorded("layer_norm", from: inputs) { dy, gradients throws(GAError) in
            try gradients.add(to: 0) { (dx, accumulate) throws(GAError) in
                try Runtime.parallel(count: rows, grain: grain) { first, count in
                    Runtime.kernels.layer_norm_gradient(
                        dx + first * columns, dy.floats + first * columns, x.floats + first * columns,
                        mean.floats + first, rstd.floats + first, w?.floats, Int64(count), Int64(columns), accumulate)
                }
            }
            if weight != nil {
                try gradients.add(to: 1) { (dw, accumulate) throws(GAError) in
                    try Runtime.parallel(count: columns, grain: 64) { start, count in
                        Runtime.kernels.layer_norm_weight_gradient(
                            dw, dy.floats, x.floats, mean.floats, rstd.floats, Int64(rows), Int64(columns),
                            Int64(start), Int64(start + count), accumulate)
                    }
                }
            }
            if bias != nil {
                try gradients.add(to: inputs.count - 1) { (db, accumulate) throws(GAError) in
                    try sumRows(db, dy.floats, rows: rows, columns: columns, accumulate)
                }
            }
        }
    }
}
