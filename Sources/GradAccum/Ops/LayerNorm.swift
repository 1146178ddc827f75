import CShims

extension Tensor {
    /// The last axis with mean 0 and variance 1, times `weight` plus `bias`, both [c] (Ba et al., arXiv 1607.06450).
    ///
    /// Computed in float32; the result is of the type of ``Compute/dtype``, for what multiplies it.
    public func layerNorm(_ weight: Tensor?, _ bias: Tensor?, eps: Double = 1e-5) throws(GAError) -> Tensor {
        try requireFloat("layer_norm", "x")
        try require(rank: 1, "layer_norm", "x")
        let columns = shape[rank - 1]
        try weight?.require(.float32, "layer_norm", "weight")
        try weight?.require(shape: [columns], "layer_norm", "weight")
        try bias?.require(.float32, "layer_norm", "bias")
        try bias?.require(shape: [columns], "layer_norm", "bias")
        guard eps.isFinite && eps >= 0 else {
            throw GAError(.invalidArgument, "layer_norm: eps is \(eps): it must be finite and at least 0")
        }
        let rows = columns == 0 ? 0 : elementCount / columns
        let source = try packedData()
        let w = try weight?.packedData()
        let b = try bias?.packedData()
        let samples = rank < 2 || rows == 0 ? rows : shape[0]
        let rowsOfSample = samples == 0 ? 0 : rows / samples
        let grain = max(1, 8192 / max(columns, 1))
        let dtype = Compute.dtype
        // The statistics are the means of all rows, and the inverses of their standard deviations after them.
        func make(_ statistics: Storage) throws(GAError) -> Tensor {
            let out = try Tensor(uninitialized: source.layout, dtype)
            let x = try source.floatData()
            let isFloat = dtype == .float32
            try Runtime.parallel(
                tiles: (rows + grain - 1) / grain, scratch: isFloat ? 0 : grain * columns
            ) { tile, scratch in
                let first = tile * grain
                let count = min(grain, rows - first)
                let start = first * columns
                let values = isFloat ? out.floats + start : scratch
                Runtime.kernels.layer_norm(
                    values, statistics.floats + first, statistics.floats + rows + first, x.floats + start, w?.floats,
                    b?.floats, Int64(count), Int64(columns), Float(eps))
                if !isFloat { out.storeFloats(values, start, count * columns) }
            }
            return out
        }
        let statistics = try Storage(floatCount: 2 * rows)
        let out = try make(statistics)

        var (inputs, operands) = ([self], [source])
        for (parameter, packed) in [(weight, w), (bias, b)] {
            guard let parameter, let packed else { continue }
            inputs.append(parameter)
            operands.append(packed)
        }
        let biasInput = inputs.count - 1
        let (hasWeight, hasBias) = (weight != nil, bias != nil)
        // Made again beside the statistics, which other threads may be reading.
        let remake: Node.Remake = { () throws(GAError) in try make(try Storage(floatCount: 2 * rows)) }
        return out.recorded("layer_norm", from: inputs, reading: operands, remaking: remake) {
            dy, gradients throws(GAError) in
            let x = try source.floatData()
            try gradients.add(to: 0) { (dx, accumulate) throws(GAError) in
                try Runtime.parallel(count: rows, grain: grain) { first, count in
                    Runtime.kernels.layer_norm_gradient(
                        dx + first * columns, dy.floats + first * columns, x.floats + first * columns,
                        statistics.floats + first, statistics.floats + rows + first, w?.floats, Int64(count),
                        Int64(columns), accumulate)
                }
            }
            if hasWeight {
                try gradients.add(to: 1, samples: samples) { (dw, accumulate, samples) throws(GAError) in
                    let first = samples.lowerBound * rowsOfSample
                    try forEachColumns(columns) { start, count in
                        Runtime.kernels.layer_norm_weight_gradient(
                            dw, dy.floats + first * columns, x.floats + first * columns, statistics.floats + first,
                            statistics.floats + rows + first, Int64(samples.count * rowsOfSample), Int64(columns),
                            Int64(start), Int64(start + count), accumulate)
                    }
                }
            }
            if hasBias {
                try gradients.add(to: biasInput, samples: samples) { (db, accumulate, samples) throws(GAError) in
                    let rows = samples.lowerBound * rowsOfSample..<samples.upperBound * rowsOfSample
                    try sumRows(db, dy, rows, columns: columns, accumulate)
                }
            }
        }
    }
}
