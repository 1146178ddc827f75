import CShims

extension Tensor {
    /// Exponentials that sum to 1 along an axis; a negative axis counts from the last.
    public func softmax(axis: Int = -1) throws(GAError) -> Tensor {
        guard dtype == .float32 else { return try inFloat32("softmax", "x").softmax(axis: axis) }
        try require(rank: 1, "softmax", "x")
        let axis = try Shape.axis(axis, rank: rank, "softmax")
        guard axis == rank - 1 else {
            return try transposed(axis, rank - 1).contiguous().softmax().transposed(axis, rank - 1)
        }
        let columns = shape[axis]
        let rows = columns == 0 ? 0 : elementCount / columns
        let grain = max(1, 8192 / max(columns, 1))
        let out = try Tensor(uninitialized: layout)
        let x = try packedData()
        try Runtime.parallel(count: rows, grain: grain) { first, count in
            Runtime.kernels.softmax(
                out.floats + first * columns, x.floats + first * columns, Int64(count), Int64(columns))
        }
        // The node must not hold its own output, or neither would ever be freed.
        let y = out.detached()
        return out.recorded("softmax", from: [self], reading: [y]) { dy, gradients throws(GAError) in
            try gradients.add(to: 0) { (dx, accumulate) throws(GAError) in
                try Runtime.parallel(count: rows, grain: grain) { first, count in
                    let start = first * columns
                    Runtime.kernels.softmax_gradient(
                        dx + start, dy.floats + start, y.floats + start, Int64(count), Int64(columns), accumulate)
                }
            }
        }
    }
}
